"""One graph, loaded and checked: an InferenceSession that keeps its promises.

ONNX Runtime falls back to the CPU with no more than a log line when a provider cannot be had, and it believes
whatever graph it is given. Here a provider is what was asked for, and a graph has the inputs and outputs that its
manifest says.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.adapter import ForeignGraph, adapted_inputs, adapted_outputs, native_outputs
from runtime.bundle import Bundle, GraphVariant, TensorSpec
from runtime.cancel import stopped_by
from runtime.engine import PROVIDERS, import_engine
from runtime.errors import BundleError, Cancelled, EngineError, RequestError, one_line
from runtime.external_data import check_external_data, mapped
from runtime.graph_cache import GraphCache
from runtime.limits import check_choice
from runtime.optimized import ANEW, Optimisation, Origin, graph_bytes, graph_facts, open_optimized
from runtime.verified import check_sha256

Array = npt.NDArray[Any]

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
}
# The smallest model there is, y = Identity(x), serialised: opset 20, IR version 8. Asking it which provider it runs
# on costs nothing.
PROBE = (
    b'\x08\x08:9\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\x14"
)
# ONNX Runtime is given the very bytes that were checked, so that nobody can exchange the file in between. But it holds
# weights inside such bytes two and a half times (1.3 GB for a text encoder of 0.49 GB; 0.84 GB by its path, and 0.5 GB,
# once, where they are external data). So a larger file is opened by its path, after its hash has been checked.
MAX_MODEL_BYTES = 2**26
INSTALL_CUDA = "pip install 'diffusion-anywhere[cuda]'"
CUDA_CURE = "run: pip install 'onnxruntime-gpu[cuda,cudnn]', or choose the wheel that fits the CUDA you have"
SETTINGS = {
    "session.record_ep_graph_assignment_info": "1",
    "session.load_model_format": "ONNX",  # never another one by its first bytes
}
# ONNX Runtime's log severities.
WARNINGS = 2
NOTHING = 4


class Session:
    """A loaded graph.

    Attributes:
        provider: "cpu" or "cuda", where it really runs.
        placement: nodes by execution provider, as ONNX Runtime placed them.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: GraphVariant,
        provider: str = "cpu",
        threads: int | None = None,
        cache: GraphCache | None = None,
    ) -> None:
        """Load a graph after its files have been checked: sizes, hashes, and where its weights lie.

        Args:
            bundle: where the graph comes from.
            graph: the variant to load.
            provider: "cpu" or "cuda"; a promise, not a wish.
            threads: threads inside an operator; without it ONNX Runtime's choice, one for each core.
            cache: where large graphs are kept as ONNX Runtime has optimised them for the CPU.

        Raises:
            BundleError: a file is damaged, weights lie in a file that the manifest does not name, or inputs and outputs
                are not the manifest's.
            EngineError: the provider cannot be had.
        """
        self.path = bundle.folder / graph.file.name
        self._engine = import_engine()
        open_one = partial(open_session, self._engine, provider, threads)
        model = checked_model(bundle, graph)
        if cache is None or provider != "cpu" or graph_bytes(graph) < cache.least:
            self._session = open_one(model, self.path)
        else:
            origin = Origin(model, self.path, graph_facts(self._engine, bundle, graph, SETTINGS), graph_bytes(graph))
            self._session = open_optimized(cache, origin, open_one)
        self.provider = provider
        self.placement = placement(self._session)
        if not isinstance(graph, ForeignGraph):  # what others' graphs take was read from the files themselves
            check_signature(self.path, "inputs", self._session.get_inputs(), graph.inputs)
            check_signature(self.path, "outputs", self._session.get_outputs(), graph.outputs)
        self.graph = graph
        self.inputs = {spec.name: spec for spec in graph.inputs}
        self._keeps = True
        self._first: Session | None = None  # not itself: a cycle would keep gigabytes until it is collected
        self._outputs = native_outputs(graph)

    def for_the_last_time(self) -> Session:
        """The same graph, whose evaluations end with their memory given back, until it is asked for again.

        ONNX Runtime keeps what an evaluation has taken, for the next of the same shape: while the VAE decodes, the
        U-Net would still hold all its feature maps. Memory that has been given back has to be fetched from the system
        anew, which takes time; so that is for the evaluation after which another network has its turn.
        """
        last = copy.copy(self)
        last._keeps, last._first = False, self  # whoever looks for it finds it as long as it is used
        return last

    def run(self, **inputs: Array) -> dict[str, Array]:
        """Evaluate the graph.

        Args:
            inputs: every input by name, in its own dtype and shape.

        Returns:
            Every output by name.

        Raises:
            RequestError: ONNX Runtime refused the inputs or ran out of memory.
            Cancelled: it was stopped, see ``runtime.cancel``.
        """
        inputs = adapted_inputs(self.graph, inputs)
        options = self._engine.RunOptions()
        if not self._keeps and self.provider == "cpu":
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            with stopped_by(lambda: setattr(options, "terminate", True)):
                outputs = self._session.run(self._outputs, inputs, options)
        except Cancelled:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            shapes = {name: (str(array.dtype), array.shape) for name, array in inputs.items()}
            raise RequestError(f"{self.graph.file.name} failed on {shapes}: {one_line(error)}") from error
        return adapted_outputs(self.graph, dict(zip(self._outputs, outputs, strict=True)))

    def fallback(self) -> str:
        """How many nodes did not get the provider that was asked for, in words; empty when all did."""
        elsewhere = sum(count for name, count in self.placement.items() if name != PROVIDERS[self.provider])
        total = sum(self.placement.values())
        return f"{elsewhere} of {total} nodes of {self.graph.file.name} run on the CPU" if elsewhere else ""


def choose_provider(wanted: str) -> tuple[str, str]:
    """Turn "auto", "cpu" or "cuda" into a provider that works here, and one line that says why.

    Raises:
        EngineError: "cuda" was asked for and sessions would not run there; the message has cause and cure.
        RequestError: an unknown name.
    """
    check_choice("provider", wanted, ("auto", *PROVIDERS))
    if wanted == "cpu":
        return "cpu", "provider cpu, as asked"
    if wanted == "auto" and PROVIDERS["cuda"] not in import_engine().get_available_providers():
        return "cpu", "provider cpu: all that this ONNX Runtime wheel has"
    problem = try_cuda()
    if problem is None:
        return "cuda", f"provider cuda{', as asked' if wanted == 'cuda' else ': it works here'}"
    if wanted == "cuda":
        raise EngineError(f"provider cuda cannot be used: {problem}")
    return "cpu", f"provider cpu, since cuda cannot be used: {problem}"


def try_cuda() -> str | None:
    """Open a session of one node on CUDA; None if it really runs there, else the cause and the cure."""
    engine = import_engine()
    if PROVIDERS["cuda"] not in engine.get_available_providers():
        return f"this ONNX Runtime wheel has no CUDA; run: pip uninstall -y onnxruntime, then {INSTALL_CUDA}"
    # What ONNX Runtime prints and logs of a failure is long, comes twice and names no cure; the cause is found below.
    engine.set_default_logger_severity(NOTHING)
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        if hasattr(engine, "preload_dlls"):
            engine.preload_dlls()
        options = engine.SessionOptions()
        options.log_severity_level = NOTHING
        try:
            session = engine.InferenceSession(PROBE, options, providers=[PROVIDERS["cuda"], PROVIDERS["cpu"]])
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            return f"{one_line(error)}; {CUDA_CURE}"
        finally:
            engine.set_default_logger_severity(WARNINGS)
    if session.get_providers()[0] == PROVIDERS["cuda"]:
        return None
    return f"{missing_library(Path(str(engine.__file__)).parent)}; {CUDA_CURE}"


def missing_library(package: Path) -> str:
    """Why ONNX Runtime's CUDA library does not load, in the loader's own words."""
    for library in sorted((package / "capi").glob("*onnxruntime_providers_cuda*")):
        try:
            ctypes.CDLL(str(library), mode=getattr(os, "RTLD_LAZY", 1))
        except OSError as error:
            return one_line(error)
    return "CUDA found no usable GPU"


def checked_model(bundle: Bundle, graph: GraphVariant) -> bytes | Path:
    """A graph as ONNX Runtime is given it, all files checked: its bytes, or the path of one with large weights inside.

    Raises:
        BundleError: a file is not the manifest's, or a tensor lies where the manifest names no file.
    """
    path = bundle.path(graph.file)
    allowed = {}
    for file in graph.external_data:
        beside = bundle.path(file)
        allowed[beside.relative_to(path.parent).as_posix()] = file.size
        if file.sha256 is not None:
            check_sha256(beside, file.sha256)
    if graph.file.size <= MAX_MODEL_BYTES:
        model = bundle.read(graph.file)
        check_external_data(model, str(path), allowed)
        return model
    if graph.file.sha256 is not None:
        check_sha256(path, graph.file.sha256)
    check_external_data(mapped(path), str(path), allowed)
    return path


def open_session(
    engine: Any,
    provider: str,
    threads: int | None,
    model: bytes | Path,
    path: Path,
    optimisation: Optimisation = ANEW,
) -> Any:
    """An ``InferenceSession`` that runs on ``provider``, or an error; external data lies beside ``path``."""
    if threads is not None and threads < 1:
        raise RequestError(f"threads is {threads}; it must be at least 1")
    options = engine.SessionOptions()
    options.log_severity_level = NOTHING  # what goes wrong is raised, and said once
    for name, value in SETTINGS.items():
        options.add_session_config_entry(name, value)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    # A memory pattern is a second pool as large as the first, made at the second run of the same shape: a VAE decoder
    # at 256 x 256 then holds 1.06 GB instead of 0.73, and no network that was tried ran faster with it.
    options.enable_mem_pattern = False
    if threads is not None:
        options.intra_op_num_threads = threads
    optimisation.apply(engine, options)
    providers = [PROVIDERS[provider]]
    if provider != "cpu":
        providers.append(PROVIDERS["cpu"])
    try:
        with stopped_by(lambda: options.set_load_cancellation_flag(True)):
            session = engine.InferenceSession(model, options, providers=providers)
    except Cancelled:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise BundleError(f"{path} is not a graph that this ONNX Runtime can load: {one_line(error)}") from error
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise EngineError(f"{path} was to run on {provider} but runs on {session.get_providers()[0]}")
    return session


def placement(session: Any) -> Counter[str]:
    """Nodes by execution provider; empty where ONNX Runtime is too old (below 1.24) to say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return Counter()
    nodes: Counter[str] = Counter()
    for subgraph in session.get_provider_graph_assignment_info():
        nodes[subgraph.ep_name] += len(subgraph.get_nodes())
    return nodes


def check_signature(path: Path, kind: str, actual: list[Any], expected: tuple[TensorSpec, ...]) -> None:
    """Compare a graph's inputs or outputs with the manifest's.

    Raises:
        BundleError: a name, a dtype, a rank or a fixed dimension differs.
    """
    found = {node.name: (DTYPES.get(node.type, node.type), tuple(node.shape)) for node in actual}
    wanted = {spec.name: (spec.dtype, spec.shape) for spec in expected}
    same = found.keys() == wanted.keys() and all(same_tensor(found[name], wanted[name]) for name in wanted)
    if not same:
        raise BundleError(f"{path} has {kind} {found} where the manifest says {wanted}; export it again")


def same_tensor(found: tuple[str, tuple[Any, ...]], wanted: tuple[str, tuple[int | str, ...]]) -> bool:
    """Equal dtype and rank, and equal sizes where both are numbers and names where the manifest has names."""
    (found_dtype, found_shape), (wanted_dtype, wanted_shape) = found, wanted
    if found_dtype != wanted_dtype or len(found_shape) != len(wanted_shape):
        return False
    return all(
        isinstance(a, int) == isinstance(b, int) and (a == b or isinstance(b, str))
        for a, b in zip(found_shape, wanted_shape, strict=True)
    )


def as_inputs(session: Session, values: Mapping[str, Array]) -> dict[str, Array]:
    """Cast each value to the dtype the graph declares."""
    return {name: np.asarray(value, session.inputs[name].dtype, order="C") for name, value in values.items()}
