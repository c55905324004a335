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

__all__ = ["DDPM", "CheckpointError", "load_model", "load_optimizer_tensors", "optimizer_tensors", "read", "write"]

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


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter name."""
    states = optimizer.state_dict()["state"]
    return {
        f"optimizer.{key}.{names[i]}": torch.as_tensor(value)
        for i, state in states.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took out, in each parameter's own memory layout.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: a tensor has another shape.
    """
    state = {}
    for i, (name, parameter) in enumerate(zip(names, optimizer.param_groups[0]["params"], strict=True)):
        moments = {key: tensors[f"optimizer.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
        state[i] = {key: torch.empty_like(parameter).copy_(moment) for key, moment in moments.items()}
        state[i]["step"] = tensors[f"optimizer.step.{name}"]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
