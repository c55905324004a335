"""How the original single files name their tensors (CompVis/latent-diffusion), by rules rather than by lists.

A name is that of a module followed by that of a part inside it. Modules are numbered along the network in one layout
and by level and layer in the other, so their names come from a walk over the levels; parts have a dozen names in all.

    down_blocks.1.resnets.0 . conv_shortcut.weight
    input_blocks.4.0        . skip_connection.weight

All functions go from the names of our state dicts, which are diffusers', to the original ones. The way back is the same
table read from right to left: no two names are renamed alike.
"""

from __future__ import annotations

from collections.abc import Iterable

from training.stable_diffusion.config import StableDiffusionConfig, UNetConfig, VAEConfig

PREFIXES = {
    "text_encoder.": "cond_stage_model.transformer.",
    "unet.": "model.diffusion_model.",
    "vae.": "first_stage_model.",
}

UNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def original_names(config: StableDiffusionConfig, keys: Iterable[str]) -> dict[str, str]:
    """Our name -> original name, for names that begin with ``text_encoder.``, ``unet.`` or ``vae.``."""
    modules = {f"unet.{ours}": original for ours, original in unet_modules(config.unet).items()}
    modules |= {f"vae.{ours}": original for ours, original in vae_modules(config.vae).items()}
    return {key: original_name(key, modules) for key in keys}


def original_name(key: str, modules: dict[str, str]) -> str:
    """Rename one tensor: its network, the longest module name that it begins with, and the part inside that module."""
    network = key[: key.index(".") + 1]
    module = key
    while module and module not in modules:
        module = module.rpartition(".")[0]
    if not module:  # CLIP has the same names everywhere, and so have the VAE's quant_conv and post_quant_conv
        return PREFIXES[network] + key.removeprefix(network)
    part, _, parameter = key.removeprefix(module + ".").rpartition(".")
    parts = UNET_PARTS if network == "unet." and ".resnets." in module else VAE_PARTS if network == "vae." else {}
    return ".".join(filter(None, (PREFIXES[network] + modules[module], parts.get(part, part), parameter)))


def unet_modules(config: UNetConfig) -> dict[str, str]:
    """Module of UNet2DConditionModel -> the original's.

    The original counts blocks, and within each its residual block, transformer and resampling.
    """
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    last = len(config.levels) - 1
    block = 1
    for i, level in enumerate(config.levels):
        for layer in range(config.layers_per_block):
            names[f"down_blocks.{i}.resnets.{layer}"] = f"input_blocks.{block}.0"
            if level.cross_attention:
                names[f"down_blocks.{i}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if i < last:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for i, level in enumerate(reversed(config.levels)):
        for layer in range(config.layers_per_block + 1):
            names[f"up_blocks.{i}.resnets.{layer}"] = f"output_blocks.{block}.0"
            if level.cross_attention:
                names[f"up_blocks.{i}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        if i < last:  # in the level's last block, after whatever else that holds
            place = 2 if level.cross_attention else 1
            names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{place}.conv"
    return names


def vae_modules(config: VAEConfig) -> dict[str, str]:
    """Module of AutoencoderKL -> the original's, whose decoder counts its levels from the finest."""
    names: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        names |= {
            f"{side}.conv_in": f"{side}.conv_in",
            f"{side}.mid_block.resnets.0": f"{side}.mid.block_1",
            f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1",
            f"{side}.mid_block.resnets.1": f"{side}.mid.block_2",
            f"{side}.conv_norm_out": f"{side}.norm_out",
            f"{side}.conv_out": f"{side}.conv_out",
        }
    last = len(config.block_out_channels) - 1
    for i in range(last + 1):
        for layer in range(config.layers_per_block):
            names[f"encoder.down_blocks.{i}.resnets.{layer}"] = f"encoder.down.{i}.block.{layer}"
        for layer in range(config.layers_per_block + 1):
            names[f"decoder.up_blocks.{i}.resnets.{layer}"] = f"decoder.up.{last - i}.block.{layer}"
        if i < last:
            names[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"encoder.down.{i}.downsample.conv"
            names[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"decoder.up.{last - i}.upsample.conv"
    return names


def ema_name(original: str) -> str:
    """Where the original files keep the averaged copy of a UNet tensor."""
    return "model_ema." + original.removeprefix("model.").replace(".", "")
