"""Reads single files in the original layout (CompVis/latent-diffusion), as the web has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from training.errors import CheckpointError
from training.stable_diffusion.checkpoint import spellings
from training.stable_diffusion.checkpoint.contents import MODELS_BY_TEXT_WIDTH, Contents
from training.stable_diffusion.checkpoint.networks import without_weights
from training.stable_diffusion.checkpoint.original_names import PREFIXES, ema_name, original_names
from training.stable_diffusion.checkpoint.tensor_files import read_tensors
from training.stable_diffusion.config import StableDiffusionConfig

# What a file is instead, if a tensor's name begins so.
OTHERS = (
    ("conditioner.embedders.", "a Stable Diffusion XL checkpoint"),
    ("cond_stage_model.model.", "a Stable Diffusion 2 checkpoint"),
    ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("model.diffusion_model.double_blocks.", "a Flux checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    ("control_model.", "a ControlNet"),
    ("lora_", "a LoRA, which changes a checkpoint but is none"),
)


def read_single_file(path: Path, config: StableDiffusionConfig, use_ema: bool) -> Contents:
    """Read a single file.

    Args:
        path: a file that ``read_tensors`` can read.
        config: sizes of the networks, which such a file does not state. Only the number of the UNet's input channels is
            taken from the file, so that inpainting models are known.
        use_ema: take the averaged weights of the UNet, where the file has both.

    Raises:
        CheckpointError: as ``read_tensors``; another model; or no averaged weights where they were asked for.
    """
    tensors = spellings.respell(path, read_tensors(path), spellings.ORIGINAL)
    names = original_names(config, without_weights(config).state_dict())
    refuse_others(path, config, names, tensors)
    names, tensors = choose_average(path, names, tensors, use_ema)
    config = with_in_channels(path, config, tensors.get(names["unet.conv_in.weight"]))
    return Contents("single-file", config, names, tensors, (path,))


def refuse_others(path: Path, config: StableDiffusionConfig, names: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Say what the file is instead, where that is plain.

    Raises:
        CheckpointError: it is another model, or no model.
    """
    for start, what in OTHERS:
        if any(name.startswith(start) for name in tensors):
            raise CheckpointError(f"{path} is {what}; only Stable Diffusion 1.x checkpoints are supported")
    looking_at_text = [name for key, name in names.items() if key.endswith("attn2.to_k.weight") and name in tensors]
    widths = {tensors[name].shape[1] for name in looking_at_text if tensors[name].ndim == 2}
    for width in sorted((widths & MODELS_BY_TEXT_WIDTH.keys()) - {config.unet.cross_attention_dim}):
        what = f"a {MODELS_BY_TEXT_WIDTH[width]} checkpoint"
        raise CheckpointError(f"{path} is {what}; only Stable Diffusion 1.x checkpoints are supported")


def choose_average(
    path: Path, names: dict[str, str], tensors: dict[str, Tensor], use_ema: bool
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Leave out one of the two sets of UNet weights that a file may have: those trained last, or their average.

    Raises:
        CheckpointError: the set that was asked for is not there, but the other one is.
    """
    last = {key: name for key, name in names.items() if key.startswith("unet.")}
    average = {key: ema_name(name) for key, name in last.items()}
    has_last, has_average = (not tensors.keys().isdisjoint(unet.values()) for unet in (last, average))
    if use_ema and not has_average:
        raise CheckpointError(f"{path} holds no averaged (EMA) weights beside the others; leave out use_ema")
    if has_average and not has_last and not use_ema:
        raise CheckpointError(f"{path} holds averaged (EMA) weights only; ask for them with use_ema")
    unused = PREFIXES["unet."] if use_ema else "model_ema."
    chosen = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    return names | average if use_ema else names, chosen


def with_in_channels(path: Path, config: StableDiffusionConfig, conv_in: Tensor | None) -> StableDiffusionConfig:
    """The configuration with as many input channels as the UNet's first convolution has.

    Raises:
        CheckpointError: these are eight, as in InstructPix2Pix, or another number that fits no model.
    """
    if conv_in is None or conv_in.ndim != 4:
        return config
    in_channels = conv_in.shape[1]
    if in_channels == 2 * config.vae.latent_channels:
        raise CheckpointError(f"{path} is an InstructPix2Pix checkpoint ({in_channels} input channels); not supported")
    try:
        return replace(config, unet=replace(config.unet, in_channels=in_channels))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_vae_file(path: Path, config: StableDiffusionConfig) -> Contents:
    """Read a VAE that is a file of its own, in the original layout or in diffusers', or part of a whole model's.

    Raises:
        CheckpointError: as ``read_tensors``.
    """
    found = only_vae(read_tensors(path))
    keys = [key for key in without_weights(config).state_dict() if key.startswith("vae.")]
    if any(".down_blocks." in name for name in found):
        names, prefix, proper = {key: key for key in keys}, "vae.", spellings.DIFFUSERS
    else:
        names, prefix, proper = original_names(config, keys), PREFIXES["vae."], spellings.ORIGINAL
    tensors = spellings.respell(path, {prefix + name: tensor for name, tensor in found.items()}, proper)
    return Contents("single-file", config, names, tensors, (path,))


def only_vae(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a VAE by their names within it; of a whole model's, whose VAE has a name, only those."""
    starts = ("first_stage_model.", "vae.")
    bare = {name.removeprefix("state_dict."): tensor for name, tensor in tensors.items()}
    named = {name: tensor for name, tensor in bare.items() if name.startswith(starts)}
    return {name.removeprefix(starts[0]).removeprefix(starts[1]): t for name, t in (named or bare).items()}
