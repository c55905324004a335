"""Reads a LoRA file: which layers it changes, and by what. All of it is checked before it is handed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.errors import CheckpointError
from training.stable_diffusion.checkpoint.networks import description, summary
from training.stable_diffusion.checkpoint.tensor_files import read_tensors
from training.stable_diffusion.lora.adapter_settings import AdapterSettings, read_adapter_settings
from training.stable_diffusion.lora.factors import WHOLES, Factors, Shape, expected_shapes, fits, rank
from training.stable_diffusion.lora.others import refuse_others, shown

# What follows a layer's name in a file says what the tensor is: in the kohya scripts' files, in diffusers' two layouts
# and its own for CLIP's linear layers, in PEFT's (also with the adapter's name, which PEFT drops when it saves), and in
# those of LyCORIS. ``scale``, in files for stable-diffusion.cpp, stands for alpha / rank.
ENDINGS = {
    **{f".lora_{part}.weight": part for part in ("down", "mid", "up")},
    **{f"{lora}.{part}.weight": part for lora in ("_lora", ".lora", ".lora_linear_layer") for part in ("down", "up")},
    **{f".lora_A{adapter}.weight": "down" for adapter in ("", ".default")},
    **{f".lora_B{adapter}.weight": "up" for adapter in ("", ".default")},
    **{f".{part}": part for whole in WHOLES for part in whole if part.startswith(("hada_", "lokr_"))},
    ".alpha": "alpha",
    ".scale": "scale",
}
NUMBERS = ("alpha", "scale")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Change:
    """What a file adds to one layer's weight: ``scale`` times the difference that its factors make."""

    factors: Factors
    scale: float


def read_lora(path: Path, names: Mapping[str, str], shapes: Mapping[str, Shape], text_width: int) -> dict[str, Change]:
    """Read a LoRA file.

    Args:
        path: a file that ``read_tensors`` can read.
        names: every name that a file may have for a layer -> our name.
        shapes: our name of a layer -> the shape of its weight.
        text_width: of the text embeddings that the UNet looks at.

    Returns:
        Our names of the layers that it changes -> by what.

    Raises:
        CheckpointError: it cannot be read, is none, or is for another model; a tensor belongs to no layer, does not fit
            its own, or lacks its counterpart; a number is not finite: one message for all tensors of a file.
    """
    tensors = read_tensors(path)
    refuse_others(path, tensors, text_width)
    layers = by_layer(path, tensors, names)
    problems: dict[str, list[str]] = {}
    for layer, parts in layers.items():
        kind, what = problem(parts, shapes[layer])
        if kind:
            problems.setdefault(kind, []).append(f"{layer}: {what}")
    if problems:
        raise CheckpointError(f"{path} cannot be merged: {', '.join(summary(*found) for found in problems.items())}")
    settings = read_adapter_settings(path)
    return {layer: change(layer, parts, settings) for layer, parts in layers.items()}


def by_layer(path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Our name of a layer -> what the file has for it.

    Raises:
        CheckpointError: a tensor belongs to no layer of the model, or two are the same part of one.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        known = ((names.get(name.removesuffix(end)), part) for end, part in ENDINGS.items() if name.endswith(end))
        layer, part = next(((layer, part) for layer, part in known if layer), (None, ""))
        if layer is None:
            unknown.append(shown(name))
        elif part in layers.setdefault(layer, {}):
            raise CheckpointError(f"{path} holds {part} of {layer} twice, under different names")
        else:
            layers[layer][part] = tensor
    if unknown:
        raise CheckpointError(
            f"{path} does not fit this model: {summary('unknown', unknown)}; a LoRA's tensors must each belong to a "
            "layer of the UNet or the text encoder"
        )
    return layers


def problem(parts: Mapping[str, Tensor], weight: Shape) -> tuple[str, str]:
    """The kind of problem that a layer's tensors have, and what it is; two empty strings where they have none."""
    factors = {part: tensor for part, tensor in parts.items() if part not in NUMBERS}
    if factors.keys() not in WHOLES:
        return "incomplete", f"only {' and '.join(sorted(factors) or parts)}"
    for part, tensor in parts.items():
        if not (is_number(tensor) if part in NUMBERS else is_factor(tensor)):
            return "misshapen", f"{part}, {description(tensor)}"
    if rank(factors) == 0:
        return "of rank 0", " and ".join(f"{part} {list(tensor.shape)}" for part, tensor in factors.items())
    for part, shape in expected_shapes(factors, weight).items():
        if not fits(factors[part], shape):
            return "misshapen", f"{part}, {description(factors[part])}, for a weight of {list(weight)}"
    for part, tensor in parts.items():
        if not torch.isfinite(tensor).all():
            return "not finite", part
    return "", ""


def is_number(tensor: Tensor) -> bool:
    return tensor.numel() == 1 and not tensor.is_complex() and tensor.device.type == "cpu"


def is_factor(tensor: Tensor) -> bool:
    """Whether it holds as many numbers as it says: a pickle can spread a single one over any shape."""
    plain = tensor.dtype in DTYPES and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return plain and tensor.ndim > 1 and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def change(layer: str, parts: Mapping[str, Tensor], settings: Mapping[str, AdapterSettings]) -> Change:
    """The change of a layer whose tensors have no problem.

    Its scale is alpha / rank, where the file gives an alpha: 0 counts as none, as in the kohya scripts.
    """
    factors = {part: tensor for part, tensor in parts.items() if part not in NUMBERS}
    r = rank(factors)
    alpha = float(parts["alpha"]) if "alpha" in parts else 0.0
    if "scale" in parts:
        return Change(factors, float(parts["scale"]))
    if r is None:  # LoKr of two full matrices
        return Change(factors, 1.0)
    if alpha:
        return Change(factors, alpha / r)
    network, _, name = layer.partition(".")
    return Change(factors, settings[network].scale(name, r))
