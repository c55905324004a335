"""Every number of a classifier and its training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from training import configuration, precision
from training.precision import MixedPrecision

MOST_FEATURES = 512
MOST_STAGES = 6


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network.

    Attributes:
        in_channels: C, channels of the image.
        image_size: H = W in pixels; a multiple of 4, or as often halved as there are stages after the first, and at
            least 8.
        features: F, channels at full resolution, doubled at each pooling up to 4F.
        num_classes: K.
        stages: S, each at half the resolution of the one before.
    """

    in_channels: int = 1
    image_size: int = 28
    features: int = 16
    num_classes: int = 10
    stages: int = 3

    def __post_init__(self) -> None:
        if self.in_channels < 1 or self.num_classes < 1:
            raise ValueError(f"in_channels {self.in_channels} and num_classes {self.num_classes} must be at least 1")
        if not 1 <= self.stages <= MOST_STAGES:
            raise ValueError(f"stages {self.stages} must be 1 to {MOST_STAGES}")
        multiple = max(4, 2 ** (self.stages - 1))
        if self.image_size < 8 or self.image_size % multiple:
            raise ValueError(f"image_size {self.image_size} must be a multiple of {multiple}, and at least 8")
        if not 1 <= self.features <= MOST_FEATURES:
            raise ValueError(f"features {self.features} must be 1 to {MOST_FEATURES}")

    @property
    def widths(self) -> list[int]:
        """Channels of each stage."""
        return [self.features * min(2**stage, 4) for stage in range(self.stages)]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it reads."""
        return self.in_channels, self.image_size, self.image_size


@dataclass(frozen=True)
class ClassifierConfig(configuration.Configuration):
    """What fixes a trained classifier, bit for bit on one machine.

    Attributes:
        dataset: name of the data set.
        network: sizes of the network.
        epochs: passes over the training set.
        batch_size: images per step.
        learning_rate: peak of AdamW's rate, under a one-cycle schedule (Smith & Topin 2018).
        weight_decay: AdamW's.
        max_shift: images are shifted by up to so many pixels, each way.
        max_rotation: and turned by up to so many degrees, either way.
        max_scaling: and made larger or smaller by up to this share.
        flip: and half of them mirrored, left to right.
        label_smoothing: this share of a label is spread over all classes (Szegedy et al. 2016, section 7).
        mixed_precision: "no" is float32, "bf16" is autocast.
        seed: of everything: initial weights, order of images, shifts, turns, scales and mirrors.
    """

    dataset: str
    network: NetworkConfig = field(default_factory=NetworkConfig)
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    max_shift: float = 2.0
    max_rotation: float = 10.0
    max_scaling: float = 0.1
    flip: bool = False
    label_smoothing: float = 0.0
    mixed_precision: MixedPrecision = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2^64")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        for name, most in (("weight_decay", 1), ("max_shift", self.network.image_size), ("max_rotation", 180)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 to {most}")
        for name in ("max_scaling", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        precision.refuse_unknown(self.mixed_precision)


def preset(dataset: str, network: NetworkConfig) -> ClassifierConfig:
    """How the classifier of a data set is trained; of one's own as that of MNIST.

    Garments and photographs are mirrored and shifted by whole pixels, but not turned: upright is part of what they are.
    Photographs take a wider and deeper network.

    Args:
        dataset: its name.
        network: of which the shape of the images and the number of classes count.
    """
    upright: dict[str, Any] = {"max_rotation": 0.0, "max_scaling": 0.0, "flip": True}
    if dataset == "fashion-mnist":
        return ClassifierConfig(dataset, replace(network, features=32), epochs=12, **upright)
    if dataset == "cifar10":
        photographs: dict[str, Any] = {"weight_decay": 0.05, "max_shift": 4.0, "label_smoothing": 0.1}
        return ClassifierConfig(dataset, replace(network, features=64, stages=4), epochs=15, **upright, **photographs)
    return ClassifierConfig(dataset, network)
