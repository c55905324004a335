"""How LoRA files name the layers that they change.

The names are made from those of our own layers, and looked up. The other way would be guesswork: a file that writes
``down_blocks_0_attentions_0_proj_in`` does not say which of its underscores are part of a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from training.stable_diffusion.checkpoint.original_names import PREFIXES, original_names
from training.stable_diffusion.config import StableDiffusionConfig

Layer = nn.Linear | nn.Conv2d

# Before a layer's name with its dots: diffusers, or nothing where a file is for one network alone; PEFT puts its own
# wrappers before either.
UNET_PREFIXES = ("unet.", "", "base_model.model.unet.", "base_model.model.")
TEXT_ENCODER_PREFIXES = (
    "text_encoder.",
    "",
    "base_model.model.text_encoder.",
    "base_model.model.",
    "text_encoders.clip_l.transformer.",  # ComfyUI
)
# Before a layer's name with underscores for dots, as the kohya scripts write it; the "1" in files for two encoders.
UNET_UNDERSCORED = ("lora_unet_",)
TEXT_ENCODER_UNDERSCORED = ("lora_te_", "lora_te1_")

# diffusers' first layout names all attentions alike, CLIP's after the UNet's.
CLIP_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def find_layers(networks: Mapping[str, nn.Module]) -> dict[str, Layer]:
    """The layers that a LoRA can change, by network and name: ``unet.conv_in`` and so on."""
    return {
        f"{network}.{name}": module
        for network, modules in networks.items()
        for name, module in modules.named_modules()
        if isinstance(module, Layer)
    }


def file_names(config: StableDiffusionConfig, layers: Mapping[str, Layer]) -> dict[str, str]:
    """Every name that a file may have for a layer of the UNet or text encoder -> our name.

    What follows a name in a file says what the tensor is, and is no part of it.
    """
    names: dict[str, str] = {}
    originals = original_names(config, layers)
    for layer in layers:
        network, _, name = layer.partition(".")
        if network == "unet":
            original = originals[layer].removeprefix(PREFIXES["unet."])
            names |= dict.fromkeys(unet_names(name, original), layer)
        else:
            names |= dict.fromkeys(text_encoder_names(name), layer)
    return names


def unet_names(name: str, original: str) -> Iterator[str]:
    """Names of one of the UNet's layers, which is ``original`` in single files."""
    head, attention, projection = name.rpartition(".to_")
    old = f"{head}.processor{attention}{projection.removesuffix('.0')}" if attention else name
    for spelling in {name, old}:
        yield from (prefix + spelling for prefix in UNET_PREFIXES)
    yield f"diffusion_model.{original}"  # ComfyUI
    for spelling in (name, original):  # stable-diffusion.cpp and ComfyUI take the original names too
        yield from (prefix + spelling.replace(".", "_") for prefix in UNET_UNDERSCORED)


def text_encoder_names(name: str) -> Iterator[str]:
    """Names of one of the text encoder's layers."""
    head, _, projection = name.rpartition(".")
    old = f"{head}.{CLIP_PROJECTIONS.get(projection, projection)}"
    for spelling in {name, old}:
        for short in (spelling, spelling.removeprefix("text_model.")):  # transformers 5 has dropped the inner name
            yield from (prefix + short for prefix in TEXT_ENCODER_PREFIXES)
    yield from (prefix + name.replace(".", "_") for prefix in TEXT_ENCODER_UNDERSCORED)
