"""Proves that the shapes noted of a network are those its parts put out, in order, and that the full-size Stable
Diffusion's can be had without its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.shapes import OutputShape, output_shapes
from training.stable_diffusion.config import SD15
from training.stable_diffusion.vae import AutoencoderKL


class Pair(nn.Module):
    """Puts out a list, which has no shape."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=2)
        self.pair = Pair()
        self.twice = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.pair(self.conv(x))
        return self.twice(first) + self.twice(second)


def test_shapes_by_hand() -> None:
    assert output_shapes(Small(), torch.zeros(3, 1, 7, 9)) == [
        OutputShape("conv", "Conv2d", (3, 2, 3, 4)),
        OutputShape("twice", "Flatten", (3, 24)),
        OutputShape("twice", "Flatten", (3, 24)),
        OutputShape("", "Small", (3, 24)),
    ]


def test_the_network_is_left_as_it_was() -> None:
    network = Small()
    output_shapes(network, torch.zeros(1, 1, 7, 9))
    with pytest.raises(RuntimeError):
        output_shapes(network, torch.zeros(1, 5, 7, 9))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_of_full_size_needs_no_memory() -> None:
    with torch.device("meta"):
        decoder = AutoencoderKL(SD15.vae).decoder
        latents = torch.zeros(1, 4, 64, 64)
    shapes = {each.name: each.shape for each in output_shapes(decoder, latents)}
    assert shapes["conv_in"] == (1, 512, 64, 64)
    assert shapes["up_blocks.2"] == (1, 256, 512, 512)
    assert shapes[""] == (1, 3, 512, 512)
