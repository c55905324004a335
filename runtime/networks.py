"""A bundle's graphs as sessions: loaded when they are first needed, and one at a time where memory is short."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from runtime.available_memory import held_bytes, return_freed, return_large_blocks
from runtime.bundle import Bundle, GraphVariant, precision_of
from runtime.cancel import check_cancelled
from runtime.engine import PROVIDERS, import_engine
from runtime.errors import BundleError, RequestError
from runtime.graph_cache import GraphCache
from runtime.limits import check_whole
from runtime.memory import MemoryPlan
from runtime.optimized import graph_bytes
from runtime.session import Session

logger = logging.getLogger(__name__)

DEFAULT_VARIANT = "fp32"
MAX_THREADS = 1024
TO_COME = 2**25  # bytes of what a first request reads beside its graphs: tokenizer, plan, and code
LOOK_EVERY = 0.1  # seconds, at whether to stop, while another thread loads


def runs_on(graph: GraphVariant, provider: str) -> bool:
    """Whether a graph is for "cpu" or "cuda"."""
    return not {"any", PROVIDERS[provider]}.isdisjoint(graph.providers)


class Networks:
    """The sessions of one bundle, by role; threads may share them.

    Attributes:
        low_memory: whether both of the next two were asked for.
        one_network: whether a graph is dropped before another is loaded. Whoever knows that no request follows may set
            it: within one request every network has its turn once.
        in_turn: whether the halves of guidance take turns.
        max_memory: bytes that the process may take in all, for which each request is planned; None for no limit.
        process: bytes that it held before any network; 0 where there is no limit to keep.
        planned: how the latest request was drawn within that limit.
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
        max_memory: int | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            bundle: where the graphs come from.
            provider: "cpu" or "cuda", for every graph.
            threads: threads inside an operator; without it ONNX Runtime's choice, one for each core.
            low_memory: hold one graph at a time, and take the halves of guidance in turn.
            variant: which one of a role that has it, literally: "fp32" is the portable graph. Others, and all without
                it, are float32 where they can be, in the variant for the provider where there is one.
            ignore_memory, cache, max_memory: what the attributes say.

        Raises:
            RequestError: no role has the variant, threads is no number of threads, or there is a limit for what a
                graphics card computes.
        """
        self.bundle, self.provider, self.threads, self.low_memory = bundle, provider, threads, low_memory
        known = sorted({name for variants in bundle.graphs.values() for name in variants})
        if variant is not None and variant not in known:
            raise RequestError(f"variant {variant!r} is unknown; {bundle.name} has {', '.join(known)}")
        if threads is not None:
            check_whole("threads", threads, least=1, most=MAX_THREADS)
        if max_memory is not None and provider != "cpu":
            raise RequestError(f"max_memory is kept on the cpu alone, not on {provider}; leave it out, or the provider")
        self.variant, self.ignore_memory, self.cache, self.max_memory = variant, ignore_memory, cache, max_memory
        self.one_network = self.in_turn = low_memory
        self.process = 0
        self.planned: MemoryPlan | None = None
        if max_memory is not None:
            import_engine()  # which is a part of what the process holds
            self.process = held_bytes() + TO_COME
        self.fallbacks: dict[str, str] = {}
        self._sessions: dict[str, Session] = {}
        # Those that any thread still holds: where memory is short, the next thread takes them and loads no second one.
        self._held: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._lock = threading.Lock()

    def within(self, one_network: bool, in_turn: bool) -> Networks:
        """The same sessions, held otherwise: for one request, while others may go on as before."""
        shared = copy.copy(self)
        shared.one_network, shared.in_turn = one_network, in_turn
        return shared

    @contextmanager
    def dropped_if_stopped(self) -> Iterator[None]:
        """Hold no network after what ends early, where there is a limit: what it had taken would not be given back."""
        try:
            yield
        except BaseException:
            if self.max_memory is not None:
                with self._lock:
                    self._drop()
            raise

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
            if self.one_network:  # an earlier request may have held more
                self._drop(keep=role)
            if role not in self._sessions:
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

    def _drop(self, keep: str | None = None) -> None:
        """Hold no session, but for that of a role, and none of the memory of the others."""
        others = self._sessions.keys() - {keep}
        for role in others:
            del self._sessions[role]
        if others:
            return_freed()

    def _load(self, role: str) -> Session:
        graph = self.graph(role)
        logger.info("loading %s (%.1f MB)", graph.file.name, graph_bytes(graph) / 1e6)
        return_large_blocks()
        session = Session(self.bundle, graph, self.provider, self.threads, self.cache)
        return_freed()
        fallback = session.fallback()
        if fallback:
            self.fallbacks[role] = fallback
        return session
