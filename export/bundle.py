"""Writing a bundle (``docs/bundle.md``): what files it holds, ready-made plans, and the manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxscript
import torch

from export.errors import ExportError
from runtime.bundle import FORMAT_VERSION, MANIFEST, open_bundle
from runtime.errors import BundleError
from runtime.plan import NoiseSchedule, Plan, compile_plan
from training.paths import file_sha256

# At these counts a host finds a plan ready, so that it needs no sampler code.
PLAN_STEPS = (4, 6, 8, 10, 15, 20, 30, 50)


def describe_file(path: Path) -> dict[str, Any]:
    return {"file": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)}


def default_plans(schedule: NoiseSchedule, sampler: str, default_steps: int, **options: Any) -> dict[str, Plan]:
    """A sampler at each of ``PLAN_STEPS`` that the schedule has room for, and at the default count."""
    room = schedule.num_train_timesteps - schedule.steps_offset
    counts = {count for count in PLAN_STEPS if count < room} | {default_steps}
    return {f"{sampler}-{count}": compile_plan(schedule, sampler, count, **options) for count in sorted(counts)}


def describe_schedule(schedule: NoiseSchedule, betas: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's ``noise_schedule``; ``betas`` says how the numbers came about."""
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "alphas_cumprod": schedule.alphas_cumprod.tolist(),
        "prediction_type": schedule.prediction_type,
        "final_alpha_cumprod": schedule.final_alpha_cumprod,
        "timestep_spacing": schedule.timestep_spacing,
        "steps_offset": schedule.steps_offset,
        "betas": dict(betas),
    }


def exporter_versions() -> dict[str, str]:
    """Versions of what shapes the bytes of a bundle: with the same ones, the same checkpoint gives the same files."""
    return {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def check_name(name: str) -> None:
    """See that a folder's name can be a bundle's.

    Raises:
        ExportError: it has other characters than the format allows.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ExportError(
            f"{name!r} cannot be a bundle's name; use letters, digits, '.', '_' and '-', and no '.' at the start"
        )


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, last of a bundle's files, and read the bundle back as strictly as any host would.

    Raises:
        ExportError: the strict reader refuses what was written.
        OSError: it cannot be written.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=2, allow_nan=False)
    # A list of numbers on one line each: a plan reads as a table.
    text = re.sub(
        r"\[[^][{}\"]*\]", lambda numbers: " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]"), text
    )
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    try:
        open_bundle(folder)
    except BundleError as error:
        raise ExportError(f"the manifest came out wrong: {error}") from error
