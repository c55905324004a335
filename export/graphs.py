"""One ``GraphSpec`` for each graph: everything that tracing, parity and the manifest need to know of it, said once.

Shapes: B batch, C image channels, H = W = image_size. In a shape, a number is fixed and a name is dynamic; equal
names are equal sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.ddpm.model import ClassConditionalUNet

Shape = tuple[int | str, ...]
Sizes = Mapping[str, int]
"""The dynamic dimensions of one case by name, and the values of those inputs that a case chooses (``chosen``)."""
Draw = Callable[[tuple[int, ...], torch.Generator, Sizes], Tensor]


def normal(shape: tuple[int, ...], generator: torch.Generator, sizes: Sizes) -> Tensor:
    """Standard normal numbers, float32."""
    return torch.randn(shape, generator=generator)


def uniform(low: float, high: float) -> Draw:
    """Numbers from ``low`` to ``high``, float32, fractions and all."""
    return lambda shape, generator, sizes: low + (high - low) * torch.rand(shape, generator=generator)


def integers(low: int, high: int) -> Draw:
    """Whole numbers from ``low`` to ``high``, both included, int64."""
    return lambda shape, generator, sizes: torch.randint(low, high + 1, shape, generator=generator)


def chosen(name: str) -> Draw:
    """The whole number that the case has under ``name``, int64."""
    return lambda shape, generator, sizes: torch.full(shape, sizes[name])


@dataclass(frozen=True)
class Input:
    """One input of a graph: its shape, and numbers such as it meets in use (whose dtype is the input's)."""

    shape: Shape
    draw: Draw


@dataclass(frozen=True)
class GraphSpec:
    """A graph of a bundle.

    Attributes:
        role: the graph's name in the manifest, such as "unet".
        module: what is traced, put into evaluation mode; its ``forward`` takes the inputs by name.
        inputs: the graph's inputs. This one mapping names them, orders them and shapes them; nothing else repeats the
            list. An input that not every model has (a ControlNet's residuals) is an entry that is there or not.
        outputs: names and shapes of what ``forward`` returns, in order.
        example_sizes: the case to trace with. Each dimension is at least 2, because a size of 1 would be taken as
            fixed.
        parity_sizes: the cases that parity is measured at.
        half_cases: which of them, by index, an fp16 variant is measured at. That the graph is right at all of them is
            shown in float32, and rounding hardly depends on sizes; but every layer must have its part in one of them.
        channel_axis: of every output.
        largest_sizes: dimensions that the module itself bounds, such as the number of positions it has learned.
        tolerance: float32 parity holds where max |difference| <= tolerance * max |reference| + tolerance.
    """

    role: str
    module: nn.Module
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Shape]
    example_sizes: Sizes
    parity_sizes: tuple[Sizes, ...]
    half_cases: tuple[int, ...] = (-1,)
    channel_axis: int = 1
    largest_sizes: Sizes = field(default_factory=dict)
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        self.module.eval()

    def draw(self, sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw every input of a case, in order."""
        return {name: spec.draw(resolve(spec.shape, sizes), generator, sizes) for name, spec in self.inputs.items()}

    @torch.no_grad()
    def reference(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What PyTorch says: the outputs by name."""
        result = self.module(**inputs)
        tensors = (result,) if isinstance(result, Tensor) else tuple(result)
        return dict(zip(self.outputs, tensors, strict=True))


def resolve(shape: Shape, sizes: Sizes) -> tuple[int, ...]:
    """A shape in numbers."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


def class_conditional_unet(module: ClassConditionalUNet, num_train_timesteps: int) -> GraphSpec:
    """The U-Net of the small DDPM.

    Args:
        module: the network.
        num_train_timesteps: T; the timesteps of parity lie between 0 and T - 1.
    """
    config = module.config
    image: Shape = ("batch", config.in_channels, config.image_size, config.image_size)  # (B, C, H, W)
    return GraphSpec(
        role="unet",
        module=module,
        inputs={
            "sample": Input(image, normal),
            "timestep": Input(("batch",), uniform(0, num_train_timesteps - 1)),
            "class_labels": Input(("batch",), integers(0, config.num_classes)),
        },
        outputs={"out_sample": image},
        example_sizes={"batch": 2},
        parity_sizes=({"batch": 1}, {"batch": 2}, {"batch": 7}),
    )
