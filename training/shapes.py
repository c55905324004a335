"""What shapes a network's data take on its way through: for people who read one."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class OutputShape(NamedTuple):
    """What a part of a network puts out.

    Attributes:
        name: the part's name in the network; the network's own is empty.
        kind: its class.
        shape: of its output.
    """

    name: str
    kind: str
    shape: tuple[int, ...]


@torch.no_grad()
def output_shapes(network: nn.Module, *inputs: Tensor) -> list[OutputShape]:
    """Run a network once and note the shape of what each of its parts puts out, in the order in which they end.

    A part that is run several times is noted as often; one that puts out something else than a tensor is not. On the
    meta device, weights and inputs take no memory and nothing is computed, so that the largest network will do.

    Args:
        network: is run as it is, in training or evaluation mode.
        inputs: of its ``forward``.
    """
    shapes: list[OutputShape] = []

    def note(name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            shapes.append(OutputShape(name, type(module).__name__, tuple(output.shape)))

    handles = [module.register_forward_hook(partial(note, name)) for name, module in network.named_modules()]
    try:
        network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
