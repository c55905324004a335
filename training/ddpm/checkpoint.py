"""Checkpoints of the DDPM, in two kinds of files with one format: ``model.safetensors`` (the averaged weights, what
gets exported) and ``state.safetensors`` (weights, averages and optimizer, what a run resumes from).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training import checkpoint
from training.checkpoint import CheckpointError
from training.ddpm.config import TrainConfig
from training.ddpm.model import ClassConditionalUNet

__all__ = ["DDPM", "CheckpointError", "load_model", "read", "write"]

DDPM = checkpoint.Kind(
    format="diffusion-anywhere/ddpm/1",
    noun="DDPM checkpoint",
    command="python -m training ddpm --dataset mnist --out {folder}",
)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one file of a run; see ``training.checkpoint.write``."""
    checkpoint.write(path, DDPM, tensors, metadata)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read one file of a run; see ``training.checkpoint.read``."""
    return checkpoint.read(path, DDPM)


def load_model(path: Path) -> tuple[ClassConditionalUNet, TrainConfig, dict[str, str]]:
    """Open ``model.safetensors``: the network in evaluation mode, the configuration it was trained with, and all
    metadata.

    Raises:
        CheckpointError: as ``read``, or the tensors do not fit the configuration.
    """
    tensors, metadata = read(path)
    try:
        config = TrainConfig.from_json(metadata["config"])
        with torch.device("meta"):
            model = ClassConditionalUNet(config.model)
        checkpoint.fill(model, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold the model that its configuration describes: {checkpoint.one_line(error)}"
        ) from error
    return model.eval(), config, metadata
