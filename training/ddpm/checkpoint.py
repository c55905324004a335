"""Checkpoints of the DDPM, in two kinds of files with one format: ``model.safetensors`` (the averaged weights, what
gets exported) and ``state.safetensors`` (weights, averages and optimizer, what a run resumes from).
"""

from __future__ import annotations

from pathlib import Path

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
    return checkpoint.open_model(path, DDPM, TrainConfig.from_json, lambda config: ClassConditionalUNet(config.model))
