"""Proves that the names of all 1,130 tensors are translated to the original layout and back, as diffusers does it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from random_weights import POCKET
from reference_models import part, unet_settings, vae_settings

from training.stable_diffusion.checkpoint.networks import without_weights
from training.stable_diffusion.checkpoint.original_names import ema_name, original_names
from training.stable_diffusion.config import SD15, UNetLevel

PLAIN_ON_TOP = replace(
    POCKET, unet=replace(POCKET.unet, levels=(UNetLevel(16, False), UNetLevel(32, True), UNetLevel(32, True)))
)
CONFIGS = pytest.mark.parametrize("config", [SD15, POCKET, PLAIN_ON_TOP], ids=["sd15", "pocket", "plain-on-top"])


def names_of(config):
    return original_names(config, without_weights(config).state_dict())


def test_there_are_as_many_tensors_as_in_the_published_file():
    names = names_of(SD15)
    prefixes = ("cond_stage_model.transformer.text_model.", "model.diffusion_model.", "first_stage_model.")
    counts = [sum(name.startswith(prefix) for name in names.values()) for prefix in prefixes]
    assert counts == [196, 686, 248]
    assert len(names) == 1130


@CONFIGS
def test_no_two_names_are_translated_alike(config):
    names = names_of(config)
    back = {original: ours for ours, original in names.items()}
    assert len(back) == len(names)
    assert {back[original] for original in names.values()} == set(without_weights(config).state_dict())


@CONFIGS
def test_diffusers_translates_every_name_back(config):
    names = names_of(config)
    tags = {original: torch.tensor([i]) for i, original in enumerate(names.values())}
    translated = {
        "text_encoder": convert_ldm_clip_checkpoint(tags),
        "unet": convert_ldm_unet_checkpoint(tags, unet_settings(config.unet)),
        "vae": convert_ldm_vae_checkpoint(tags, vae_settings(config.vae)),
    }
    for network, tensors in translated.items():
        assert tensors == {ours: tags[original] for ours, original in part(names, network).items()}


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        ("unet.conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"),
        ("unet.down_blocks.0.downsamplers.0.conv.bias", "model.diffusion_model.input_blocks.3.0.op.bias"),
        (
            "unet.down_blocks.1.resnets.0.conv_shortcut.weight",
            "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias",
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.bias",
        ),
        ("unet.up_blocks.0.upsamplers.0.conv.weight", "model.diffusion_model.output_blocks.2.1.conv.weight"),
        ("unet.up_blocks.1.upsamplers.0.conv.weight", "model.diffusion_model.output_blocks.5.2.conv.weight"),
        (
            "unet.up_blocks.3.resnets.2.conv_shortcut.weight",
            "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        ),
        ("vae.decoder.up_blocks.0.resnets.2.norm1.weight", "first_stage_model.decoder.up.3.block.2.norm1.weight"),
        ("vae.encoder.mid_block.attentions.0.to_out.0.bias", "first_stage_model.encoder.mid.attn_1.proj_out.bias"),
        ("vae.quant_conv.weight", "first_stage_model.quant_conv.weight"),
        (
            "text_encoder.text_model.final_layer_norm.bias",
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        ),
    ],
)
def test_names_seen_in_published_files(ours, original):
    assert names_of(SD15)[ours] == original


def test_averaged_weights_have_names_without_dots():
    assert ema_name("model.diffusion_model.out.2.bias") == "model_ema.diffusion_modelout2bias"
    unet = [name for name in names_of(SD15).values() if name.startswith("model.")]
    assert len({ema_name(name) for name in unet}) == 686
