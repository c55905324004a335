"""From a ``GraphSpec`` to its place in a bundle: file, parity with PyTorch, entry in the manifest, conformance."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export.bundle import describe_file
from export.conformance import HOST_MARGIN, Array, Conformance, question
from export.engines import ENGINES, chosen_engines, write_variant
from export.graphs import GraphSpec
from export.half import write_half
from export.half_weights import store_half
from export.parity import SEED, Parity, Question, measure, questions
from export.rounded import measure_half
from export.trace import OPSET, TracedGraph, trace

ANY = "any"  # provider, which portable graphs are for


@dataclass(frozen=True)
class GraphWriter:
    """Writes the graphs of one bundle.

    Attributes:
        folder: where to.
        conformance: is given a case for each graph.
        accepted: by role, a bound on the difference from PyTorch to accept where it is looser than the usual one.
        option: what to put before a number to have that accepted, for errors, with ``{role}`` where the role belongs;
            None where nothing does.
        report: is called with a line for people at each stage.
        half_weights: store weights in float16 and compute in float32; they are rounded already.
        engines: what variants are made for beside the portable ones (``export.engines``); None is the CPU where weights
            lie beside the graph.
    """

    folder: Path
    conformance: Conformance
    accepted: Mapping[str, float]
    option: str | None
    report: Callable[[str], None]
    half_weights: bool = False
    engines: Sequence[str] | None = None

    def write(self, spec: GraphSpec, samples: Sequence[Mapping[str, Array]] = ()) -> dict[str, dict[str, Any]]:
        """Write a graph and hold it against PyTorch.

        PyTorch says its part first and lets go of the weights: what it and ONNX Runtime need is never needed at once.

        Args:
            spec: the graph; its module has no weights afterwards.
            samples: inputs by which to look for values that fp16 could not hold (``export.stress``). With them the
                fp16 variant is written, once the fp32 one has been held against PyTorch, and takes its place.

        Returns:
            The variants' entries in the manifest by name, the portable one first.

        Raises:
            ExportError: the graph cannot be traced, or differs from PyTorch by more than its bound.
            OSError: it cannot be written.
        """
        begun = time.monotonic()
        self.report(f"{spec.role}: tracing …")
        traced = trace(spec, self.folder / f"{spec.role}-fp32.onnx")
        if self.half_weights:
            traced = store_half(traced)
        written = time.monotonic()
        cases, example = questions(spec, SEED), question(spec)
        spec.module.to_empty(device="meta")
        gc.collect()
        option = self.option and self.option.format(role=spec.role)
        parity = measure(spec, traced.path, accepted=self.accepted.get(spec.role), cases=cases, option=option)
        seconds = f"traced in {written - begun:.0f} s, compared in {time.monotonic() - written:.0f} s"
        self.report(f"{spec.role} fp32: {megabytes(traced)}, {parity}; {seconds}")
        if samples:
            return self.write_half(spec, traced, samples, cases, example)
        self.conformance.add_graph(spec.role, "fp32", example, HOST_MARGIN * parity.bound)
        variants = {"fp32": describe_graph(traced, parity)}
        return variants | self.write_variants(spec, traced, "fp32", cases, example)

    def write_half(
        self,
        spec: GraphSpec,
        traced: TracedGraph,
        samples: Sequence[Mapping[str, Array]],
        cases: Sequence[Question],
        example: Question,
    ) -> dict[str, dict[str, Any]]:
        """Put the fp16 variant in the place of the fp32 one; returns as ``write``."""
        begun = time.monotonic()
        half = write_half(traced.path, self.folder / f"{spec.role}-fp16.onnx", samples)
        for path in traced.files:
            path.unlink()
        traced = replace(traced, path=half.path, external_data=half.external_data)
        parity = measure_half(spec, half.path, cases=cases)
        seconds = f"made and compared in {time.monotonic() - begun:.0f} s"
        self.report(f"{spec.role} fp16: {megabytes(traced)}, {parity}, {half}; {seconds}")
        self.conformance.add_graph(spec.role, "fp16", example, HOST_MARGIN * parity.max_abs_diff)
        variants = {"fp16": describe_graph(traced, parity)}
        return variants | self.write_variants(spec, traced, "fp16", cases, example)

    def write_variants(
        self, spec: GraphSpec, traced: TracedGraph, precision: str, cases: Sequence[Question], example: Question
    ) -> dict[str, dict[str, Any]]:
        """Write a graph's variants for engines and hold each against PyTorch, as the portable one was."""
        variants = {}
        for name in chosen_engines(self.engines, traced, precision):
            begun, variant = time.monotonic(), f"{precision}-{name}"
            made = write_variant(traced, name)
            if made is None:
                continue
            if precision == "fp16":
                parity = measure_half(spec, made.path, cases=cases, expanded=not ENGINES[name].runs_here)
                margin = parity.max_abs_diff
            else:
                parity = measure(spec, made.path, accepted=self.accepted.get(spec.role), cases=cases)
                margin = parity.bound
            self.report(f"{spec.role} {variant}: {parity}; made and compared in {time.monotonic() - begun:.0f} s")
            self.conformance.add_graph(spec.role, variant, example, HOST_MARGIN * margin)
            variants[variant] = describe_graph(made, parity, ENGINES[name].provider)
        return variants


def megabytes(traced: TracedGraph) -> str:
    return f"{sum(path.stat().st_size for path in traced.files) / 1e6:.1f} MB"


def describe_graph(traced: TracedGraph, parity: Parity, provider: str = ANY) -> dict[str, Any]:
    """A graph's entry in the manifest."""
    graph, *external = (describe_file(path) for path in traced.files)
    return {
        **graph,
        "external_data": external,
        "inputs": traced.inputs,
        "outputs": traced.outputs,
        "providers": [provider],
        "opset": OPSET,
        "parity": asdict(parity),
        "initializers": traced.initializers,
    }
