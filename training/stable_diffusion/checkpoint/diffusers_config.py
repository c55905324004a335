"""diffusers' configuration files, translated to ours. What our networks cannot do is refused, not overlooked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.errors import CheckpointError
from training.noise_schedule import NoiseSchedule
from training.stable_diffusion.checkpoint.contents import MODELS_BY_TEXT_WIDTH
from training.stable_diffusion.checkpoint.settings import Settings
from training.stable_diffusion.config import (
    MOST_LAYERS,
    SD15,
    SchedulerConfig,
    StableDiffusionConfig,
    TextEncoderConfig,
    UNetConfig,
    UNetLevel,
    VAEConfig,
)

# The only values that our networks implement, of settings that a file may or may not have.
TEXT_ENCODER_IMPLEMENTED: dict[str, Any] = {"hidden_act": "quick_gelu"}
UNET_IMPLEMENTED: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}
VAE_IMPLEMENTED: dict[str, Any] = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
SCHEDULER_IMPLEMENTED: dict[str, Any] = {"trained_betas": None}

PIPELINES = (
    ("StableDiffusionXL", "a Stable Diffusion XL model"),
    ("StableDiffusion3", "a Stable Diffusion 3 model"),
    ("StableDiffusionInstructPix2Pix", "an InstructPix2Pix model"),
    ("Flux", "a Flux model"),
)


def read_configs(folder: Path) -> StableDiffusionConfig:
    """The configuration of the model in a diffusers folder.

    Where a scheduler's file is missing or says nothing, Stable Diffusion 1.5's values hold.

    Raises:
        CheckpointError: a file is missing or damaged, it is another model, or it needs what is not implemented.
    """
    refuse_others(folder)
    unet = unet_config(Settings.read(folder / "unet" / "config.json"))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    try:
        return StableDiffusionConfig(
            text_encoder=text_encoder_config(Settings.read(folder / "text_encoder" / "config.json")),
            unet=unet,
            vae=vae_config(Settings.read(folder / "vae" / "config.json")),
            scheduler=scheduler_config(Settings.read(scheduler)) if scheduler.exists() else SD15.scheduler,
        )
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def refuse_others(folder: Path) -> None:
    """Say which model it is instead, if the folder's index says so.

    Raises:
        CheckpointError: it is another model.
    """
    index = folder / "model_index.json"
    pipeline = str(Settings.read(index).values.get("_class_name", "")) if index.exists() else ""
    for start, what in PIPELINES:
        if pipeline.startswith(start):
            raise CheckpointError(f"{folder} is {what} ({pipeline}); only Stable Diffusion 1.x is supported")


def text_encoder_config(settings: Settings) -> TextEncoderConfig:
    settings.require(TEXT_ENCODER_IMPLEMENTED)
    default = SD15.text_encoder
    return TextEncoderConfig(
        vocab_size=settings.integer("vocab_size", default.vocab_size),
        hidden_size=settings.integer("hidden_size", default.hidden_size),
        intermediate_size=settings.integer("intermediate_size", default.intermediate_size),
        num_hidden_layers=settings.integer("num_hidden_layers", default.num_hidden_layers, MOST_LAYERS),
        num_attention_heads=settings.integer("num_attention_heads", default.num_attention_heads),
        max_position_embeddings=settings.integer("max_position_embeddings", default.max_position_embeddings),
        layer_norm_eps=settings.number("layer_norm_eps", default.layer_norm_eps),
    )


def unet_config(settings: Settings) -> UNetConfig:
    default = SD15.unet
    width = settings.integer("cross_attention_dim", default.cross_attention_dim)
    if width in MODELS_BY_TEXT_WIDTH:
        raise CheckpointError(
            f"{settings.path}: cross_attention_dim is {width}, so this is {MODELS_BY_TEXT_WIDTH[width]}; "
            "only Stable Diffusion 1.x is supported"
        )
    settings.require(UNET_IMPLEMENTED)
    in_channels = settings.integer("in_channels", default.in_channels)
    # diffusers once named the number of heads attention_head_dim, and files have kept that.
    heads = "attention_head_dim" if settings.values.get("num_attention_heads") is None else "num_attention_heads"
    try:
        return UNetConfig(
            in_channels=in_channels,
            out_channels=settings.integer("out_channels", default.out_channels),
            levels=unet_levels(settings),
            layers_per_block=settings.integer("layers_per_block", default.layers_per_block, MOST_LAYERS),
            num_attention_heads=settings.integer(heads, default.num_attention_heads),
            cross_attention_dim=width,
            norm_num_groups=settings.integer("norm_num_groups", default.norm_num_groups),
            norm_eps=settings.number("norm_eps", default.norm_eps),
        )
    except ValueError as error:
        raise CheckpointError(f"{settings.path}: {error}") from error


def unet_levels(settings: Settings) -> tuple[UNetLevel, ...]:
    """The rows of the table, which diffusers spreads over three lists."""
    default = SD15.unet.levels
    channels = settings.integers("block_out_channels", tuple(level.channels for level in default))
    plain, crossing = "{}Block2D", "CrossAttn{}Block2D"
    down = settings.names(
        "down_block_types",
        tuple((crossing if level.cross_attention else plain).format("Down") for level in default),
        (crossing.format("Down"), plain.format("Down")),
    )
    up = [name.replace("Down", "Up") for name in reversed(down)]
    if list(settings.values.get("up_block_types", up)) != up:
        raise settings.error("up_block_types", f"the mirror image of down_block_types, {up},")
    if not len(channels) == len(down) <= MOST_LAYERS:
        raise settings.error("block_out_channels", f"one number for each of the {len(down)} down_block_types")
    return tuple(
        UNetLevel(c, cross_attention=d == crossing.format("Down")) for c, d in zip(channels, down, strict=True)
    )


def vae_config(settings: Settings) -> VAEConfig:
    """The VAE's sizes; ``scaling_factor`` is missing from old files, whose VAEs all had Stable Diffusion 1.x's."""
    settings.require(VAE_IMPLEMENTED)
    default = SD15.vae
    channels = settings.integers("block_out_channels", default.block_out_channels)
    for name, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if len(settings.names(name, (block,) * len(channels), (block,))) != len(channels):
            raise settings.error(name, f"one block for each of the {len(channels)} block_out_channels")
    try:
        return VAEConfig(
            in_channels=settings.integer("in_channels", default.in_channels),
            out_channels=settings.integer("out_channels", default.out_channels),
            latent_channels=settings.integer("latent_channels", default.latent_channels),
            block_out_channels=channels,
            layers_per_block=settings.integer("layers_per_block", default.layers_per_block, MOST_LAYERS),
            norm_num_groups=settings.integer("norm_num_groups", default.norm_num_groups),
            scaling_factor=settings.number("scaling_factor", default.scaling_factor),
        )
    except ValueError as error:
        raise CheckpointError(f"{settings.path}: {error}") from error


def scheduler_config(settings: Settings) -> SchedulerConfig:
    settings.require(SCHEDULER_IMPLEMENTED)
    default, schedule = SD15.scheduler, SD15.scheduler.noise_schedule
    try:
        return SchedulerConfig(
            noise_schedule=NoiseSchedule(
                settings.integer("num_train_timesteps", schedule.num_train_timesteps),
                settings.number("beta_start", schedule.beta_start),
                settings.number("beta_end", schedule.beta_end),
                settings.values.get("beta_schedule", schedule.beta_schedule),
            ),
            prediction_type=settings.values.get("prediction_type", default.prediction_type),
            zero_terminal_snr=settings.flag("rescale_betas_zero_snr", default.zero_terminal_snr),
            timestep_spacing=settings.values.get("timestep_spacing", default.timestep_spacing),
            steps_offset=settings.integer("steps_offset", default.steps_offset, least=0),
            set_alpha_to_one=settings.flag("set_alpha_to_one", default.set_alpha_to_one),
        )
    except ValueError as error:
        raise CheckpointError(f"{settings.path}: {error}") from error
