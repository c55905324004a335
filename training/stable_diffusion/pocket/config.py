"""Every number of the pocket model and of its training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from training import configuration, precision
from training.precision import MixedPrecision
from training.stable_diffusion.config import (
    SchedulerConfig,
    StableDiffusionConfig,
    TextEncoderConfig,
    UNetConfig,
    UNetLevel,
    VAEConfig,
)
from training.stable_diffusion.pocket.world import SHARE_OF_PAIRS

IMAGE_SIZE = 64  # pixels a side of every picture
LATENT_CHANNELS = 8  # three for a colour, the others for what is finer than a latent's 4 x 4 pixels

POCKET = StableDiffusionConfig(
    # Most of this encoder is the table of 49,408 tokens, of which its world needs a hundred: the width is small so that
    # the whole model is a file of 20 MB in fp16.
    text_encoder=TextEncoderConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4),
    unet=UNetConfig(
        levels=(
            UNetLevel(64, cross_attention=True),  # 16 x 16 latents, for 64 x 64 pixels
            UNetLevel(96, cross_attention=True),  # 8 x 8
            UNetLevel(128, cross_attention=True),  # 4 x 4
        ),
        layers_per_block=1,
        num_attention_heads=2,  # on a CPU attention costs by the head
        cross_attention_dim=64,
        norm_num_groups=4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
    ),
    vae=VAEConfig(
        block_out_channels=(16, 32, 64),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,  # of 8 channels or more: a group's own level is lost, and plain colours have little else
        scaling_factor=1.0,  # its latents are brought to unit scale at the end of its training
    ),
    # Plain backgrounds may be black or white all over, which a schedule that leaves some signal at its last step cannot
    # draw (Lin et al. 2024); without any signal left the noise says nothing, so the prediction is v.
    scheduler=SchedulerConfig(
        prediction_type="v_prediction",
        zero_terminal_snr=True,
        timestep_spacing="trailing",
        steps_offset=0,
        set_alpha_to_one=True,
    ),
)


@dataclass(frozen=True)
class OptimizerConfig:
    """How long and how fast a stage learns.

    The rate rises over ``warmup_steps``, stays, and falls to 0 along the last ``decay_steps``. As long as the fall has
    not begun, ``steps`` may still be changed: nothing that was learned depends on it.

    Attributes:
        steps: of the whole stage.
        batch_size: pictures per step.
        learning_rate: of Adam, between the warm-up and the fall.
        matrix_learning_rate: of Muon, which matrices and kernels of hidden layers learn by instead; 0 for Adam.
        warmup_steps: steps over which the rate rises from 0.
        decay_steps: steps over which it falls to 0 in the end.
        beta2: decay of Adam's second moment.
        ema_decay: of the exponential moving average of the weights, which is what is kept in the end.
        max_grad_norm: gradients are clipped to this norm.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    beta2: float = 0.99
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    matrix_learning_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup_steps", 0), ("decay_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"steps is {self.steps}; it must be at least warmup_steps and decay_steps together, "
                f"{self.warmup_steps + self.decay_steps}"
            )
        if not 0 <= self.matrix_learning_rate < float("inf"):
            raise ValueError(f"matrix_learning_rate is {self.matrix_learning_rate}; it must be at least 0")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")

    def share_at(self, step: int) -> float:
        """The share of the rates that one step has, counted from 0."""
        rise = (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0
        fall = min(1.0, (self.steps - step) / self.decay_steps) if self.decay_steps else 1.0
        return min(rise, fall)


@dataclass(frozen=True)
class VAETraining:
    """How the VAE learns: from the absolute and the squared error of pixels, and the terms below.

    A latent should say what is at its place and nothing of the rest of the picture, and the mean of two latents should
    be a latent of the mean: such latents are quickly learned by the UNet. So a share of the decoder's inputs is patched
    together from those of two pictures, or made half as large by averaging, and compared with pixels that were treated
    alike (the second is Kouzelis et al. 2025, "EQ-VAE").

    Attributes:
        optimizer: how long and how fast.
        kl_weight: of the mean over latents of the divergence from a standard normal distribution.
        edge_weight: of the error in the differences between neighbouring pixels, which keeps edges sharp.
        share_patched: of the steps, with inputs from two pictures.
        share_halved: of the steps, with inputs of half the size.
    """

    optimizer: OptimizerConfig
    kl_weight: float = 1e-4
    edge_weight: float = 0.5
    share_patched: float = 0.25
    share_halved: float = 0.25

    def __post_init__(self) -> None:
        if not (self.share_patched >= 0 and self.share_halved >= 0 and self.share_patched + self.share_halved <= 1):
            raise ValueError(
                f"share_patched is {self.share_patched} and share_halved is {self.share_halved}; "
                "they must be at least 0, and at most 1 together"
            )


@dataclass(frozen=True)
class TextTraining:
    """How the text encoder learns to read.

    Attributes:
        optimizer: how long and how fast.
    """

    optimizer: OptimizerConfig


@dataclass(frozen=True)
class DiffusionTraining:
    """How the text encoder and the UNet learn, together.

    Attributes:
        optimizer: how long and how fast.
        text_rate: share of its rates that the text encoder has, which can read when the UNet begins.
        caption_dropout: probability of the empty caption instead of the scene's (Ho & Salimans 2022).
        snr_gamma: bound of the loss's weight, see ``diffusion_loss``.
        block_size: scenes that are encoded at once.
        blocks: of them that are in use at a time.
        block_steps: steps until the oldest block gives way to a new one.
        share_of_pairs: of the scenes, with two things instead of one.
    """

    optimizer: OptimizerConfig
    text_rate: float = 0.1
    caption_dropout: float = 0.1
    snr_gamma: float = 5.0
    block_size: int = 1024
    blocks: int = 8
    block_steps: int = 160
    share_of_pairs: float = SHARE_OF_PAIRS

    def __post_init__(self) -> None:
        for name in ("block_size", "blocks", "block_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("text_rate", "share_of_pairs"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout is {self.caption_dropout}; it must be at least 0 and below 1")
        if not self.snr_gamma > 0:
            raise ValueError(f"snr_gamma is {self.snr_gamma}; it must be above 0")


@dataclass(frozen=True)
class JudgeNetwork:
    """Sizes of the network that reads pictures back.

    Attributes:
        features: of its first level; each further one has twice as many, at half the resolution.
        levels: how many there are.
        hidden: width of the layer that all heads share.
    """

    features: int = 16
    levels: int = 4
    hidden: int = 192

    def __post_init__(self) -> None:
        most = IMAGE_SIZE.bit_length() - 1
        for name, limit in (("features", 1024), ("levels", most), ("hidden", 2**16)):
            if not 1 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 1 to {limit}")


@dataclass(frozen=True)
class JudgeTraining:
    """How the judge learns.

    Attributes:
        optimizer: how long and how fast.
        network: its sizes.
    """

    optimizer: OptimizerConfig
    network: JudgeNetwork = field(default_factory=JudgeNetwork)


@dataclass(frozen=True)
class TrainConfig(configuration.Configuration):
    """What fixes a trained model, bit for bit on one machine: the same configuration gives the same weights.

    Attributes:
        vae: how the VAE learns.
        text: how the text encoder learns to read.
        diffusion: how the text encoder and the UNet learn.
        judge: how the network learns that reads what was drawn.
        model: sizes of the networks, and the noise schedule.
        mixed_precision: "no" is float32, "bf16" is autocast.
        seed: of everything: initial weights, scenes, captions, timesteps and noise.
    """

    vae: VAETraining
    text: TextTraining
    diffusion: DiffusionTraining
    judge: JudgeTraining
    model: StableDiffusionConfig = field(default_factory=lambda: POCKET)
    mixed_precision: MixedPrecision = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2^64")
        precision.refuse_unknown(self.mixed_precision)


def pocket() -> TrainConfig:
    """Some four hours on two cores with AMX that nothing else uses.

    Measured there: 11 steps of the VAE a second, 7 of the text encoder alone, and 2.3 of text encoder and UNet while
    OMP_WAIT_POLICY is ACTIVE.
    """
    return TrainConfig(
        vae=VAETraining(OptimizerConfig(8_000, 8, 1.5e-3, 100, 3_000)),
        text=TextTraining(OptimizerConfig(2_500, 128, 1e-3, 100, 800, ema_decay=0.99, matrix_learning_rate=2e-3)),
        diffusion=DiffusionTraining(
            OptimizerConfig(27_600, 32, 1e-3, 300, 5_000, ema_decay=0.9995, matrix_learning_rate=2e-3)
        ),
        judge=JudgeTraining(OptimizerConfig(11_000, 48, 2e-3, 100, 4_000, matrix_learning_rate=2e-3)),
    )


def pocket_further() -> TrainConfig:
    """What follows ``pocket``, for a run that begins with its model: slower, and mostly about what that does worst.

    After ``pocket`` a single thing is drawn wrongly in 2 of 100 cases, and each of two in 10.
    """
    config = pocket()
    optimizer = OptimizerConfig(4_400, 32, 6e-4, 200, 4_000, ema_decay=0.9995, matrix_learning_rate=1.2e-3)
    return replace(config, diffusion=replace(config.diffusion, optimizer=optimizer, share_of_pairs=0.6))


PRESETS = {"pocket": pocket, "pocket-further": pocket_further}
