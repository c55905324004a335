"""Proves the runtime against PyTorch on the committed bundle: same weights, same noise, same picture, in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export.restore import torch_module
from runtime import Pipeline, load
from runtime.noise import noise_generator
from training.ddpm.sampler import guided, sample_ddim, sample_ddpm
from training.noise_schedule import NoiseSchedule

BUNDLE = Path(__file__).parent.parent / "models_onnx" / "mnist-paper"
LABELS, SEED, GUIDANCE = [7, 0, 3], 20, 3.0
ALL_STEPS_LABELS = [7]  # one picture: 400 steps of PyTorch take their time


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load(BUNDLE, provider="cpu")


@pytest.fixture(scope="module")
def schedule(pipeline: Pipeline) -> NoiseSchedule:
    """The schedule as training has it, from the provenance alone; the manifest's table is checked on the way."""
    training = pipeline.bundle.provenance["training"]["config"]["schedule"]
    made = NoiseSchedule(**training)
    np.testing.assert_allclose(made.alphas_cumprod.numpy(), pipeline.bundle.noise_schedule.alphas_cumprod, rtol=1e-15)
    return made


def draws(count: int) -> Iterator[torch.Tensor]:
    """Each image's own draws, stacked: what the runtime uses, as tensors."""
    generators = [noise_generator("philox", SEED + k) for k in range(count)]
    while True:
        yield torch.from_numpy(np.stack([generator.draw((1, 28, 28)) for generator in generators]))


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_all_steps_of_ddpm(pipeline: Pipeline, schedule: NoiseSchedule, variance: str) -> None:
    noise = draws(len(ALL_STEPS_LABELS))
    predict = guided(torch_module(BUNDLE), torch.tensor(ALL_STEPS_LABELS), 10, GUIDANCE)
    *_, expected = sample_ddpm(predict, schedule, next(noise), lambda: next(noise), variance)  # type: ignore[arg-type]
    result = pipeline(ALL_STEPS_LABELS, sampler="ddpm", seed=SEED, guidance_scale=GUIDANCE, variance=variance)
    assert np.abs(result.sample - expected.numpy()).max() <= 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_50_steps_of_ddim(pipeline: Pipeline, schedule: NoiseSchedule, eta: float) -> None:
    noise = draws(len(LABELS))
    predict = guided(torch_module(BUNDLE), torch.tensor(LABELS), 10, GUIDANCE)
    timesteps = list(range(399, -1, -8))
    *_, expected = sample_ddim(predict, schedule, next(noise), timesteps, lambda: next(noise), eta)
    result = pipeline(LABELS, num_inference_steps=50, seed=SEED, guidance_scale=GUIDANCE, eta=eta)
    assert np.abs(result.sample - expected.numpy()).max() <= 1e-4


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_does_not_depend_on_its_batch(pipeline: Pipeline, guidance: float) -> None:
    """Byte for byte: the fp32 kernels sum in the same order whatever the batch."""
    labels = [7, 0, 3, 9, 1, 2, 5]
    together = pipeline(labels, num_inference_steps=6, eta=1.0, seed=SEED, guidance_scale=guidance)
    for batch_size in (1, 2, 5):
        apart = pipeline(
            labels, num_inference_steps=6, eta=1.0, seed=SEED, guidance_scale=guidance, batch_size=batch_size
        )
        assert apart.sample.tobytes() == together.sample.tobytes()


def test_the_same_seed_gives_the_same_bytes_twice(pipeline: Pipeline) -> None:
    first, second = (pipeline([4], num_inference_steps=8, seed=1).sample.tobytes() for _ in range(2))
    assert first == second
