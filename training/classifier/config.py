"""Every number of a classifier and its training."""

from __future__ import annotations

from dataclasses import dataclass, field

from training import configuration

MOST_FEATURES = 512


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network.

    Attributes:
        in_channels: C, channels of the image.
        image_size: H = W in pixels; a multiple of 4, since there are two poolings, and at least 8.
        features: F, channels at full resolution, doubled at each pooling.
        num_classes: K.
    """

    in_channels: int = 1
    image_size: int = 28
    features: int = 16
    num_classes: int = 10

    def __post_init__(self) -> None:
        if self.in_channels < 1 or self.num_classes < 1:
            raise ValueError(f"in_channels {self.in_channels} and num_classes {self.num_classes} must be at least 1")
        if self.image_size < 8 or self.image_size % 4:
            raise ValueError(f"image_size {self.image_size} must be a multiple of 4, and at least 8")
        if not 1 <= self.features <= MOST_FEATURES:
            raise ValueError(f"features {self.features} must be 1 to {MOST_FEATURES}")

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
        seed: of everything: initial weights, order of images, shifts, turns and scales.
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
        if not 0 <= self.max_scaling < 1:
            raise ValueError(f"max_scaling is {self.max_scaling}; it must be at least 0 and below 1")
