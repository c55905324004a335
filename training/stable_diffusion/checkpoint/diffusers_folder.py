"""Reads folders in diffusers' layout: a subfolder for each network, with its configuration and its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from training.errors import CheckpointError
from training.stable_diffusion.checkpoint import spellings
from training.stable_diffusion.checkpoint.contents import Contents
from training.stable_diffusion.checkpoint.diffusers_config import read_configs, vae_config
from training.stable_diffusion.checkpoint.networks import without_weights
from training.stable_diffusion.checkpoint.settings import Settings
from training.stable_diffusion.checkpoint.tensor_files import read_tensors
from training.stable_diffusion.config import StableDiffusionConfig

# What a network's weights may be called, the best first: an index lists the shards of weights in several files.
DIFFUSERS_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)
TRANSFORMERS_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "pytorch_model.bin",
    "pytorch_model.fp16.bin",
)
WEIGHTS = {"text_encoder": TRANSFORMERS_WEIGHTS, "unet": DIFFUSERS_WEIGHTS, "vae": DIFFUSERS_WEIGHTS}


def read_folder(folder: Path) -> Contents:
    """Read a whole model.

    Raises:
        CheckpointError: a file is missing or damaged, or it is another model.
    """
    config = read_configs(folder)
    tensors: dict[str, Tensor] = {}
    files: list[Path] = []
    for network in WEIGHTS:
        weights = weight_files(folder / network, network)
        tensors |= read_network(weights, network)
        files += weights
    return Contents("diffusers-folder", config, own_names(config), tensors, tuple(files))


def read_vae_folder(folder: Path, config: StableDiffusionConfig) -> Contents:
    """Read only the VAE: of a folder that holds nothing else, or of a whole model's.

    Raises:
        CheckpointError: a file is missing or damaged, or the UNet does not work on this VAE's latents.
    """
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        config = replace(config, vae=vae_config(Settings.read(folder / "config.json")))
    except ValueError as error:
        raise CheckpointError(f"{folder} does not fit the rest of the model: {error}") from error
    names = {key: name for key, name in own_names(config).items() if key.startswith("vae.")}
    weights = weight_files(folder, "vae")
    return Contents("diffusers-folder", config, names, read_network(weights, "vae"), tuple(weights))


def own_names(config: StableDiffusionConfig) -> dict[str, str]:
    """The names of our state dicts are diffusers'."""
    return {key: key for key in without_weights(config).state_dict()}


def read_network(files: list[Path], network: str) -> dict[str, Tensor]:
    """The tensors of one network's files under our names."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = {f"{network}.{name}": tensor for name, tensor in read_tensors(file).items()}
        for name, tensor in spellings.respell(file, found, spellings.DIFFUSERS).items():
            if name in tensors:
                raise CheckpointError(f"{file} holds {name}, which another shard holds too")
            tensors[name] = tensor
    return tensors


def weight_files(folder: Path, network: str) -> list[Path]:
    """The files with a network's weights.

    Raises:
        CheckpointError: there are none, or the index is damaged or points outside the folder.
    """
    found = next((folder / name for name in WEIGHTS[network] if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} holds no weights; looked for {', '.join(WEIGHTS[network])}")
    return shards(found) if found.suffix == ".json" else [found]


def shards(index: Path) -> list[Path]:
    """The files that an index lists, which lie beside it.

    Raises:
        CheckpointError: no index, or a name in it is more than a file name.
    """
    weight_map = Settings.read(index).values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} lists no shards: weight_map is missing or empty")
    names = {str(name) for name in weight_map.values()}
    for name in sorted(names):
        if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
            raise CheckpointError(f"{index} names {name!r}; a shard must be a file in the same folder")
    return [index.parent / name for name in sorted(names)]
