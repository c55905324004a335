"""Every number of Stable Diffusion 1.5.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models".

The defaults are the sizes of the published model, ``SD15``; smaller numbers make a smaller model of the same modules.
Fields have the names of diffusers' configuration files, except where one of those misleads: diffusers'
``attention_head_dim`` is the number of heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from training.noise_schedule import NoiseSchedule, PredictionType, rescale_zero_terminal_snr

TimestepSpacing = Literal["leading", "trailing", "linspace"]

# A configuration may be a stranger's, and memory and time are taken for what it says.
LARGEST_SIZE = 1_000_000
MOST_LAYERS = 100  # also of levels' blocks
MOST_LEVELS = 16  # each halves the sides


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of CLIP ViT-L/14's text encoder (Radford et al. 2021).

    Raises:
        ValueError: a size is below 1 or too large, or the heads do not divide the width.
    """

    vocab_size: int = 49_408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"):
            require_size(name, getattr(self, name))
        require_size("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)
        require_positive("layer_norm_eps", self.layer_norm_eps)
        require_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)


@dataclass(frozen=True)
class UNetLevel:
    """One resolution of the UNet: each level is half as high and wide as the one before.

    Attributes:
        channels: width of its residual blocks.
        cross_attention: whether a transformer, which looks at the text, follows each of them.
    """

    channels: int
    cross_attention: bool


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet.

    Attributes:
        in_channels: 4 for latents; 9 for the inpainting model, which is also given a mask and the masked latents.
        out_channels: channels of the prediction.
        levels: one row per resolution, the finest first. Below the last one lies the middle block, of its width and
            always with attention.
        layers_per_block: residual blocks per level on the way down; there is one more on the way up.
        num_attention_heads: heads of every attention; diffusers' files call this number ``attention_head_dim``.
        cross_attention_dim: D, the width of the text embeddings.
        norm_num_groups: groups of every group normalisation.
        norm_eps: epsilon of the group normalisations in residual blocks and before the last convolution.
        transformer_norm_eps: epsilon of the group normalisation in front of each transformer.

    Raises:
        ValueError: a size is below 1 or too large, there is no level, or the groups or heads do not divide a level's
            channels.
    """

    in_channels: int = 4
    out_channels: int = 4
    levels: tuple[UNetLevel, ...] = (
        UNetLevel(320, cross_attention=True),  # 64 x 64 latents, for 512 x 512 pixels
        UNetLevel(640, cross_attention=True),  # 32 x 32
        UNetLevel(1280, cross_attention=True),  # 16 x 16
        UNetLevel(1280, cross_attention=False),  # 8 x 8
    )
    layers_per_block: int = 2
    num_attention_heads: int = 8
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    transformer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty; a UNet needs at least one")
        require_size("the number of levels", len(self.levels), MOST_LEVELS)
        for name in ("in_channels", "out_channels", "cross_attention_dim"):
            require_size(name, getattr(self, name))
        for level in self.levels:
            require_size("channels", level.channels)
        require_size("layers_per_block", self.layers_per_block, MOST_LAYERS)
        require_positive("norm_eps", self.norm_eps)
        require_positive("transformer_norm_eps", self.transformer_norm_eps)
        require_divisible("the time embedding's width", self.levels[0].channels, "its two halves", 2)
        for level in self.levels:
            require_divisible("channels", level.channels, "norm_num_groups", self.norm_num_groups)
        # The middle block, which is as wide as the last level, has attention too.
        for level in (*(level for level in self.levels if level.cross_attention), self.levels[-1]):
            require_divisible("channels", level.channels, "num_attention_heads", self.num_attention_heads)

    @property
    def time_embed_dim(self) -> int:
        """Width of the time embedding after its two linear layers."""
        return 4 * self.levels[0].channels


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the variational autoencoder between pixels and latents.

    Attributes:
        in_channels: channels of the image.
        out_channels: channels of the decoded image.
        latent_channels: channels of the latents.
        block_out_channels: one number per resolution, the finest first; each is half as high and wide as the one
            before.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        norm_num_groups: groups of every group normalisation.
        norm_eps: their epsilon; 1e-6, unlike the UNet's.
        scaling_factor: what latents are multiplied by, to unit scale, before noise is added; not applied inside the
            VAE.

    Raises:
        ValueError: a size is below 1 or too large, there is no level, or the groups do not divide a level's
            channels.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    scaling_factor: float = 0.18215

    def __post_init__(self) -> None:
        if not self.block_out_channels:
            raise ValueError("block_out_channels is empty; a VAE needs at least one level")
        require_size("the number of block_out_channels", len(self.block_out_channels), MOST_LEVELS)
        for name in ("in_channels", "out_channels", "latent_channels"):
            require_size(name, getattr(self, name))
        for channels in self.block_out_channels:
            require_size("block_out_channels", channels)
        require_size("layers_per_block", self.layers_per_block, MOST_LAYERS)
        require_positive("norm_eps", self.norm_eps)
        require_positive("scaling_factor", self.scaling_factor)
        for channels in self.block_out_channels:
            require_divisible("block_out_channels", channels, "norm_num_groups", self.norm_num_groups)

    @property
    def factor(self) -> int:
        """Pixels per latent, each way."""
        return 1 << (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class SchedulerConfig:
    """How the model was trained and how it is meant to be sampled.

    Attributes:
        noise_schedule: the betas of training.
        prediction_type: what the UNet's output is.
        zero_terminal_snr: the betas are rescaled so that nothing of the signal is left at the last step (Lin et al.
            2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1).
        timestep_spacing: how a sampler with fewer steps chooses its timesteps.
        steps_offset: added to timesteps under leading spacing.
        set_alpha_to_one: whether alphas_cumprod after the last step of sampling is 1; else it is that of timestep 0.

    Raises:
        ValueError: a name is unknown, or an offset does not fit.
    """

    noise_schedule: NoiseSchedule = field(default_factory=lambda: NoiseSchedule(1000, 0.00085, 0.012, "scaled_linear"))
    prediction_type: PredictionType = "epsilon"
    zero_terminal_snr: bool = False
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("prediction_type", PredictionType), ("timestep_spacing", TimestepSpacing)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choose {' or '.join(get_args(allowed))}")
        if not 0 <= self.steps_offset < self.noise_schedule.num_train_timesteps:
            raise ValueError(
                f"steps_offset is {self.steps_offset}; it must be at least 0 and below num_train_timesteps"
            )

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ by timestep, float64 (num_train_timesteps,)."""
        alphas_cumprod = self.noise_schedule.alphas_cumprod
        return rescale_zero_terminal_snr(alphas_cumprod) if self.zero_terminal_snr else alphas_cumprod

    @property
    def final_alpha_cumprod(self) -> float:
        """ᾱ after the last step of sampling."""
        return 1.0 if self.set_alpha_to_one else float(self.alphas_cumprod[0])


@dataclass(frozen=True)
class StableDiffusionConfig:
    """The three networks' sizes and the schedule, which must fit each other.

    Raises:
        ValueError: the widths of two parts differ, or the UNet takes neither latents nor latents, mask and masked
            latents.
    """

    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        latents = self.vae.latent_channels
        if self.text_encoder.hidden_size != self.unet.cross_attention_dim:
            raise ValueError(
                f"the text encoder's hidden_size is {self.text_encoder.hidden_size}, "
                f"but the UNet's cross_attention_dim is {self.unet.cross_attention_dim}; they must be equal"
            )
        if self.unet.out_channels != latents:
            raise ValueError(
                f"the UNet's out_channels is {self.unet.out_channels}; the VAE has {latents} latent_channels"
            )
        if self.unet.in_channels not in (latents, 2 * latents + 1):
            raise ValueError(
                f"the UNet's in_channels is {self.unet.in_channels}; it must be {latents} (latents), "
                f"or {2 * latents + 1} (latents, mask and masked latents: inpainting)"
            )

    @property
    def inpainting(self) -> bool:
        """Whether the UNet is given a mask and the masked latents beside the latents."""
        return self.unet.in_channels != self.vae.latent_channels


def require_size(name: str, value: int, most: int = LARGEST_SIZE) -> None:
    """Raise ValueError unless ``value`` is from 1 to ``most``."""
    if not 1 <= value <= most:
        raise ValueError(f"{name} is {value}; it must be from 1 to {most:,}")


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is above 0 and at most ``LARGEST_SIZE``, which a NaN is not."""
    if not 0 < value <= LARGEST_SIZE:
        raise ValueError(f"{name} is {value}; it must be above 0 and at most {LARGEST_SIZE:,}")


def require_divisible(name: str, value: int, by: str, divisor: int) -> None:
    """Raise ValueError unless ``value`` is a positive multiple of ``divisor``."""
    if divisor < 1 or value < 1 or value % divisor:
        raise ValueError(f"{name} {value} must be a multiple of {by}, {divisor}")


SD15 = StableDiffusionConfig()
