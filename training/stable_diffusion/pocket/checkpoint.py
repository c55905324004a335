"""The files of a pocket run.

``STAGE-state.safetensors`` is what a stage resumes from; ``vae.safetensors`` and ``text.safetensors`` are what the
first two stages hand to the third; ``unet.safetensors``, in a run that begins with a model, is what its UNet begins
with; ``model.safetensors`` is the model: a single file in the published layout, as all
tools read it, whose metadata holds its sizes and the words it knows. The judge has a state and a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import checkpoint, configuration
from training.checkpoint import CheckpointError, Kind, one_line
from training.stable_diffusion.checkpoint.load import load_checkpoint
from training.stable_diffusion.checkpoint.original_names import original_names
from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.pocket import tokens
from training.stable_diffusion.pocket.captions import known_words
from training.stable_diffusion.pocket.config import TrainConfig
from training.stable_diffusion.pocket.denoiser import TABLE, Denoiser, Texts
from training.stable_diffusion.vae import AutoencoderKL

COMMAND = "python -m training stable-diffusion --preset pocket --out {folder}"
STATE = Kind("diffusion-anywhere/stable-diffusion-state/1", "state of a Stable Diffusion run", COMMAND)
VAE = Kind("diffusion-anywhere/stable-diffusion-vae/1", "VAE of a Stable Diffusion run", COMMAND)
TEXT = Kind("diffusion-anywhere/stable-diffusion-text/1", "text encoder of a Stable Diffusion run", COMMAND)
UNET = Kind("diffusion-anywhere/stable-diffusion-unet/1", "UNet that a Stable Diffusion run begins with", COMMAND)
JUDGE = Kind("diffusion-anywhere/pocket-judge/1", "judge of the pocket model", f"{COMMAND} --stage judge")
CONFIG_KEY, KNOWN_WORDS_KEY = "stable_diffusion_config", "known_words"
MODEL = Kind("diffusion-anywhere/stable-diffusion/1", "Stable Diffusion checkpoint", COMMAND)

STATE_NAME = "{stage}-state.safetensors"
VAE_NAME, TEXT_NAME, UNET_NAME = "vae.safetensors", "text.safetensors", "unet.safetensors"
MODEL_NAME = "model.safetensors"
JUDGE_NAME = "judge.safetensors"
SHIPPED_JUDGE = Path(__file__).with_name(JUDGE_NAME)


def write_vae(path: Path, vae: AutoencoderKL, metadata: dict[str, str]) -> None:
    checkpoint.write(path, VAE, dict(vae.state_dict()), metadata)


def load_vae(path: Path, config: TrainConfig) -> AutoencoderKL:
    """Open what the first stage has made.

    Raises:
        CheckpointError: it is missing, damaged, or of a run with another configuration.
    """
    with torch.device("meta"):
        vae = AutoencoderKL(config.model.vae)
    load_part(path, VAE, "VAE", lambda whole: whole.model.vae, config, lambda tensors: checkpoint.fill(vae, tensors))
    return vae.eval()


def write_text_encoder(path: Path, texts: Texts, metadata: dict[str, str]) -> None:
    checkpoint.write(path, TEXT, dict(texts.text_encoder.state_dict()), metadata)


def load_text_encoder(path: Path, texts: Texts, config: TrainConfig) -> None:
    """Give a network the text encoder that has learned to read.

    Raises:
        CheckpointError: it is missing, damaged, or of a run with another configuration.
    """
    take = texts.text_encoder.load_state_dict
    load_part(path, TEXT, "text encoder", lambda whole: whole.model.text_encoder, config, take)


def load_unet(path: Path, denoiser: Denoiser, config: TrainConfig) -> None:
    """Give a network the UNet that the run begins with.

    Raises:
        CheckpointError: it is damaged, or of a run with another configuration.
    """
    load_part(path, UNET, "UNet", lambda whole: whole.model.unet, config, denoiser.unet.load_state_dict)


def begin_with(path: Path, config: TrainConfig, folder: Path) -> None:
    """Lay down a model's networks where a run finds those of its earlier stages.

    Args:
        path: the model, of an earlier run or ``python -m export checkpoint``.
        config: of the run that is to begin, whose networks have the same sizes.
        folder: of that run.

    Raises:
        CheckpointError: the model is missing, damaged, or of other sizes.
        OutputError: the folder cannot be written to.
    """
    _, stated = checkpoint.read(path, MODEL)
    try:
        theirs = configuration.from_json(StableDiffusionConfig, stated[CONFIG_KEY])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} does not state its own sizes: {one_line(error)}") from error
    if theirs != config.model:
        raise CheckpointError(f"{path} has other sizes ({configuration.difference(theirs, config.model)})")
    model = load_checkpoint(path, config=config.model)
    texts = Texts(config.model)
    state = model.text_encoder.state_dict()
    state[TABLE] = state[TABLE][tokens.known_token_ids()]
    texts.text_encoder.load_state_dict(state)
    metadata = {"config": config.to_json()}
    write_text_encoder(folder / TEXT_NAME, texts, metadata)
    checkpoint.write(folder / UNET_NAME, UNET, dict(model.unet.state_dict()), metadata)
    write_vae(folder / VAE_NAME, model.vae, metadata)


def load_part(
    path: Path,
    kind: Kind,
    name: str,
    sizes: Callable[[TrainConfig], Any],
    config: TrainConfig,
    take: Callable[[dict[str, Tensor]], object],
) -> None:
    """Read what an earlier stage has made, if it is of the same sizes.

    Args:
        path, kind, name: the file, and what it has to hold.
        sizes: which part of a configuration it depends on.
        config: of this run.
        take: what puts the tensors into a network.

    Raises:
        CheckpointError: it is missing, damaged, or of a run with another configuration.
    """
    tensors, metadata = checkpoint.read(path, kind)
    try:
        theirs, ours = sizes(TrainConfig.from_json(metadata["config"])), sizes(config)
        if theirs != ours:
            difference = configuration.difference(theirs, ours)
            raise CheckpointError(f"{path} has other sizes ({difference}); choose another --out")
        take(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold the {name} of a run: {one_line(error)}") from error


def write_model(
    path: Path, denoiser: Denoiser, vae: AutoencoderKL, config: StableDiffusionConfig, metadata: dict[str, str]
) -> None:
    """Write the model in the published single-file layout; to ``metadata`` are added its sizes and its words."""
    networks = denoiser.weights() | {"vae": vae.state_dict()}
    state = {f"{name}.{key}": tensor for name, part in networks.items() for key, tensor in part.items()}
    names = original_names(config, state)
    facts = {CONFIG_KEY: configuration.to_json(config), KNOWN_WORDS_KEY: json.dumps(known_words())}
    checkpoint.write(path, MODEL, {names[key]: tensor for key, tensor in state.items()}, {**metadata, **facts})
