"""Adds what LoRA files have learned to the weights of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.errors import CheckpointError
from training.paths import file_sha256
from training.stable_diffusion.checkpoint.load import StableDiffusion
from training.stable_diffusion.lora.factors import difference
from training.stable_diffusion.lora.names import Layer, file_names, find_layers
from training.stable_diffusion.lora.read import Change, read_lora


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to merge.

    Attributes:
        path: a ``.safetensors``, ``.pt``, ``.bin`` or ``.ckpt`` file.
        scale: how strongly: 1 is as it was trained, 0 not at all, below 0 the opposite.
    """

    path: Path
    scale: float = 1.0


def apply_loras(model: StableDiffusion, loras: Sequence[LoraFile]) -> list[dict[str, str | float]]:
    """Merge LoRAs into a model's text encoder and UNet: W + sum of scale · (alpha / rank) · (up @ down).

    Sums are taken in float64 and rounded once, so that neither the order of the files nor their number costs anything.
    Weights that no file changes stay where they lie, in the checkpoint's file, which is never written to.

    Args:
        model: as ``load_checkpoint`` opens it.
        loras: files and strengths; one file may come more than once.

    Returns:
        For the bundle's provenance, one entry a file: its name as ``source``, its ``sha256`` and the ``scale``.

    Raises:
        CheckpointError: a scale is not finite; a file cannot be read, is none, or does not fit the model; or a merged
            weight is not finite. The model is then as it was.
    """
    layers = find_layers({"text_encoder": model.text_encoder, "unet": model.unet})
    names = file_names(model.config, layers)
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    changes: dict[str, list[Change]] = {}
    for lora in loras:
        if not math.isfinite(lora.scale):
            raise CheckpointError(f"the scale of {lora.path} is {lora.scale}; it must be a finite number, such as 0.8")
        found = read_lora(lora.path, names, shapes, model.config.unet.cross_attention_dim)
        for name, change in found.items():
            changes.setdefault(name, []).append(Change(change.factors, lora.scale * change.scale))
    merged = {name: merge(name, layers[name], found) for name, found in changes.items()}
    provenance: list[dict[str, str | float]] = [
        {"source": lora.path.name, "sha256": file_sha256(lora.path), "scale": lora.scale} for lora in loras
    ]
    for name, weight in merged.items():
        layers[name].weight = nn.Parameter(weight, requires_grad=False)
    return provenance


def merge(name: str, layer: Layer, changes: Sequence[Change]) -> Tensor:
    """A layer's weight, float32, with changes added.

    Raises:
        CheckpointError: it is not finite.
    """
    total = layer.weight.to(torch.float64, copy=True)
    for change in changes:
        total += change.scale * difference(change.factors, tuple(total.shape))
    weight = total.float()
    if not weight.isfinite().all():
        raise CheckpointError(f"merging makes {name}.weight overflow; choose smaller scales")
    return weight
