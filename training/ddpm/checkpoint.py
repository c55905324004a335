"""Checkpoints: safetensors files that carry their own configuration, written aside and moved into place.

Nothing is pickled, so a checkpoint from a stranger can be opened. Two kinds share the format: ``model.safetensors`` (the averaged
weights, what gets exported) and ``state.safetensors`` (weights, averages and optimizer, what a run resumes from).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from training.ddpm.config import TrainConfig
from training.ddpm.model import ClassConditionalUNet

FORMAT = "diffusion-anywhere/ddpm/1"


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or of another kind; the message says which and what to do."""


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a checkpoint so that at every moment ``path`` is either the old file or the new one, whole.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": FORMAT, **metadata})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
            aside.write(data)
            aside.flush()
            os.fsync(aside.fileno())
        os.replace(aside.name, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error.strerror})") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a checkpoint's tensors and metadata.

    Raises:
        CheckpointError: not there, not safetensors, or not written by this project.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; make one with: python -m training ddpm --dataset mnist --out {path.parent}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path} is not a DDPM checkpoint of this project (format {metadata.get('format')!r})")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error})") from error


def load_model(path: Path) -> tuple[ClassConditionalUNet, TrainConfig, dict[str, str]]:
    """Open ``model.safetensors``: the network in evaluation mode, the configuration it was trained with, and all metadata.

    Raises:
        CheckpointError: as ``read``, or the tensors do not fit the configuration.
    """
    tensors, metadata = read(path)
    try:
        config = TrainConfig.from_json(metadata["config"])
        model = ClassConditionalUNet(config.model)
        model.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not hold the model that its configuration describes: {reason}") from error
    return model.eval(), config, metadata


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter name."""
    states = optimizer.state_dict()["state"]
    return {f"optimizer.{key}.{names[i]}": torch.as_tensor(value) for i, state in states.items() for key, value in state.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took out."""
    state: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(names))}
    for full, tensor in tensors.items():
        if full.startswith("optimizer."):
            _, key, name = full.split(".", 2)
            state[names.index(name)][key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
