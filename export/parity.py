"""The promise: ONNX Runtime says what PyTorch says.

It is measured on every export, written into the manifest, and repeated by ``check``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from export.errors import ExportError
from export.graphs import GraphSpec
from training.checkpoint import one_line

Array = npt.NDArray[Any]
Question = tuple[dict[str, Array], dict[str, Array]]
"""Inputs by name, and PyTorch's answers by name."""

SEED = 0
# Two results that are equal to the last bit have no PSNR, and JSON has no infinity; float32 itself ends at about 150
# dB.
PSNR_CEILING = 200.0
ERRORS_ONLY = 3  # of ONNX Runtime's log severities


@dataclass(frozen=True)
class Parity:
    """How far a graph is from PyTorch, over all its outputs and sizes.

    Attributes:
        seed: of the inputs.
        batch_sizes: the batch size of each case.
        sizes: of each case, all dynamic dimensions and what else it chose, such as ``clip_skip``; empty in bundles that
            were made when the batch was the only one.
        max_abs_diff: the largest difference.
        max_abs_reference: the largest value that PyTorch gave.
        psnr_db: 20 log10(max_abs_reference / root mean square difference), at most ``PSNR_CEILING``.
        tolerance: the bound on max_abs_diff that the spec asks for.
        accepted: the looser bound that somebody asked for, or None.
    """

    seed: int
    batch_sizes: list[int]
    max_abs_diff: float
    max_abs_reference: float
    psnr_db: float
    tolerance: float
    accepted: float | None = None
    sizes: list[dict[str, int]] = field(default_factory=list)

    @property
    def bound(self) -> float:
        return max(self.tolerance, self.accepted or 0.0)

    def __str__(self) -> str:
        return f"max |difference| {self.max_abs_diff:.2e} (bound {self.bound:.2e}), {self.psnr_db:.0f} dB"


def measure(
    spec: GraphSpec,
    path: Path,
    seed: int = SEED,
    accepted: float | None = None,
    cases: Sequence[Question] | None = None,
    option: str | None = None,
) -> Parity:
    """Run a graph in ONNX Runtime beside its module in PyTorch, on the same inputs.

    Args:
        spec: the graph; its ``parity_sizes`` say at which sizes.
        path: the ONNX file.
        seed: of the inputs.
        accepted: a bound to accept where it is looser than the spec's own.
        cases: what ``questions`` gave for this seed, where PyTorch has been asked before.
        option: what to put before a number to have a looser bound accepted, for the error; None where nothing does.

    Raises:
        ExportError: the difference is above the bound, a result has the wrong shape or is not finite, or the file
            does not run.
    """
    cases = questions(spec, seed) if cases is None else cases
    run = load_graph(path)
    differences, references = [], []
    for sizes, (inputs, answers) in zip(spec.parity_sizes, cases, strict=True):
        outputs = run(inputs)
        for name, reference in answers.items():
            if outputs[name].shape != reference.shape:
                raise ExportError(
                    f"{spec.role}: {name} has shape {outputs[name].shape} at {dict(sizes)}, not {reference.shape}"
                )
            differences.append((outputs[name] - reference).astype(np.float64).ravel())
            references.append(np.abs(reference).max())
    parity = summarise(spec, seed, np.concatenate(differences), float(max(references)), accepted)
    # Written so that a NaN fails, whatever it is compared with.
    if not parity.max_abs_diff <= parity.bound:
        remedy = f"; to accept that, add {option}{parity.max_abs_diff * 1.1:.1e}" if option else ""
        raise ExportError(
            f"{spec.role} differs from PyTorch by {parity.max_abs_diff:.3e} where {parity.bound:.3e} is allowed"
            f" ({parity.psnr_db:.0f} dB){remedy}"
        )
    return parity


def questions(spec: GraphSpec, seed: int) -> list[Question]:
    """Inputs and PyTorch's answers to them for each of ``parity_sizes``.

    Raises:
        ExportError: an answer is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for sizes in spec.parity_sizes:
        inputs = spec.draw(sizes, generator)
        answers = {name: tensor.numpy() for name, tensor in spec.reference(inputs).items()}
        for name, answer in answers.items():
            if not np.isfinite(answer).all():
                raise ExportError(
                    f"{spec.role}: {name} is not finite in PyTorch itself; the weights are damaged or training diverged"
                )
        cases.append(({name: tensor.numpy() for name, tensor in inputs.items()}, answers))
    return cases


def summarise(
    spec: GraphSpec, seed: int, differences: npt.NDArray[np.float64], max_abs_reference: float, accepted: float | None
) -> Parity:
    root_mean_square = math.sqrt(float(np.mean(differences**2)))
    psnr = PSNR_CEILING
    if root_mean_square > 0 and max_abs_reference > 0:
        psnr = min(psnr, 20 * math.log10(max_abs_reference / root_mean_square))
    return Parity(
        seed=seed,
        batch_sizes=[sizes["batch"] for sizes in spec.parity_sizes],
        max_abs_diff=float(np.abs(differences).max()),
        max_abs_reference=max_abs_reference,
        psnr_db=psnr,
        tolerance=spec.tolerance * max_abs_reference + spec.tolerance,
        accepted=accepted,
        sizes=[dict(sizes) for sizes in spec.parity_sizes],
    )


def load_graph(path: Path) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Open an ONNX file on the CPU, with every optimisation that its users will have.

    Returns:
        A function from the inputs by name to the outputs by name.

    Raises:
        ExportError: ONNX Runtime does not take the file; and the function raises it when its inputs are not taken.
    """
    names, run = open_session(str(path), path.name, session_options())
    return lambda inputs: dict(zip(names, run(inputs), strict=True))


def session_options() -> onnxruntime.SessionOptions:
    """ONNX Runtime's defaults, but that it speaks of errors only."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    return options


def open_session(
    graph: str | bytes, name: str, options: onnxruntime.SessionOptions
) -> tuple[list[str], Callable[[Mapping[str, Array]], list[Array]]]:
    """Open a graph on the CPU.

    Args:
        graph: its path, or the model itself.
        name: what messages call it.
        options: of the session.

    Returns:
        The names of its outputs, and a function from the inputs by name to the outputs in order.

    Raises:
        ExportError: ONNX Runtime does not take the graph; and the function raises it when its inputs are not taken.
    """
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise ExportError(f"{name} does not load in ONNX Runtime: {one_line(error)}") from error

    def run(inputs: Mapping[str, Array]) -> list[Array]:
        try:
            outputs: list[Array] = session.run(None, dict(inputs))
        except Exception as error:  # as above
            raise ExportError(f"{name} fails in ONNX Runtime: {one_line(error)}") from error
        return outputs

    return [output.name for output in session.get_outputs()], run
