"""Every number of a training run, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, field

from training import configuration, precision
from training.ddpm.model import UNetConfig
from training.noise_schedule import NoiseSchedule
from training.precision import MixedPrecision


@dataclass(frozen=True)
class TrainConfig(configuration.Configuration):
    """What fixes a trained model, bit for bit on one machine: the same configuration gives the same weights.

    Attributes:
        dataset: name of the data set (its SHA-256 is kept beside it in the checkpoint).
        model: sizes of the network.
        schedule: the noise schedule.
        epochs: passes over the training set.
        batch_size: images per step, over all processes together.
        learning_rate: peak of Adam's rate, after the warm-up.
        warmup_steps: steps over which the rate rises from 0; then it falls to 0 along half a cosine.
        label_dropout: probability of training on the null class instead of the label (Ho & Salimans 2022).
        ema_decay: of the exponential moving average of the weights, which is what is exported.
        max_grad_norm: gradients are clipped to this norm.
        mixed_precision: "no" is float32, "bf16" is autocast.
        seed: of everything: initial weights, order of images, timesteps, noise and dropped labels.
    """

    dataset: str
    model: UNetConfig = field(default_factory=UNetConfig)
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    label_dropout: float = 0.1
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    mixed_precision: MixedPrecision = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("warmup_steps", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.seed >= 2**64:
            raise ValueError(f"seed is {self.seed}; it must be below 2^64")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("label_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        precision.refuse_unknown(self.mixed_precision)


PAPERS_RUNS = {"cifar10": (20, 1000)}  # epochs and T where they are not those of its grey images
GREY_IMAGES_RUN = (10, 400)


def paper(dataset: str, model: UNetConfig) -> TrainConfig:
    """The paper's settings: batches of 256, β from 1e-4 to 0.02; 20 epochs and T = 1000 for CIFAR-10, and 10 epochs and
    T = 400 for MNIST, Fashion-MNIST and any other data set.

    These betas were meant for a thousand steps. After 400 of them ᾱ is 0.0175, so 13 % of the signal's amplitude is
    left where sampling starts from pure noise. The paper has it so, and the preset keeps it. (Its ancestor makes one
    beta more and counts it in the product, which ends at 0.0173; that is not kept.)
    """
    epochs, train_steps = PAPERS_RUNS.get(dataset, GREY_IMAGES_RUN)
    schedule = NoiseSchedule(num_train_timesteps=train_steps)
    return TrainConfig(dataset=dataset, model=model, schedule=schedule, epochs=epochs)


PRESETS = {"paper": paper}
