"""The files of a pocket run.

``STAGE-state.safetensors`` is what a stage resumes from; ``vae.safetensors`` and ``text.safetensors`` are what the
first two stages hand to the third; ``model.safetensors`` is the model: a single file in the published layout, as all
tools read it, whose metadata holds its sizes and the words it knows. The judge has a state and a file of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from training import checkpoint, configuration
from training.checkpoint import CheckpointError, Kind, one_line
from training.stable_diffusion.checkpoint.original_names import original_names
from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.pocket.captions import known_words
from training.stable_diffusion.pocket.config import TrainConfig
from training.stable_diffusion.pocket.denoiser import Denoiser, Texts
from training.stable_diffusion.vae import AutoencoderKL

COMMAND = "python -m training stable-diffusion --preset pocket --out {folder}"
STATE = Kind("diffusion-anywhere/stable-diffusion-state/1", "state of a Stable Diffusion run", COMMAND)
VAE = Kind("diffusion-anywhere/stable-diffusion-vae/1", "VAE of a Stable Diffusion run", COMMAND)
TEXT = Kind("diffusion-anywhere/stable-diffusion-text/1", "text encoder of a Stable Diffusion run", COMMAND)
JUDGE = Kind("diffusion-anywhere/pocket-judge/1", "judge of the pocket model", f"{COMMAND} --stage judge")
CONFIG_KEY, KNOWN_WORDS_KEY = "stable_diffusion_config", "known_words"
MODEL = Kind("diffusion-anywhere/stable-diffusion/1", "Stable Diffusion checkpoint", COMMAND)

STATE_NAME = "{stage}-state.safetensors"
VAE_NAME, TEXT_NAME, MODEL_NAME = "vae.safetensors", "text.safetensors", "model.safetensors"
JUDGE_NAME = "judge.safetensors"


def write_vae(path: Path, vae: AutoencoderKL, metadata: dict[str, str]) -> None:
    checkpoint.write(path, VAE, dict(vae.state_dict()), metadata)


def load_vae(path: Path, config: TrainConfig) -> AutoencoderKL:
    """Open what the first stage has made.

    Raises:
        CheckpointError: it is missing, damaged, or of a run with another configuration.
    """
    tensors, metadata = checkpoint.read(path, VAE)
    try:
        theirs = TrainConfig.from_json(metadata["config"]).model.vae
        if theirs != config.model.vae:
            difference = configuration.difference(theirs, config.model.vae)
            raise CheckpointError(f"{path} has other sizes ({difference}); choose another --out")
        with torch.device("meta"):
            vae = AutoencoderKL(config.model.vae)
        checkpoint.fill(vae, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold the VAE of a run: {one_line(error)}") from error
    return vae.eval()


def write_text_encoder(path: Path, texts: Texts, metadata: dict[str, str]) -> None:
    checkpoint.write(path, TEXT, dict(texts.text_encoder.state_dict()), metadata)


def load_text_encoder(path: Path, texts: Texts, config: TrainConfig) -> None:
    """Give a network the text encoder that has learned to read.

    Raises:
        CheckpointError: it is missing, damaged, or of a run with another configuration.
    """
    tensors, metadata = checkpoint.read(path, TEXT)
    try:
        theirs = TrainConfig.from_json(metadata["config"]).model.text_encoder
        if theirs != config.model.text_encoder:
            difference = configuration.difference(theirs, config.model.text_encoder)
            raise CheckpointError(f"{path} has other sizes ({difference}); choose another --out")
        texts.text_encoder.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold the text encoder of a run: {one_line(error)}") from error


def write_model(
    path: Path, denoiser: Denoiser, vae: AutoencoderKL, config: StableDiffusionConfig, metadata: dict[str, str]
) -> None:
    """Write the model in the published single-file layout; to ``metadata`` are added its sizes and its words."""
    networks = denoiser.weights() | {"vae": vae.state_dict()}
    state = {f"{name}.{key}": tensor for name, part in networks.items() for key, tensor in part.items()}
    names = original_names(config, state)
    facts = {CONFIG_KEY: configuration.to_json(config), KNOWN_WORDS_KEY: json.dumps(known_words())}
    checkpoint.write(path, MODEL, {names[key]: tensor for key, tensor in state.items()}, {**metadata, **facts})
