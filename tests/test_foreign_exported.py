"""Proves that real exports in the conventions of diffusers and of optimum draw what diffusers draws.

The folders are written by torch.onnx.export from transformers' and diffusers' own networks, reduced in size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from foreign_folders import CONFIG, SCHEDULER, Reference, reference, write_diffusers, write_optimum
from reference_models import one_thread
from transformers import CLIPTokenizer

from runtime import Pipeline, load
from runtime.bundle import Bundle, open_bundle
from runtime.errors import RequestError
from runtime.foreign.scheduler import read_scheduler
from runtime.session import Session, as_inputs
from runtime.vae import encode

pytestmark = pytest.mark.slow

PROMPT, NEGATIVE = "A photo of a cat's 24 hats, naïve & détaillé", "blurry"
SCALING_FACTORS = {"diffusers": 0.18215, "optimum": 0.5}


@dataclass(frozen=True)
class Export:
    convention: str
    folder: Path
    networks: Reference
    bundle: Bundle
    pipeline: Pipeline


@pytest.fixture(scope="module")
def networks() -> Iterator[Reference]:
    with one_thread():
        yield reference()


@pytest.fixture(scope="module", params=["diffusers", "optimum"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, networks: Reference) -> Export:
    write = {"diffusers": write_diffusers, "optimum": write_optimum}[request.param]
    folder = write(tmp_path_factory.mktemp("foreign") / request.param, networks)
    return Export(request.param, folder, networks, open_bundle(folder), load(folder, "cpu", threads=1))


def run(export: Export, role: str, **inputs: np.ndarray) -> torch.Tensor:
    session = Session(export.bundle, export.bundle.graph(role), threads=1)
    (output,) = session.run(**as_inputs(session, inputs)).values()
    return torch.from_numpy(output)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_every_network_takes_the_contracts_inputs(export: Export) -> None:
    ids = np.arange(2 * 77).reshape(2, 77) * 300
    extra, skip = np.zeros((1, 32), np.float32), np.array(0)
    states = run(export, "text_encoder", input_ids=ids, extra_embeddings=extra, clip_skip=skip)
    expected = export.networks.text_encoder(torch.from_numpy(ids)).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-4)

    sample, states = normal(2, 4, 24, 16), states.numpy()
    out = run(export, "unet", sample=sample, timestep=np.full(2, 981, np.float32), encoder_hidden_states=states)
    expected = export.networks.unet(torch.from_numpy(sample), 981, torch.from_numpy(states)).sample
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)

    decoded = run(export, "vae_decoder", latent_sample=sample[:1])
    torch.testing.assert_close(
        decoded, export.networks.vae.decode(torch.from_numpy(sample[:1])).sample, atol=1e-4, rtol=0
    )


def test_the_encoders_mean_comes_out_scaled(export: Export) -> None:
    """optimum's graph gives the mean; diffusers' draws inside, so there it is near the mean, as far as it scatters."""
    image = normal(3, 48, 32)
    session = Session(export.bundle, export.bundle.graph("vae_encoder"), threads=1)
    latents = encode(session, image, 2.0, 8)
    posterior = export.networks.vae.encode(torch.from_numpy(image)[None]).latent_dist
    distance = np.abs(latents / 2 - posterior.mean[0].numpy())
    if export.convention == "optimum":
        assert distance.max() < 1e-4
    else:
        assert 0 < np.sqrt(np.mean((distance / posterior.std[0].numpy()) ** 2)) < 1.2


def reference_pipeline(export: Export, scheduler: str) -> StableDiffusionPipeline:
    export.networks.vae.register_to_config(scaling_factor=SCALING_FACTORS[export.convention])
    tokenizer = CLIPTokenizer.from_pretrained(export.folder / "tokenizer")
    made = {"pndm": PNDMScheduler, "ddim": DDIMScheduler}[scheduler].from_config(SCHEDULER)
    parts = {"text_encoder": export.networks.text_encoder, "unet": export.networks.unet, "vae": export.networks.vae}
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=made,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("sampler", ["pndm", "ddim"])
def test_a_picture_is_that_of_diffusers(export: Export, sampler: str) -> None:
    """The same latents to 1e-3 of their scale, with the scheduler's configuration read from the folder."""
    result = export.pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=64,
        height=128,
        sampler=sampler,
        num_inference_steps=6,
        guidance_scale=5.0,
        seed=3,
        rng="torch",
    )
    latents = reference_pipeline(export, sampler)(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=64,
        height=128,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="latent",
    ).images
    assert result.images.shape == (1, 128, 64, 3)
    np.testing.assert_allclose(result.sample, latents.numpy(), rtol=0, atol=1e-3 * float(latents.abs().max()))
    image = export.networks.vae.decode(latents / SCALING_FACTORS[export.convention]).sample
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(result.images.astype(int) - expected).max() <= 2


def test_the_ids_are_those_of_transformers(export: Export) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(export.folder / "tokenizer")
    prompts = ["", PROMPT, "  two\n\tspaces  ", "3.14159 it's I'LL we've", "ﬁ é é 한국어 🐱‍👤 ½", "<|endoftext|> x"]
    for prompt in prompts:
        expected = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
        assert export.pipeline.tokenizer.ids(prompt)[0].tolist() == expected, prompt


def test_clip_skip_is_refused_before_anything_is_drawn(export: Export) -> None:
    with pytest.raises(RequestError, match=r"clip_skip is 1; text_encoder/model\.onnx comes from elsewhere"):
        export.pipeline(PROMPT, clip_skip=1, num_inference_steps=1)


def test_fractional_timesteps_are_rounded_aloud_where_the_graph_takes_whole_ones(export: Export) -> None:
    def draw() -> None:
        export.pipeline(PROMPT, sampler="euler_karras", num_inference_steps=4, width=64, height=64, seed=0)

    if export.convention == "optimum":
        with pytest.warns(UserWarning, match="takes whole timesteps only"):
            draw()
    else:
        with warnings.catch_warnings(action="error"):
            draw()


def test_the_folders_configuration_is_read(export: Export) -> None:
    latents, defaults = export.bundle.latents, export.bundle.defaults
    assert latents is not None
    assert (latents.factor, latents.scaling_factor) == (8, SCALING_FACTORS[export.convention])
    side = 512 if export.convention == "diffusers" else 128
    assert (defaults.sampler, defaults.width, defaults.height) == ("pndm", side, side)
    alphas_cumprod = DDIMScheduler.from_config(SCHEDULER).alphas_cumprod.numpy()
    np.testing.assert_allclose(export.bundle.noise_schedule.alphas_cumprod, alphas_cumprod, rtol=2e-5)
    assert export.bundle.noise_schedule.final_alpha_cumprod == pytest.approx(float(alphas_cumprod[0]))
    assert export.bundle.conditioning.embedding_dim == CONFIG.unet.cross_attention_dim


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_noise_levels_are_those_of_diffusers(beta_schedule: str, zero_terminal_snr: bool) -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": beta_schedule, "num_train_timesteps": 500}
    config |= {"rescale_betas_zero_snr": zero_terminal_snr, "prediction_type": "v_prediction"}
    schedule, _ = read_scheduler({"_class_name": "DDIMScheduler"} | config, "scheduler_config.json")
    expected = DDIMScheduler(**config).alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.alphas_cumprod, expected, rtol=5e-5, atol=1e-7)
    assert schedule.prediction_type == "v_prediction"
    assert schedule.alphas_cumprod[-1] == pytest.approx(0 if zero_terminal_snr else expected[-1], abs=1e-5)
