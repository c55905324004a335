"""Proves that the map from latents to colours is the decoder's where that is linear, the best there is elsewhere, and
read as strictly as the rest of the manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_samples
import tiny_text_bundle
import torch
import torch.nn.functional as F
from random_weights import POCKET, random_state
from torch import Tensor

from export.preview import SIDE, fit_preview, pictures
from runtime import load
from runtime.bundle import Latents, PreviewMap, open_bundle
from runtime.errors import BundleError
from runtime.preview import preview_latents
from training.stable_diffusion.checkpoint.networks import without_weights
from training.stable_diffusion.config import VAEConfig
from training.stable_diffusion.vae import AutoencoderKL


class LinearVAE(AutoencoderKL):
    """Colours' mean over each latent's area, mixed; the decoder mixes them back. The fourth channel says nothing."""

    MIXING = torch.tensor([[0.5, 0.25, 0.0], [0.0, 1.0, -0.5], [0.25, 0.0, 2.0]])
    OFFSET = torch.tensor([0.3, -0.1, 0.2])

    def encode(self, sample: Tensor) -> Tensor:
        means = F.avg_pool2d(sample, self.config.factor) - self.OFFSET[:, None, None]
        mixed = torch.einsum("bchw,cz->bzhw", means, self.MIXING)
        return F.pad(mixed, (0, 0, 0, 0, 0, 5))

    def decode(self, latent_sample: Tensor) -> Tensor:
        means = torch.einsum("bzhw,zc->bchw", latent_sample[:, :3], self.MIXING.inverse())
        return F.interpolate(means + self.OFFSET[:, None, None], scale_factor=self.config.factor)


def test_a_linear_decoder_is_found_exactly() -> None:
    vae = LinearVAE(VAEConfig(block_out_channels=(4, 4, 4), norm_num_groups=4, scaling_factor=0.25))
    fitted = fit_preview(vae)
    assert fitted is not None
    expected = np.vstack([LinearVAE.MIXING.inverse().numpy() / 0.25, np.zeros(3)])
    np.testing.assert_allclose(fitted["weights"], expected, atol=2e-6)  # rounded to six decimals
    np.testing.assert_allclose(fitted["biases"], LinearVAE.OFFSET, atol=2e-6)
    assert fit_preview(vae) == fitted


def random_vae() -> AutoencoderKL:
    networks = without_weights(POCKET)
    networks.load_state_dict(random_state(POCKET), assign=True)
    return networks.vae.eval()


def test_a_decoder_of_numbers_that_are_not_finite_has_no_map() -> None:
    vae = random_vae()
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(torch.nan)
    assert fit_preview(vae) is None


def test_pictures_fill_the_cube_of_colours() -> None:
    drawn = pictures(SIDE * 8)
    assert drawn.shape == (8, 3, 64, 64)
    assert drawn.abs().max() <= 1
    octants = (drawn.permute(0, 2, 3, 1).reshape(-1, 3) > 0).long() @ torch.tensor([4, 2, 1])
    assert torch.bincount(octants, minlength=8).min() > 64 * 64 / 2


@pytest.mark.slow
def test_an_exported_map_is_the_best_one_for_the_exported_graphs() -> None:
    """Another way to the same numbers: the graphs instead of the modules, normal equations instead of lstsq."""
    pipeline = load(text_samples.sample_bundle(), provider="cpu")
    latents = pipeline.bundle.latents
    assert latents is not None
    assert latents.preview is not None
    networks, drawn = pipeline.networks, pictures(SIDE * latents.factor).numpy()
    means = networks.session("vae_encoder").run(sample=drawn)["latent_parameters"][:, : latents.channels]
    decoded = networks.session("vae_decoder").run(latent_sample=means)["sample"].clip(-1, 1)
    blocks = decoded.reshape(len(drawn), 3, SIDE, latents.factor, SIDE, latents.factor).mean((3, 5))
    x = np.moveaxis(means, 1, -1).reshape(-1, latents.channels).astype(np.float64) * latents.scaling_factor
    y = np.moveaxis(blocks, 1, -1).reshape(-1, 3)
    inputs = np.column_stack([x, np.ones(len(x))])
    expected = np.linalg.solve(inputs.T @ inputs, inputs.T @ y)
    np.testing.assert_allclose(np.vstack([latents.preview.weights, latents.preview.biases]), expected, atol=1e-4)


# --- read and used --------------------------------------------------------------------------------------------------


def test_a_preview_is_what_the_map_says() -> None:
    weights = ((1.0, 0.0, 0.0), (0.0, 0.5, 0.5))
    latents = Latents(2, 8, 1.0, PreviewMap(weights, (0.0, 0.25, -2.0)))
    sample = np.zeros((2, 2, 1, 3), np.float32)
    sample[0, 0, 0] = [-1, 0.5, 9]
    sample[1, 1, 0] = [1, -0.5, np.inf]
    drawn = preview_latents(latents, sample)
    assert drawn is not None
    assert drawn.dtype == np.uint8
    assert drawn.tolist() == [
        [[[0, 159, 0], [191, 159, 0], [255, 159, 0]]],
        [[[128, 223, 0], [128, 128, 0], [128, 255, 255]]],
    ]


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Latents | None:
    bundle = tiny_text_bundle.write(folder)
    return open_bundle(tiny_text_bundle.changed(bundle, folder, lambda m: change(m["latents"]))).latents


@pytest.mark.parametrize("change", [lambda m: m.pop("preview"), lambda m: m.update(preview=None)])
def test_a_bundle_without_a_map_is_read_and_has_no_preview(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    latents = changed(tmp_path, change)
    assert latents is not None
    assert latents.preview is None
    assert preview_latents(latents, np.zeros((1, 4, 2, 2), np.float32)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(preview=[]), "preview must be dict or NoneType, not list"),
        (lambda m: m["preview"].pop("biases"), "latents: preview lacks the key 'biases'"),
        (lambda m: m["preview"].update(colour=1), "latents: preview has unknown keys: colour"),
        (lambda m: m["preview"]["weights"].pop(), "preview has 3 rows of weights for 4 channels"),
        (lambda m: m["preview"]["weights"][0].pop(), "preview: weights must be three finite numbers"),
        (lambda m: m["preview"]["weights"].insert(0, 1), "preview: weights must be three finite numbers"),
        (lambda m: m["preview"].update(biases=[0, 0, 10**400]), "preview: biases must be three finite numbers"),
        (lambda m: m["preview"].update(biases=[0, 0, True]), "preview: biases must be three finite numbers"),
    ],
)
def test_a_wrong_map_is_one_clear_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(BundleError) as error:
        changed(tmp_path, change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
