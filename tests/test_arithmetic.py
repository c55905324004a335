"""Proves the two rules that no table of weights can hold, clipping and rescaled guidance, against diffusers, and that
the loop applies them: whole trajectories of DDIM and DDPM whose predicted original sample is clipped in every row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_text_bundle as tiny
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from runtime import load
from runtime.arithmetic import clip_original, guided
from runtime.errors import RequestError
from runtime.noise import noise_generator
from runtime.plan import Plan
from runtime.text_to_image import TextToImage

SHAPE = (tiny.CHANNELS, 4, 6)
BOUND = 0.8  # clips about a fifth of all elements, see below


def numbers(seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((3, *SHAPE)) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [0.0, 2.0, 7.5])
@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescaled_guidance_is_diffusers(scale: float, rescale: float) -> None:
    uncond, cond = numbers(0), numbers(1, 3.0)
    combined = torch.from_numpy(uncond).double()
    combined = combined + scale * (torch.from_numpy(cond).double() - combined)
    expected = rescale_noise_cfg(combined, torch.from_numpy(cond).double(), rescale) if rescale else combined
    np.testing.assert_allclose(guided(uncond, cond, scale, rescale), expected.numpy(), rtol=2e-7, atol=1e-7)


def test_each_image_is_rescaled_by_itself() -> None:
    uncond, cond = numbers(0), numbers(1) * np.array([1, 5, 25], np.float32)[:, None, None, None]
    together = guided(uncond, cond, 7.5, 0.7)
    for k in range(3):
        alone = guided(uncond[k : k + 1], cond[k : k + 1], 7.5, 0.7)
        assert alone.tobytes() == together[k : k + 1].tobytes()


def test_only_what_is_clipped_changes_and_it_then_predicts_the_bound() -> None:
    sample, output = numbers(0), numbers(1)
    weights = np.array([1.25, -0.75])  # epsilon at signal 0.8
    original = 1.25 * sample - 0.75 * output
    clipped_output, clipped = clip_original(weights, sample, output, 1.0)
    beyond = np.abs(original) > 1
    assert 0.2 < beyond.mean() < 0.8
    assert (clipped_output == output)[~beyond].all()
    assert not (clipped_output == output)[beyond].any()
    np.testing.assert_allclose(1.25 * sample - 0.75 * clipped_output, np.clip(original, -1, 1), atol=1e-6)
    np.testing.assert_allclose(clipped, np.clip(original, -1, 1), atol=1e-6)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "sample"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    loaded = load(tiny.write(tmp_path_factory.mktemp("models"), request.param), provider="cpu")
    assert isinstance(loaded, TextToImage)
    return loaded


def predicted(x: torch.Tensor, t: int, guidance: float, rescale: float) -> torch.Tensor:
    uncond, cond = (x * (t / (t + 1)) + tiny.shift(prompt) for prompt in ("white", "red circle"))
    output = uncond + guidance * (cond - uncond)
    return rescale_noise_cfg(output, cond, rescale) if rescale else output


def drawn(seed: int) -> Iterator[torch.Tensor]:
    generator = noise_generator("philox", seed)
    while True:
        yield torch.from_numpy(generator.draw(SHAPE)).double()[None]


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_clipped_ddim_is_diffusers_with_use_clipped_model_output(
    pipeline: TextToImage, eta: float, rescale: float
) -> None:
    scheduler = DDIMScheduler(
        trained_betas=np.linspace(1e-3, 0.1, tiny.TRAIN_STEPS),
        num_train_timesteps=tiny.TRAIN_STEPS,
        prediction_type=pipeline.bundle.noise_schedule.prediction_type,
        timestep_spacing="trailing",
        clip_sample=True,
        clip_sample_range=BOUND,
    )
    scheduler.alphas_cumprod = torch.from_numpy(tiny.alphas_cumprod())
    scheduler.set_timesteps(10)
    noise = drawn(5)
    x = next(noise)
    clipped = []
    for t in scheduler.timesteps.tolist():
        output = predicted(x, t, 3.0, rescale)
        variance_noise = next(noise) if eta and t > 9 else torch.zeros_like(x)
        step = scheduler.step(output, t, x, eta, use_clipped_model_output=True, variance_noise=variance_noise)
        x, original = step.prev_sample, step.pred_original_sample
        clipped.append((original.abs() == BOUND).double().mean().item())
    assert max(clipped) > 0.05
    options = {"eta": eta, "clip_sample": BOUND, "guidance_rescale": rescale}
    result = pipeline("red circle", negative_prompt="white", seed=5, num_inference_steps=10, **options)
    np.testing.assert_allclose(result.sample, x.numpy(), rtol=0, atol=2e-5)


def test_clipped_ddpm_is_diffusers_own_rule(pipeline: TextToImage) -> None:
    scheduler = DDPMScheduler(
        trained_betas=np.linspace(1e-3, 0.1, tiny.TRAIN_STEPS),
        num_train_timesteps=tiny.TRAIN_STEPS,
        prediction_type=pipeline.bundle.noise_schedule.prediction_type,
        timestep_spacing="trailing",
        clip_sample=True,
        clip_sample_range=BOUND,
        variance_type="fixed_small",
    )
    scheduler.alphas_cumprod = torch.from_numpy(tiny.alphas_cumprod())
    scheduler.set_timesteps(20)
    noise = drawn(6)
    x = next(noise)
    for t in scheduler.timesteps.tolist():
        mean = posterior_mean(scheduler, predicted(x, t, 3.0, 0.0), t, x)
        previous = scheduler.previous_timestep(t)
        x = mean if previous < 0 else mean + scheduler._get_variance(t).sqrt() * next(noise)
    options = {"sampler": "ddpm", "num_inference_steps": 20, "clip_sample": BOUND}
    result = pipeline("red circle", negative_prompt="white", seed=6, **options)
    np.testing.assert_allclose(result.sample, x.numpy(), rtol=0, atol=2e-5)


def posterior_mean(scheduler: DDPMScheduler, output: torch.Tensor, t: int, x: torch.Tensor) -> torch.Tensor:
    """What diffusers' step makes without its noise: the mean of two steps whose noises are opposite."""
    values = []
    for sign in (1, -1):
        with pytest.MonkeyPatch.context() as patch:
            name = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
            patch.setattr(name, lambda shape, **_: sign * torch.ones(shape, dtype=torch.float64))  # noqa: B023
            values.append(scheduler.step(output, t, x).prev_sample)
    return sum(values) / 2


def test_a_row_that_makes_nothing_of_the_output_cannot_be_clipped(pipeline: TextToImage) -> None:
    value = pipeline.plan(clip_sample=1.0).to_json()
    value["x0_weights"][3] = [1.0, 0.0]
    with pytest.raises(RequestError, match="has clip_sample, but a row whose x0_weights make nothing of the output"):
        Plan.from_json(value)


def test_guidance_that_is_off_is_not_rescaled(pipeline: TextToImage, tmp_path: Path) -> None:
    plain = pipeline("red", seed=1, guidance_scale=1.0)
    assert pipeline("red", seed=1, guidance_scale=1.0, guidance_rescale=0.7).sample.tobytes() == plain.sample.tobytes()
