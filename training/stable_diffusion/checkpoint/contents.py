"""What a reader finds in a checkpoint, whichever its layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from training.stable_diffusion.config import StableDiffusionConfig

Layout = Literal["single-file", "diffusers-folder"]

# What else a model is, by the width of the text embeddings that its UNet looks at.
MODELS_BY_TEXT_WIDTH = {1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True)
class Contents:
    """A checkpoint's facts and tensors, before they are checked against the networks.

    Attributes:
        layout: the kind of checkpoint.
        config: sizes and schedule as far as the checkpoint states them.
        names: name in the state dict of ``Networks`` -> name in the checkpoint.
        tensors: by name in the checkpoint; those that belong to no network have been left out.
        files: where the weights are.
    """

    layout: Layout
    config: StableDiffusionConfig
    names: dict[str, str]
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]

    def with_vae(self, other: Contents) -> Contents:
        """The same with another checkpoint's VAE, whose reader was given this one's configuration."""
        names = {key: name for key, name in self.names.items() if not key.startswith("vae.")}
        own_vae = set(self.names.values()) - set(names.values())
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in own_vae}
        return replace(
            self,
            config=other.config,
            names=names | other.names,
            tensors=tensors | other.tensors,
            files=self.files + other.files,
        )
