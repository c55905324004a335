"""Checking a bundle without its checkpoint: hashes, parity, and whether the weights are those it was made with."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from export.conformance import HOST_MARGIN, PLAN_ARRAYS, PLAN_TOLERANCE, Array
from export.errors import ExportError
from export.graphs import GraphSpec
from export.parity import Parity, measure, questions
from export.restore import noise_schedule, restore
from export.rounded import measure_half
from runtime.bundle import CONFORMANCE, MANIFEST, Bundle, open_bundle, precision_of
from runtime.plan import compile_plan
from training.checkpoint import one_line

HALF = "fp16"
# Of what a host may differ by in fp16, which is HOST_MARGIN times what was measured with every value rounded. Here the
# weights alone are, which is less than all of that; so twice what was measured.
WEIGHTS_SHARE = 2 / HOST_MARGIN


def check_bundle(folder: Path, report: Callable[[str], None] = print) -> None:
    """Repeat the parity of every graph, with the seed that the manifest records, and compute the tables anew.

    The module is rebuilt from the bundle's own weights. That alone would agree with any weights, so the module is
    also held against what the checkpoint's module said when the bundle was made, which the conformance file keeps.

    Raises:
        BundleError: the bundle is missing or damaged.
        ExportError: a hash, the parity, the weights, the noise schedule or a plan are not what the bundle says, or it
            is a folder that others exported.
    """
    bundle = open_bundle(folder)
    if not (bundle.folder / MANIFEST).exists():
        raise ExportError(
            f"{folder} was exported by others, who recorded no parity that could be repeated; "
            "export its checkpoint with: python -m export sd15"
        )
    check_tables(bundle)
    for role, variants in bundle.graphs.items():
        for variant in variants:
            report(check_graph(bundle, role, variant))
    report(f"{bundle.name}: noise schedule and {len(bundle.plans)} plans as computed anew")


def check_graph(bundle: Bundle, role: str, variant: str) -> str:
    """Check one graph, and say in a line how it went; its weights are in memory no longer than that takes."""
    recorded = recorded_parity(bundle, role, variant)
    spec = restore(bundle, role, variant)
    check_conformance(bundle, spec, variant)
    cases = questions(spec, recorded.seed)
    spec.module.to_empty(device="meta")  # what PyTorch and ONNX Runtime need is never needed at once
    gc.collect()
    path = bundle.path(bundle.graph(role, variant).file)
    here = {"any", "CPUExecutionProvider"} & {*bundle.graph(role, variant).providers}
    parity = (
        measure_half(spec, path, recorded.seed, cases, expanded=not here)
        if precision_of(variant) == HALF
        else measure(spec, path, recorded.seed, recorded.accepted, cases)
    )
    accepted = f"; a bound of {recorded.accepted:g} was accepted" if recorded.accepted else ""
    return f"{role} {variant}: SHA-256 and weights as shipped, {parity}{accepted}"


def check_tables(bundle: Bundle) -> None:
    """Compute the noise schedule from the training configuration, and the plans from the samplers that they name.

    Raises:
        ExportError: a number in the manifest is another, or a plan names a sampler or options that there are not.
    """
    mine, theirs = noise_schedule(bundle), bundle.noise_schedule
    if not same_numbers(theirs.alphas_cumprod, mine.alphas_cumprod):
        raise ExportError(f"{bundle.folder}: alphas_cumprod are not those of the training configuration's schedule")
    for name in ("prediction_type", "final_alpha_cumprod", "timestep_spacing", "steps_offset"):
        if getattr(mine, name) != getattr(theirs, name):
            raise ExportError(
                f"{bundle.folder}: {name} is {getattr(theirs, name)!r}; the training configuration says "
                f"{getattr(mine, name)!r}"
            )
    check_plans(bundle)


def check_plans(bundle: Bundle) -> None:
    """Compute the plans from the samplers that they name; raises as ``check_tables``."""
    for name, plan in bundle.plans.items():
        try:
            mine = compile_plan(bundle.noise_schedule, plan.sampler, plan.num_inference_steps, **plan.options)
        except (TypeError, ValueError) as error:
            raise ExportError(f"{bundle.folder}: plan {name} cannot be computed anew ({one_line(error)})") from error
        if not all(same_numbers(getattr(plan, key), getattr(mine, key)) for key in PLAN_ARRAYS):
            raise ExportError(f"{bundle.folder}: plan {name} is not what its sampler and options give")


def same_numbers(one: Array, other: Array) -> bool:
    """Equal but for the last digits of float64, which are each machine's own."""
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=PLAN_TOLERANCE)


def recorded_parity(bundle: Bundle, role: str, variant: str) -> Parity:
    """The parity in the manifest.

    Raises:
        ExportError: it lacks a key, has an unknown one, or has a seed or bound that is none.
    """
    try:
        parity = Parity(**bundle.graph(role, variant).parity)
    except TypeError as error:
        raise ExportError(f"{bundle.folder}: parity of {role} {variant} is malformed ({error})") from error
    seed, accepted = parity.seed, parity.accepted
    if not (isinstance(seed, int) and 0 <= seed < 2**63 and isinstance(accepted, int | float | None)):
        raise ExportError(f"{bundle.folder}: parity of {role} {variant} has seed {seed!r} and accepted {accepted!r}")
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
    share = WEIGHTS_SHARE if precision_of(variant) == HALF else 1.0
    for difference, stated in answers:
        tolerance = share * stated
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
