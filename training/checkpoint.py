"""Checkpoints: safetensors files that carry their own configuration, written aside and moved into place.

Nothing is pickled, so a checkpoint from a stranger can be opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from training import atomic
from training.errors import CheckpointError
from training.paths import exists

__all__ = [
    "CheckpointError",
    "Kind",
    "load_optimizer_tensors",
    "one_line",
    "open_model",
    "optimizer_tensors",
    "read",
    "write",
]


Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    Attributes:
        format: stands in the metadata of each of its files, and is what tells them from other people's.
        noun: what messages call it.
        command: makes one; ``{folder}`` in it is where.
    """

    format: str
    noun: str
    command: str


def write(path: Path, kind: Kind, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a checkpoint so that at every moment ``path`` is either the old file or the new one, whole.

    Raises:
        OutputError: it cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic.write(path, with_metadata_in_order(save(stored, {"format": kind.format, **metadata})))


def with_metadata_in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted: the library writes them in random order, never the same bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def read(path: Path, kind: Kind) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a checkpoint's tensors and metadata.

    Raises:
        CheckpointError: not there, not safetensors, or of another kind.
    """
    if not (exists(path) and path.is_file()):
        raise CheckpointError(f"{path} does not exist; make one with: {kind.command.format(folder=path.parent)}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("format") != kind.format:
                raise CheckpointError(
                    f"{path} is not a {kind.noun} of this project (its format is {metadata.get('format')!r})"
                )
            # Copies: a tensor that lies in the file would change, or end the process, when another program rewrites it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, metadata
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({one_line(error)})") from error


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a model made on the meta device its tensors, in float32.

    So a checkpoint whose configuration claims more than its file holds is refused before memory is taken for it.

    Raises:
        RuntimeError: names or shapes differ.
    """
    model.load_state_dict(tensors, assign=True)
    model.float()


def open_model(
    path: Path, kind: Kind, from_json: Callable[[str], Config], build: Callable[[Config], Model]
) -> tuple[Model, Config, dict[str, str]]:
    """Open a model in evaluation mode, with the configuration it was trained with and all metadata.

    Args:
        path: the checkpoint.
        kind: that it must be of.
        from_json: what reads its configuration.
        build: what makes the model of it.

    Raises:
        CheckpointError: as ``read``, or the tensors do not fit the configuration.
    """
    tensors, metadata = read(path, kind)
    try:
        config = from_json(metadata["config"])
        with torch.device("meta"):
            model = build(config)
        fill(model, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold the model that its configuration describes: {one_line(error)}"
        ) from error
    return model.eval(), config, metadata


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimizer's moments, and step counts where it has them, by parameter name."""
    states = optimizer.state_dict()["state"]
    return {
        f"optimizer.{key}.{names[i]}": torch.as_tensor(value)
        for i, state in states.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    names: list[str],
    tensors: dict[str, Tensor],
    moments: Sequence[str] = ("exp_avg", "exp_avg_sq"),
    counts: Sequence[str] = ("step",),
) -> None:
    """Put back what ``optimizer_tensors`` took out, in each parameter's own memory layout.

    Args:
        optimizer: gets it.
        names: of its parameters.
        tensors: by name.
        moments, counts: what there is for each parameter, of its shape and as numbers; Adam's unless told otherwise.

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: a tensor has another shape.
    """
    state = {}
    for i, (name, parameter) in enumerate(zip(names, optimizer.param_groups[0]["params"], strict=True)):
        state[i] = {key: torch.empty_like(parameter).copy_(tensors[f"optimizer.{key}.{name}"]) for key in moments}
        state[i] |= {key: tensors[f"optimizer.{key}.{name}"] for key in counts}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def one_line(error: Exception) -> str:
    """The message of an error of some library, short enough for a line of ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__
