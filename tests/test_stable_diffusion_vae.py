"""Proves that the VAE computes what diffusers' AutoencoderKL computes, both ways, and draws nothing at random."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_weights import POCKET, random_tensor
from reference_models import assert_parity, one_thread, reference_vae

from training.stable_diffusion.config import SD15, VAEConfig
from training.stable_diffusion.vae import AutoencoderKL


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def both(config: VAEConfig):
    with torch.device("meta"):
        model = AutoencoderKL(config)
    state = {name: random_tensor(f"vae.{name}", wanted.shape) for name, wanted in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False), reference_vae(config, state)


@pytest.fixture(scope="module")
def pocket():
    return both(POCKET.vae)


def pixels(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def latents(batch: int, height: int, width: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0)) * 5


@pytest.mark.parametrize("size", [(1, 32, 32), (2, 44, 36), (1, 4, 60), (1, 30, 33)])
def test_encoder_equals_diffusers(pocket, size):
    model, reference = pocket
    assert_parity(model.encode(pixels(*size)), reference.encode(pixels(*size)).latent_dist.parameters)


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 11, 9), (1, 1, 15)])
def test_decoder_equals_diffusers(pocket, size):
    model, reference = pocket
    assert_parity(model.decode(latents(*size)), reference.decode(latents(*size)).sample)


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(block_out_channels=(16,), layers_per_block=1, norm_num_groups=8),
        VAEConfig(block_out_channels=(8, 16, 16, 24), layers_per_block=2, norm_num_groups=4, latent_channels=3),
    ],
    ids=["factor-1", "factor-8"],
)
def test_other_structures_equal_diffusers(config):
    model, reference = both(config)
    image = pixels(1, 16, 24)
    assert_parity(model.encode(image), reference.encode(image).latent_dist.parameters)
    small = latents(1, 3, 2, config.latent_channels)
    assert_parity(model.decode(small), reference.decode(small).sample)


def test_factor_is_pixels_per_latent(pocket):
    model, _ = pocket
    assert (POCKET.vae.factor, SD15.vae.factor) == (4, 8)
    assert model.encode(pixels(1, 32, 24)).shape == (1, 8, 8, 6)
    assert model.decode(latents(1, 8, 6)).shape == (1, 3, 32, 24)


def test_nothing_is_random_and_inputs_stay_as_they_are(pocket):
    model, _ = pocket
    image, small = pixels(1, 16, 16), latents(1, 4, 4)
    assert torch.equal(model.encode(image), model.encode(image))
    assert torch.equal(model.decode(small), model.decode(small))
    assert torch.equal(image, pixels(1, 16, 16))
    assert torch.equal(small, latents(1, 4, 4))


def test_outputs_have_the_scale_of_images_and_latents(pocket):
    """Otherwise the bound above would say little."""
    model, _ = pocket
    assert 0.3 < model.decode(latents(1, 8, 8)).std() < 1.5
    assert 2 < model.encode(pixels(1, 32, 32))[:, :4].std() < 10


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="block_out_channels 24 must be a multiple of norm_num_groups, 16"):
        replace(POCKET.vae, norm_num_groups=16)
