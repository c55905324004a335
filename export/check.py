"""Checking a bundle without its checkpoint: hashes, parity, and whether the weights are those it was made with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from export.errors import ExportError
from export.graphs import GraphSpec
from export.parity import Parity, measure
from export.restore import restore
from runtime.bundle import CONFORMANCE, Bundle, open_bundle
from training.checkpoint import one_line


def check_bundle(folder: Path, report: Callable[[str], None] = print) -> None:
    """Repeat the parity of every graph, with the seed that the manifest records.

    The module is rebuilt from the bundle's own weights. That alone would agree with any weights, so the module is
    also held against what the checkpoint's module said when the bundle was made, which the conformance file keeps.

    Raises:
        BundleError: the bundle is missing or damaged.
        ExportError: a hash, the parity or the weights are not what the bundle says.
    """
    bundle = open_bundle(folder)
    for role, variants in bundle.graphs.items():
        for variant, graph in variants.items():
            spec = restore(bundle, role, variant)
            recorded = recorded_parity(bundle, role, variant)
            parity = measure(spec, bundle.path(graph.file), recorded.seed, recorded.accepted)
            check_conformance(bundle, spec, variant)
            accepted = f"; a bound of {recorded.accepted:g} was accepted" if recorded.accepted else ""
            report(f"{role} {variant}: SHA-256 and weights as shipped, {parity}{accepted}")
    report(f"{bundle.name}: everything is as the manifest says")


def recorded_parity(bundle: Bundle, role: str, variant: str) -> Parity:
    """The parity in the manifest.

    Raises:
        ExportError: it lacks a key, has an unknown one, or a seed or bound that is no number.
    """
    try:
        parity = Parity(**bundle.graph(role, variant).parity)
    except TypeError as error:
        raise ExportError(f"{bundle.folder}: parity of {role} {variant} is malformed ({error})") from error
    if not isinstance(parity.seed, int) or not isinstance(parity.accepted, int | float | None):
        raise ExportError(
            f"{bundle.folder}: parity of {role} {variant} has seed {parity.seed!r} and accepted {parity.accepted!r}"
        )
    return parity


def check_conformance(bundle: Bundle, spec: GraphSpec, variant: str) -> None:
    """Hold the rebuilt module against the answers in the conformance file.

    Raises:
        ExportError: the file is missing or malformed, has no case for this graph, or the module answers otherwise.
    """
    path = bundle.folder / CONFORMANCE
    graph = ("graph", spec.role, variant)
    try:
        with safe_open(path, framework="pt") as file:
            cases = [
                case
                for case in json.loads(file.metadata()["cases"])
                if (case["kind"], case.get("graph"), case.get("variant")) == graph
            ]
            answers = [answer(spec, case, file.get_tensor) for case in cases]
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ExportError(f"{path} is no conformance file of this bundle ({one_line(error)})") from error
    if not answers:
        raise ExportError(f"{path} has no case for {spec.role} {variant}")
    for difference, tolerance in answers:
        if not difference <= tolerance:  # which a NaN is not
            raise ExportError(
                f"{bundle.folder}: the weights of {spec.role} {variant} are not those the bundle was made with; "
                f"their answers differ by {difference:.3e} where {tolerance:.3e} is allowed"
            )


def answer(spec: GraphSpec, case: Mapping[str, Any], tensor: Callable[[str], Tensor]) -> tuple[float, float]:
    """The largest difference between a case's outputs and the module's, and what the case allows."""
    outputs = spec.reference({name: tensor(key) for name, key in case["inputs"].items()})
    differences = torch.cat([(outputs[name] - tensor(key)).abs().flatten() for name, key in case["outputs"].items()])
    return float(differences.max()), float(case["tolerance"])
