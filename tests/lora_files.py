"""Writes LoRA files in the layouts that the web has, by rules of their own, and fuses them by diffusers."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint_files import original_layout
from diffusers import StableDiffusionPipeline
from random_weights import POCKET, random_state
from reference_models import part, reference_text_encoder, reference_unet
from safetensors.torch import save_file
from torch import Tensor

from training.stable_diffusion.checkpoint import StableDiffusion
from training.stable_diffusion.checkpoint.original_names import PREFIXES, original_names

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to one layer: alpha / rank · (up @ down)."""

    down: Tensor  # (r, in) or (r, in, h, w)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    alpha: float | None = None

    @property
    def difference(self) -> Tensor:
        """By the convolution of two convolutions' kernels, or by the product of two matrices: float64."""
        scale = 1.0 if not self.alpha else self.alpha / len(self.down)
        up, down = self.up.double(), self.down.double()
        if down.ndim == 2:
            return scale * (up @ down)
        return scale * torch.nn.functional.conv2d(down.transpose(0, 1), up).transpose(0, 1)


def random(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def modules(model: StableDiffusion) -> dict[str, torch.nn.Module]:
    """All linear layers and convolutions of the text encoder and the UNet, by name."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {
        f"{network}.{name}": module
        for network in ("text_encoder", "unet")
        for name, module in getattr(model, network).named_modules()
        if isinstance(module, kinds)
    }


def layers(model: StableDiffusion, pattern: str = "") -> dict[str, Tensor]:
    """The weights of the layers whose names hold a pattern."""
    return {name: module.weight for name, module in modules(model).items() if re.search(pattern, name)}


@contextmanager
def restored(model: StableDiffusion) -> Iterator[StableDiffusion]:
    """A model to merge into, which has its own weights again afterwards: sooner done than a second one opened."""
    before = layers(model)
    try:
        yield model
    finally:
        for name, module in modules(model).items():
            module.weight = before[name]


def random_lora(
    weights: Tensors, rank: int | None = None, alpha: float | bool = True, seed: str = ""
) -> dict[str, LowRank]:
    """A change of each weight about as large as it; ranks and alphas differ from layer to layer, unless given."""
    changes = {}
    for i, (name, weight) in enumerate(weights.items()):
        r = rank or 1 + i % 5
        down = random(f"{seed}down.{name}", r, *weight.shape[1:]) / math.sqrt(weight[0].numel())
        up = random(f"{seed}up.{name}", weight.shape[0], r, *[1] * (weight.ndim - 2)) / math.sqrt(r)
        changes[name] = LowRank(down, up, 0.5 + i % 3 if alpha is True else alpha or None)
    return changes


def kohya(name: str) -> tuple[str, str, str]:
    """The name of the down factor, the up factor and alpha, as the kohya scripts write them."""
    network, _, layer = name.partition(".")
    stem = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[network] + layer.replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def kohya_for_two_encoders(name: str) -> tuple[str, str, str]:
    down, up, alpha = (n.replace("lora_te_", "lora_te1_") for n in kohya(name))
    return down, up, alpha


def kohya_original(name: str) -> tuple[str, str, str]:
    """As stable-diffusion.cpp takes them: the UNet's blocks numbered as in single files."""
    if name.startswith("text_encoder."):
        return kohya(name)
    stem = "lora_unet_" + original(name).replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def comfy(name: str) -> tuple[str, str, str]:
    """As ComfyUI saves what it extracts from two checkpoints."""
    stem = f"diffusion_model.{original(name)}"
    if name.startswith("text_encoder."):
        stem = name.replace("text_encoder.", "text_encoders.clip_l.transformer.")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def original(name: str) -> str:
    return original_names(POCKET, [name])[name].removeprefix(PREFIXES["unet."])


def diffusers_old(name: str) -> tuple[str, str, str]:
    """diffusers' first layout, of attention processors."""
    stem = re.sub(r"(attn[12])\.(to_[qkv]|to_out)(\.0)?$", r"\1.processor.\2_lora", name)
    for projection, old in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out")):
        stem = stem.replace(f"self_attn.{projection}_proj", f"self_attn.{old}_lora")
    layer = stem.removesuffix("_lora")
    if stem == layer:
        stem += ".lora_linear_layer" if ".mlp." in stem else ".lora"
    return f"{stem}.down.weight", f"{stem}.up.weight", f"{layer}.alpha"


def diffusers_new(name: str) -> tuple[str, str, str]:
    """diffusers' second layout, of layers."""
    stem = name + (".lora_linear_layer" if name.startswith("text_encoder.") else ".lora")
    return f"{stem}.down.weight", f"{stem}.up.weight", f"{name}.alpha"


def peft(name: str) -> tuple[str, str, str]:
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight", f"{name}.alpha"


def peft_unsaved(name: str) -> tuple[str, str, str]:
    """As the state dict of a model with an adapter has them."""
    stem = f"base_model.model.{name}"
    return f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight", f"{stem}.alpha"


LAYOUTS: dict[str, Callable[[str], tuple[str, str, str]]] = {
    "kohya": kohya,
    "kohya-te1": kohya_for_two_encoders,
    "kohya-original": kohya_original,
    "comfy": comfy,
    "diffusers-old": diffusers_old,
    "diffusers-new": diffusers_new,
    "peft": peft,
    "peft-unsaved": peft_unsaved,
}


def lora_tensors(changes: dict[str, LowRank], layout: str = "kohya") -> Tensors:
    tensors: Tensors = {}
    for name, change in changes.items():
        down, up, alpha = LAYOUTS[layout](name)
        tensors |= {down: change.down, up: change.up}
        if change.alpha is not None:
            tensors[alpha] = torch.tensor(change.alpha)
    return tensors


def write_lora(path: Path, changes: dict[str, LowRank], layout: str = "kohya") -> Path:
    save_file({name: tensor.contiguous() for name, tensor in lora_tensors(changes, layout).items()}, path)
    return path


def diffusers_pipeline() -> Any:
    """diffusers' pipeline with the pocket-sized weights, as far as LoRAs concern it."""
    state = {name: tensor.clone() for name, tensor in random_state(POCKET).items()}
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=reference_text_encoder(POCKET.text_encoder, part(state, "text_encoder")),
        tokenizer=None,
        unet=reference_unet(POCKET.unet, part(state, "unet")),
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def fused_by_diffusers(files: Iterable[Path], scales: Sequence[float]) -> Tensors:
    """The weights that diffusers fuses, by our names."""
    pipeline = diffusers_pipeline()
    adapters = []
    for path in files:
        adapters.append(f"a{len(adapters)}")
        pipeline.load_lora_weights(path, adapter_name=adapters[-1])
    pipeline.set_adapters(adapters, list(scales))
    pipeline.fuse_lora(adapter_names=adapters)
    pipeline.unload_lora_weights()
    return weights_of(pipeline)


def weights_of(pipeline: Any) -> Tensors:
    """diffusers' weights by our names."""
    text = pipeline.text_encoder.state_dict()
    inner = "" if any(name.startswith("text_model.") for name in text) else "text_model."
    return {f"text_encoder.{inner}{name}": tensor for name, tensor in text.items()} | {
        f"unet.{name}": tensor for name, tensor in pipeline.unet.state_dict().items()
    }


def checkpoint_file(path: Path) -> Path:
    """The pocket-sized weights as a single file."""
    save_file(original_layout(POCKET, random_state(POCKET)), path)
    return path


def assert_equal_weights(mine: Tensors, reference: Tensors, bound: float = 1e-6) -> None:
    """Each weight of the reference equals ours, but for a share of its largest value."""
    for name, expected in reference.items():
        difference = (mine[name].double() - expected.double()).abs().max() / expected.abs().max()
        assert difference <= bound, f"{name} differs by {difference:.3g} of its largest value"
