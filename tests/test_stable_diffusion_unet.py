"""Proves that the UNet computes what diffusers' UNet2DConditionModel computes: for every size of latents, any length of
text, fractional times, inpainting's nine channels, and other numbers of levels than Stable Diffusion has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_weights import POCKET, random_tensor
from reference_models import assert_parity, one_thread, reference_unet

from training.stable_diffusion.config import UNetConfig, UNetLevel
from training.stable_diffusion.unet import UNet2DConditionModel

ONE_LEVEL = replace(POCKET.unet, levels=(UNetLevel(16, True),), layers_per_block=1)
PLAIN_ON_TOP = replace(POCKET.unet, levels=(UNetLevel(16, False), UNetLevel(24, True)), num_attention_heads=2)
SAME_ROW_TWICE = replace(POCKET.unet, levels=(UNetLevel(16, True),) * 4, layers_per_block=3)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def both(config: UNetConfig):
    with torch.device("meta"):
        model = UNet2DConditionModel(config)
    state = {name: random_tensor(f"unet.{name}", wanted.shape) for name, wanted in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False), reference_unet(config, state)


@pytest.fixture(scope="module")
def pocket():
    return both(POCKET.unet)


def inputs(config: UNetConfig, batch: int, height: int, width: int, length: int):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, config.in_channels, height, width, generator=generator)
    timestep = torch.rand(batch, generator=generator) * 999
    return sample, timestep, torch.randn(batch, length, config.cross_attention_dim, generator=generator)


@pytest.mark.parametrize(
    ("batch", "height", "width", "length"),
    [(1, 8, 8, 77), (2, 16, 24, 154), (2, 13, 15, 77), (1, 9, 4, 231), (3, 3, 5, 1)],
)
def test_equals_diffusers(pocket, batch, height, width, length):
    model, reference = pocket
    arguments = inputs(model.config, batch, height, width, length)
    assert_parity(model(*arguments), reference(*arguments).sample)


@pytest.mark.slow
def test_equals_diffusers_at_65_by_63(pocket):
    model, reference = pocket
    arguments = inputs(model.config, 1, 65, 63, 77)
    assert_parity(model(*arguments), reference(*arguments).sample)


@pytest.mark.parametrize(
    "config", [ONE_LEVEL, PLAIN_ON_TOP, SAME_ROW_TWICE], ids=["one-level", "plain-on-top", "same-rows"]
)
def test_other_structures_equal_diffusers(config):
    model, reference = both(config)
    arguments = inputs(config, 2, 11, 8, 20)
    assert_parity(model(*arguments), reference(*arguments).sample)


def test_inpainting_has_nine_channels():
    config = replace(POCKET.unet, in_channels=9)
    model, reference = both(config)
    arguments = inputs(config, 1, 8, 8, 77)
    assert arguments[0].shape[1] == 9
    assert_parity(model(*arguments), reference(*arguments).sample)


@pytest.mark.parametrize("timestep", [0.0, 0.5, 1.0, 333.25, 998.999, 999.0])
def test_times_with_fractions_equal_diffusers(pocket, timestep):
    model, reference = pocket
    sample, _, text = inputs(model.config, 2, 8, 8, 20)
    times = torch.tensor([timestep, 500.0])
    assert_parity(model(sample, times, text), reference(sample, times, text).sample)


def test_output_has_the_scale_of_noise(pocket):
    """Otherwise the bound above would say little."""
    model, _ = pocket
    assert 0.5 < model(*inputs(model.config, 2, 16, 24, 77)).std() < 2


def test_each_image_has_its_own_time_and_text(pocket):
    model, _ = pocket
    sample, timestep, text = inputs(model.config, 2, 8, 8, 20)
    together = model(sample, timestep, text)
    for i in range(2):
        assert_parity(model(sample[i : i + 1], timestep[i : i + 1], text[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ()}, "levels is empty"),
        ({"norm_num_groups": 5}, "channels 16 must be a multiple of norm_num_groups, 5"),
        ({"num_attention_heads": 3}, "channels 16 must be a multiple of num_attention_heads, 3"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(POCKET.unet, **change)
