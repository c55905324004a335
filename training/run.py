"""The files of a training run: a state to resume from, and in the end a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from training import configuration
from training.errors import CheckpointError, OutputError


@dataclass(frozen=True)
class Run:
    """Where and how a run keeps its files.

    Attributes:
        folder: gets ``state.safetensors``, ``model.safetensors`` and TensorBoard's events.
        resume: continue from ``state.safetensors`` if there is one.
        save_every: seconds between two saves of the state.
        progress: draw a progress bar.
    """

    folder: Path
    resume: bool = False
    save_every: float = 180.0
    progress: bool = True

    @property
    def state_file(self) -> Path:
        return self.folder / "state.safetensors"

    @property
    def model_file(self) -> Path:
        return self.folder / "model.safetensors"

    def refuse_to_overwrite(self) -> None:
        """Unless it is to be resumed.

        Raises:
            OutputError: there is a run already.
        """
        if not self.resume and (self.state_file.exists() or self.model_file.exists()):
            raise OutputError(f"{self.folder} holds a run already; continue it with --resume, or choose another --out")


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, for a file that holds those of several."""
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def load_prefixed(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``prefixed`` took out.

    Raises:
        RuntimeError: names or shapes differ.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(own)


def refuse_another(file: Path, metadata: Mapping[str, str], config: Any, dataset_sha256: str) -> None:
    """Compare what a state was trained with to what is asked for now.

    Args:
        file: the state.
        metadata: of it.
        config: what is asked for now, a ``Configuration``.
        dataset_sha256: of the images and labels.

    Raises:
        CheckpointError: they differ.
        KeyError, ValueError: the metadata is not that of a state.
    """
    difference = configuration.difference(type(config).from_json(metadata["config"]), config)
    if metadata["dataset_sha256"] != dataset_sha256:
        difference = difference or "other images or labels"
    if difference:
        raise CheckpointError(
            f"{file} belongs to another run ({difference}); "
            f"resume with the same options, or begin anew with another --out"
        )
