"""Graphs as ONNX Runtime has optimised them, kept on this machine, so that only the first load does that work.

At every load ONNX Runtime rewrites the graph and lays the weights out for this processor's kernels, on the heap. Saved
after that, with the weights as external data and what is packed for matrix products beside them, a graph needs neither:
its weights are mapped from the file, and only what a kernel reads is ever in memory. It computes the same, to the bit.

What is saved depends on the processor and on the version of ONNX Runtime, so it never travels with a bundle.
"""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runtime.available_memory import return_freed
from runtime.bundle import Bundle, GraphVariant
from runtime.engine import processor_features, processor_name
from runtime.errors import BundleError, one_line
from runtime.graph_cache import LIMIT_VARIABLE, MODEL, WEIGHTS, Facts, GraphCache, Stale
from runtime.verified import sha256

logger = logging.getLogger(__name__)

FORMAT = 1
# Bytes of an entry for each of the graph's: a matrix is there as it was, and packed.
GROWTH = 2.0
# Smaller tensors stay in the graph: a mapping takes whole pages.
LEAST_EXTERNAL_BYTES = "1024"
SAVING = {
    "session.optimized_model_external_initializers_file_name": WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": LEAST_EXTERNAL_BYTES,
    "session.save_external_prepacked_constant_initializers": "1",
}


@dataclass(frozen=True)
class Optimisation:
    """What a session is to do about it.

    Attributes:
        done: nothing, the graph is one that was saved.
        save: do it, and save the graph there, with its weights beside it.
    """

    done: bool = False
    save: Path | None = None

    def apply(self, engine: Any, options: Any) -> None:
        """Set ``SessionOptions``."""
        if self.done:
            options.graph_optimization_level = engine.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self.save is not None:
            options.optimized_model_filepath = str(self.save)
            for name, value in SAVING.items():
                options.add_session_config_entry(name, value)


ANEW = Optimisation()


class Open(Protocol):
    """``runtime.session.open_session``, told on what and with how many threads."""

    def __call__(self, model: bytes | Path, path: Path, optimisation: Optimisation = ANEW) -> Any: ...


@dataclass(frozen=True)
class Origin:
    """A graph of a bundle, checked.

    Attributes:
        model: its bytes, or the path of one with large weights inside.
        path: the file, beside which its external data lies.
        facts: all that the optimised graph depends on.
        size: bytes, with its weights.
    """

    model: bytes | Path
    path: Path
    facts: Facts
    size: int

    @property
    def title(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"


def graph_bytes(graph: GraphVariant) -> int:
    """Bytes of a graph with its weights."""
    return sum(file.size for file in (graph.file, *graph.external_data))


def graph_facts(engine: Any, bundle: Bundle, graph: GraphVariant, settings: Mapping[str, str]) -> Facts:
    """All that the optimised graph depends on. The number of threads is not among it.

    Args:
        engine: the module ``onnxruntime``.
        bundle, graph: what is optimised. Folders that others made say no hashes: their files are hashed.
        settings: with which the session is made.
    """
    files = (graph.file, *graph.external_data)
    return {
        "format": FORMAT,
        "files": [[file.name, file.sha256 or sha256(bundle.path(file))] for file in files],
        "onnxruntime": engine.__version__,
        "build": engine.get_build_info() if hasattr(engine, "get_build_info") else "",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "features": processor_features(),
        "settings": {**settings, **SAVING},
    }


def open_optimized(cache: GraphCache, origin: Origin, open_one: Open) -> Any:
    """A session of a graph: of what was saved before, else saved now, else as if there were no cache.

    Raises:
        BundleError, EngineError, RequestError, Cancelled: as without a cache.
    """
    problem = ""
    session = None
    try:
        session = from_cache(cache, origin, open_one)
    except OSError as error:
        problem = error.strerror or one_line(error)
    except (BundleError, Stale) as error:
        problem = one_line(error)
    if session is None:
        session = open_one(origin.model, origin.path)
    if problem:
        warnings.warn(
            f"optimised graphs cannot be kept in {cache.folder} ({problem}), so that loading takes longer; "
            f"mend that, or set {LIMIT_VARIABLE}=0",
            stacklevel=2,
        )
    return session


def from_cache(cache: GraphCache, origin: Origin, open_one: Open) -> Any | None:
    """A session of the saved graph, which is saved first where there is none; None where it cannot be.

    Raises:
        OSError, BundleError: it could not be saved or opened.
        Cancelled: nothing is left of what was begun.
    """
    try:
        session = saved(cache, origin, open_one)
    except Stale:
        session = None  # by the time that the lock is held, another process may have mended it
    if session is not None:
        return session
    with cache.locked(origin.facts) as held:
        if not held:
            logger.info("%s is being optimised by another process; it is loaded without", origin.title)
            return None
        try:
            session = saved(cache, origin, open_one)
        except Stale as error:
            logger.info("the optimised %s is made again: %s", origin.title, error)
        if session is None and fits(cache, origin):
            save(cache, origin, open_one)
            # Mapped, its weights take no heap, as those of the session that saved it did.
            session = saved(cache, origin, open_one)
        return session


def saved(cache: GraphCache, origin: Origin, open_one: Open) -> Any | None:
    """A session of the saved graph; None where there is none.

    Raises:
        Stale: what is there cannot be used.
        Cancelled: as ever.
    """
    entry = cache.find(origin.facts)
    if entry is None:
        return None
    try:
        return open_one(entry.model, entry.folder / MODEL, Optimisation(done=True))
    except BundleError as error:
        raise Stale(str(error)) from error


def fits(cache: GraphCache, origin: Origin) -> bool:
    """Whether there is room for it, after others that were not used for long have made some."""
    needed, allowed = int(GROWTH * origin.size), cache.allowed()
    if needed > allowed:
        sizes = origin.title, needed / 1e9, allowed / 1e9
        logger.info("%s is not kept as optimised: it takes up to %.1f GB of the %.1f that the cache may have", *sizes)
        return False
    cache.make_room(needed)
    return True


def save(cache: GraphCache, origin: Origin, open_one: Open) -> None:
    """Have ONNX Runtime optimise a graph, and keep what comes out.

    Raises:
        OSError, BundleError: it cannot be kept.
        Cancelled: nothing is left of what was begun.
    """
    logger.info("optimising %s for this machine; the result is kept", origin.title)
    with cache.aside(origin.facts) as aside:
        open_one(origin.model, origin.path, Optimisation(save=aside / MODEL))  # the session ends here
        return_freed()
        cache.add(origin.facts, aside, origin.title)
