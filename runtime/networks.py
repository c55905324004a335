"""A bundle's graphs as sessions: loaded when they are first needed, and one at a time where memory is short."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from runtime.bundle import Bundle, GraphVariant, precision_of
from runtime.cancel import check_cancelled
from runtime.engine import PROVIDERS
from runtime.errors import BundleError, RequestError
from runtime.graph_cache import GraphCache
from runtime.limits import check_whole
from runtime.optimized import graph_bytes
from runtime.session import Session

logger = logging.getLogger(__name__)

DEFAULT_VARIANT = "fp32"
MAX_THREADS = 1024
LOOK_EVERY = 0.1  # seconds, at whether to stop, while another thread loads


def runs_on(graph: GraphVariant, provider: str) -> bool:
    """Whether a graph is for "cpu" or "cuda"."""
    return not {"any", PROVIDERS[provider]}.isdisjoint(graph.providers)


class Networks:
    """The sessions of one bundle, by role; threads may share them.

    Attributes:
        low_memory: whether a graph is dropped before another is loaded, and the halves of guidance take turns.
        ignore_memory: whether requests are tried that seem to need more memory than there is.
        cache: where optimised graphs are kept, or None.
        fallbacks: by role, how many nodes of its graph did not get the provider that was asked for, in words.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: str = "cpu",
        threads: int | None = None,
        low_memory: bool = False,
        variant: str | None = None,
        ignore_memory: bool = False,
        cache: GraphCache | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            bundle: where the graphs come from.
            provider: "cpu" or "cuda", for every graph.
            threads: threads inside an operator; without it ONNX Runtime's choice, one for each core.
            low_memory: hold one graph at a time.
            variant: which one of a role that has it, literally: "fp32" is the portable graph. Others, and all without
                it, are float32 where they can be, in the variant for the provider where there is one.
            ignore_memory: what the attribute says.
            cache: where optimised graphs are kept.

        Raises:
            RequestError: no role has the variant, or threads is no number of threads.
        """
        self.bundle, self.provider, self.threads, self.low_memory = bundle, provider, threads, low_memory
        known = sorted({name for variants in bundle.graphs.values() for name in variants})
        if variant is not None and variant not in known:
            raise RequestError(f"variant {variant!r} is unknown; {bundle.name} has {', '.join(known)}")
        if threads is not None:
            check_whole("threads", threads, least=1, most=MAX_THREADS)
        self.variant, self.ignore_memory, self.cache = variant, ignore_memory, cache
        self.fallbacks: dict[str, str] = {}
        self._sessions: dict[str, Session] = {}
        # Those that any thread still holds: where memory is short, the next thread takes them and loads no second one.
        self._held: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._lock = threading.Lock()

    def variant_of(self, role: str) -> str:
        """Which of a role's graphs is used: the one asked for; else of its precision, of float32, of the first.

        Of a precision the variant for the provider comes before the portable one, and one for another is not taken.
        """
        variants = self.bundle.graphs.get(role, {})
        precisions = map(precision_of, [self.variant or DEFAULT_VARIANT, DEFAULT_VARIANT, *variants])
        ways = [name for precision in precisions for name in (f"{precision}-{self.provider}", precision)]
        runnable = [name for name, graph in variants.items() if runs_on(graph, self.provider)]
        if self.variant is not None and self.variant in variants:
            return self.variant
        return next((name for name in (*ways, *variants) if name in runnable), next(iter(variants), DEFAULT_VARIANT))

    def graph(self, role: str) -> GraphVariant:
        """The graph that is used for a role.

        Raises:
            BundleError: the bundle has no graph for the role, or one that is for other execution providers.
        """
        graph = self.bundle.graph(role, self.variant_of(role))
        if not runs_on(graph, self.provider):
            raise BundleError(
                f"{graph.file.name} is for {', '.join(graph.providers)}, not for {PROVIDERS[self.provider]}; "
                "choose another provider or variant"
            )
        return graph

    def wider(self, role: str) -> str:
        """What helps where a role's numbers are no longer finite: words, which are empty if it is float32 already."""
        used = self.variant_of(role)
        if precision_of(used) == DEFAULT_VARIANT:
            return ""
        there = "" if DEFAULT_VARIANT in self.bundle.graphs[role] else ", which has to be exported first"
        return f"the variant {used} may be too narrow: take {DEFAULT_VARIANT}{there}"

    def session(self, role: str) -> Session:
        """The session for a role. A caller that keeps it keeps its memory, also where it is short.

        Raises:
            BundleError: there is no such graph, or its file is damaged or not what the manifest says.
            EngineError: the provider cannot be had.
            Cancelled: it was stopped, see ``runtime.cancel``.
        """
        with self._locked():
            if role not in self._sessions:
                if self.low_memory:
                    self._sessions.clear()
                self._sessions[role] = self._held[role] = self._held.get(role) or self._load(role)
            return self._sessions[role]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One thread at a time; the others may be stopped while they wait."""
        while not self._lock.acquire(timeout=LOOK_EVERY):
            check_cancelled()
        try:
            yield
        finally:
            self._lock.release()

    def _load(self, role: str) -> Session:
        graph = self.graph(role)
        logger.info("loading %s (%.1f MB)", graph.file.name, graph_bytes(graph) / 1e6)
        session = Session(self.bundle, graph, self.provider, self.threads, self.cache)
        fallback = session.fallback()
        if fallback:
            self.fallbacks[role] = fallback
        return session
