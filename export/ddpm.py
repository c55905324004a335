"""Exporting the small class-conditional DDPM: its checkpoint in, a bundle out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.bundle import (
    check_name,
    default_plans,
    describe_schedule,
    exporter_versions,
    write_manifest,
)
from export.conformance import Array, Conformance, to_uint8
from export.errors import ExportError
from export.graph_writer import GraphWriter
from export.graphs import class_conditional_unet
from export.staging import replacing
from export.unchanged import check_unchanged, fingerprints
from runtime.bundle import CONFORMANCE
from runtime.noise import image_seed, noise_generator
from runtime.plan import NoiseSchedule, Plan
from training.ddpm.checkpoint import load_model
from training.ddpm.config import TrainConfig
from training.ddpm.model import ClassConditionalUNet
from training.ddpm.sampler import guided, sample_ddim
from training.paths import file_sha256

FAMILY = "class-conditional-ddpm"
DEFAULT_SAMPLER, DEFAULT_STEPS, DEFAULT_GUIDANCE = "ddim", 50, 3.0
PICTURE_STEPS = 10
PICTURE_SEED = 0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read: the network, how it was trained, and what the manifest says of the file and of
    the classes."""

    network: ClassConditionalUNet
    config: TrainConfig
    provenance: dict[str, Any]
    class_names: list[str]


def open_checkpoint(path: Path, licence: str) -> Checkpoint:
    """Read a checkpoint and its hash.

    Raises:
        CheckpointError: it is missing, damaged, or not of this kind.
        ExportError: it was changed in between, so that the hash may be of other weights.
    """
    before = fingerprints(path)
    network, config, metadata = load_model(path)
    sha256 = file_sha256(path)
    check_unchanged(before)
    training: dict[str, Any] = {"config": dataclasses.asdict(config), "dataset_sha256": metadata.get("dataset_sha256")}
    training |= {key: int(metadata[key]) for key in ("step", "total_steps") if metadata.get(key, "").isdecimal()}
    provenance = {
        "source": path.name,
        "sha256": sha256,
        "licence": licence,
        "training": training,
        "exporter": exporter_versions(),
    }
    return Checkpoint(network, config, provenance, class_names(path, metadata, config.model.num_classes))


def class_names(path: Path, metadata: Mapping[str, str], num_classes: int) -> list[str]:
    """The names that the data set gives its classes; their numbers where it gives none.

    Raises:
        ExportError: they are not as many different names as there are classes.
    """
    try:
        names = json.loads(metadata.get("class_names", "[]"))
    except (ValueError, RecursionError):
        names = None
    if names == []:
        return [str(label) for label in range(num_classes)]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ExportError(f"{path}: class_names in its metadata are no list of names")
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise ExportError(f"{path} has {num_classes} classes; its metadata names {len(set(names))} different ones")
    return names


def noise_schedule(config: TrainConfig) -> NoiseSchedule:
    """The schedule of training, and how this family is sampled: trailing timesteps, down to the clean image."""
    return NoiseSchedule(
        alphas_cumprod=config.schedule.alphas_cumprod.numpy(),
        prediction_type="epsilon",
        final_alpha_cumprod=1.0,
        timestep_spacing="trailing",
        steps_offset=0,
    )


def default_steps(schedule: NoiseSchedule) -> int:
    """The default number of steps: 50, or all of a schedule that has fewer."""
    return min(DEFAULT_STEPS, schedule.num_train_timesteps)


def describe(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The manifest without graphs and plans."""
    config, model = checkpoint.config, checkpoint.config.model
    schedule = noise_schedule(config)
    return {
        "name": name,
        "family": FAMILY,
        "provenance": checkpoint.provenance,
        "noise_schedule": describe_schedule(schedule, dataclasses.asdict(config.schedule)),
        "pixels": {"channels": model.in_channels, "height": model.image_size, "width": model.image_size},
        "latents": None,
        "unet_input": [{"name": "sample", "channels": model.in_channels}],
        "conditioning": {
            "kind": "class",
            "num_classes": model.num_classes,
            "null_class": model.num_classes,
            "names": checkpoint.class_names,
        },
        "defaults": {
            "sampler": DEFAULT_SAMPLER,
            "num_inference_steps": default_steps(schedule),
            "guidance_scale": DEFAULT_GUIDANCE,
            "width": model.image_size,
            "height": model.image_size,
        },
    }


def reference_picture(checkpoint: Checkpoint, plan: Plan, class_labels: list[int], seed: int) -> tuple[Array, Array]:
    """A picture by the reference sampler in PyTorch, from the bundle's noise.

    Of the plan it takes the timesteps alone: the sampler's formulas are its own.

    Returns:
        The sample, float32 (B, C, H, W), and the image, uint8 (B, H, W, C).
    """
    model = checkpoint.config.model
    shape = (model.in_channels, model.image_size, model.image_size)
    draws = [noise_generator("philox", image_seed(seed, k)).draw(shape) for k in range(len(class_labels))]
    predict = guided(checkpoint.network, torch.tensor(class_labels), model.num_classes, DEFAULT_GUIDANCE)
    timesteps = [int(timestep) for timestep in plan.timesteps]
    *_, sample = sample_ddim(predict, checkpoint.config.schedule, torch.from_numpy(np.stack(draws)), timesteps)
    return sample.numpy(), to_uint8(sample)


def add_cases(conformance: Conformance, checkpoint: Checkpoint, plans: dict[str, Plan]) -> None:
    """The cases beside those of the graphs: generators, a plan, a picture of two labels."""
    model = checkpoint.config.model
    name = f"{DEFAULT_SAMPLER}-{min(PICTURE_STEPS, max(len(plan) for plan in plans.values()))}"
    class_labels = [min(7, model.num_classes - 1), 0]
    conformance.add_bits()
    conformance.add_noise((model.in_channels, model.image_size, model.image_size))
    conformance.add_plan(name, plans[name])
    sample, image = reference_picture(checkpoint, plans[name], class_labels, PICTURE_SEED)
    conformance.add_picture(name, DEFAULT_GUIDANCE, PICTURE_SEED, sample, image, class_labels=class_labels)


def export_ddpm(
    path: Path,
    target: Path,
    licence: str = "Apache-2.0",
    accepted: float | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Make a bundle of a checkpoint of ``python -m training ddpm``.

    Args:
        path: the checkpoint, ``model.safetensors``.
        target: the bundle's folder, whose name becomes the bundle's. A bundle that is there is replaced in one step
            at the very end.
        licence: of the weights.
        accepted: a bound on the difference from PyTorch to accept where it is looser than the usual one; the manifest
            tells.
        report: is called with a line for people now and then.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or not of this kind.
        ExportError: the graph differs from PyTorch by more than the bound, or the target cannot be written. Nothing
            is left behind.
    """
    name = target.resolve().name
    check_name(name)
    checkpoint = open_checkpoint(path, licence)
    schedule = noise_schedule(checkpoint.config)
    plans = default_plans(schedule, DEFAULT_SAMPLER, default_steps(schedule), eta=0.0)
    with replacing(target) as folder:
        spec = class_conditional_unet(checkpoint.network, checkpoint.config.schedule.num_train_timesteps)
        conformance = Conformance()
        add_cases(conformance, checkpoint, plans)
        bounds = {} if accepted is None else {spec.role: accepted}
        writer = GraphWriter(folder, conformance, bounds, "--accept-parity ", report)
        graphs = {spec.role: writer.write(spec)}
        (folder / CONFORMANCE).write_bytes(conformance.to_bytes())
        tables = {name: plan.to_json() for name, plan in plans.items()}
        write_manifest(folder, {**describe(checkpoint, name), "graphs": graphs, "plans": tables})
    report(f"{target}: written; draw from it with: python -m runtime --model {target} -o picture.png")
