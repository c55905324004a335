"""Proves the reference samplers: DDIM with eta 1 is DDPM, and both solve models of which the solution is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from training.ddpm.diffusion import q_sample
from training.ddpm.sampler import guided, sample_ddim, sample_ddpm
from training.noise_schedule import NoiseSchedule, PredictionType, rescale_zero_terminal_snr

SCHEDULE = NoiseSchedule(30, 0.005, 0.25)
EVERY_STEP = range(SCHEDULE.num_train_timesteps - 1, -1, -1)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fresh(shape: tuple[int, ...], seed: int) -> Callable[[], Tensor]:
    seeds = itertools.count(seed)
    return lambda: normal(*shape, seed=next(seeds))


def last(samples: Iterator[Tensor]) -> Tensor:
    *_, sample = samples
    return sample


def crooked(sample: Tensor, t: int) -> Tensor:
    """A noise prediction that is anything but linear, so that no agreement comes about by cancelling."""
    return torch.tanh(1.3 * sample + 0.05 * t) + 0.1 * sample.square().mean(dim=(1, 2, 3), keepdim=True)


def test_ddim_with_eta_1_through_all_steps_is_ddpm() -> None:
    shape = (4, 1, 5, 5)
    start = normal(*shape, seed=0)
    ddpm = list(sample_ddpm(crooked, SCHEDULE, start, fresh(shape, 1)))
    ddim = list(sample_ddim(crooked, SCHEDULE, start, EVERY_STEP, fresh(shape, 1), eta=1.0))
    assert len(ddpm) == len(ddim) == SCHEDULE.num_train_timesteps
    for mine, theirs in zip(ddim, ddpm, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    assert (last(sample_ddim(crooked, SCHEDULE, start, EVERY_STEP)) - ddpm[-1]).abs().max() > 0.1


def impulse_response(sample: Callable[[Tensor, Callable[[], Tensor]], Tensor], draws: int) -> Tensor:
    """What the start and each of the fresh draws contribute to the result of a linear sampler, (1 + draws,).

    Image k of the batch is given a 1 in place k of all the noise there is, and zeros elsewhere.
    """
    basis = torch.eye(1 + draws, dtype=torch.float64)
    columns = iter(basis.unbind(1))
    return sample(next(columns)[:, None, None, None], lambda: next(columns)[:, None, None, None]).flatten()


def of_unit_normal_data(sample: Tensor, t: int) -> Tensor:
    """The best prediction there is when the data are N(0, 1): E[ε | x_t] = √(1 - ᾱ_t) x_t."""
    return (1 - SCHEDULE.alphas_cumprod[t]).sqrt() * sample


def test_with_variance_beta_ddpm_keeps_unit_normal_data() -> None:
    """β_t is the right variance for data of N(0, I) (Ho et al. 2020, section 3.2): it stays 1, exactly.

    With β̃_t, which is right for data of a single point, it has less.
    """

    def variance(kind: str) -> float:
        draws = SCHEDULE.num_train_timesteps - 1
        response = impulse_response(
            lambda start, noise: last(sample_ddpm(of_unit_normal_data, SCHEDULE, start, noise, kind)),  # type: ignore[arg-type]
            draws,
        )
        return float(response.square().sum())

    # The last step adds no noise and shrinks what is there by √α_0.
    assert variance("beta") == pytest.approx(float(SCHEDULE.alphas[0]), rel=1e-12)
    assert variance("posterior") < 0.95


def of_one_image(image: Tensor) -> Callable[[Tensor, int], Tensor]:
    """The best prediction when every datum is the same image: all that is not the image is noise."""

    def predict(sample: Tensor, t: int) -> Tensor:
        kept = SCHEDULE.alphas_cumprod[t]
        return (sample - kept.sqrt() * image) / (1 - kept).sqrt()

    return predict


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("timesteps", [[29], [29, 11], [29, 20, 10, 1], list(EVERY_STEP)], ids=len)
def test_ddim_finds_the_one_image_in_any_number_of_steps(timesteps: list[int], eta: float) -> None:
    image, start = normal(1, 3, 4, 4, seed=2), normal(5, 3, 4, 4, seed=3)
    found = last(sample_ddim(of_one_image(image), SCHEDULE, start, timesteps, fresh((5, 3, 4, 4), 4), eta))
    torch.testing.assert_close(found, image.expand(5, -1, -1, -1), rtol=0, atol=1e-12)


def test_ddim_without_noise_stays_on_the_line_from_noise_to_image() -> None:
    """Every sample on the way is x_t of the same image and the same noise (Song et al. 2021, section 4.1)."""
    image, noise = normal(1, 1, 4, 4, seed=5), normal(1, 1, 4, 4, seed=6)
    timesteps = [29, 17, 6, 2]
    start = q_sample(SCHEDULE, image, torch.tensor([29]), noise)
    walked = sample_ddim(of_one_image(image), SCHEDULE, start, timesteps)
    for sample, t in zip(walked, timesteps[1:], strict=False):
        torch.testing.assert_close(sample, q_sample(SCHEDULE, image, torch.tensor([t]), noise), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_noise_that_ddim_adds(eta: float) -> None:
    """A step from t to s adds σ² = η² (1 - ᾱ_s) / (1 - ᾱ_t) (1 - ᾱ_t / ᾱ_s) (Song et al. 2021, eq. 16)."""
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    ones = torch.ones_like(zero)
    first = next(sample_ddim(lambda x, t: torch.zeros_like(x), SCHEDULE, zero, [22, 9], lambda: ones, eta))
    kept, kept_more = float(SCHEDULE.alphas_cumprod[22]), float(SCHEDULE.alphas_cumprod[9])
    expected = eta * math.sqrt((1 - kept_more) / (1 - kept)) * math.sqrt(1 - kept / kept_more)
    assert float(first) == pytest.approx(expected, rel=1e-12)


def probability_flow_error(num_inference_steps: int) -> float:
    """How far DDIM ends from the exact solution for Gaussian data N(0.4, 0.6²), for which it is known.

    The best prediction is linear, and the probability flow keeps each sample's place in the distribution: with mean m_t
    and deviation s_t of x_t, (x_t - m_t) / s_t never changes (Song et al. 2021b, section 4.3).
    """
    schedule, mean, deviation = NoiseSchedule(1000, 1e-4, 0.02), 0.4, 0.6

    def spread(t: int) -> Tensor:
        kept = schedule.alphas_cumprod[t]
        return (kept * deviation**2 + 1 - kept).sqrt()

    def predict(sample: Tensor, t: int) -> Tensor:
        kept = schedule.alphas_cumprod[t]
        return (1 - kept).sqrt() * (sample - kept.sqrt() * mean) / spread(t) ** 2

    start = torch.linspace(-3, 3, 13, dtype=torch.float64).reshape(-1, 1, 1, 1)
    timesteps = [999 - k * 1000 // num_inference_steps for k in range(num_inference_steps)]
    exact = mean + deviation * (start - schedule.alphas_cumprod[-1].sqrt() * mean) / spread(999)
    return float((last(sample_ddim(predict, schedule, start, timesteps)) - exact).abs().max())


def test_ddim_converges_to_the_probability_flow_at_first_order() -> None:
    """Twice the steps, half the error; with a wrong coefficient anywhere it would stop falling."""
    errors = [probability_flow_error(count) for count in (50, 100, 200, 400)]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.4
    assert errors[-1] < 0.02


def label_as_noise(sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
    """A network whose answer is the label, so that guidance can be read off."""
    return class_labels.to(sample.dtype)[:, None, None, None].expand_as(sample)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_uncond_plus_scale_times_the_difference(scale: float) -> None:
    """Labels 2 and 7 of ten classes, null class 10."""
    predict = guided(label_as_noise, torch.tensor([2, 7]), null_class=10, guidance_scale=scale)
    predicted = predict(torch.zeros(2, 1, 2, 2), 5)
    assert predicted[:, 0, 0, 0].tolist() == pytest.approx([10 + scale * (2 - 10), 10 + scale * (7 - 10)])


@pytest.mark.parametrize(("scale", "expected"), [(1.0, [[4, 5]]), (2.0, [[10, 10, 4, 5]])])
def test_guidance_asks_once_and_without_the_null_class_where_it_is_off(scale: float, expected: list[list[int]]) -> None:
    asked = []

    def record(sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        assert len(sample) == len(timestep) == len(class_labels)
        assert timestep.tolist() == [3.0] * len(sample)
        asked.append(class_labels.tolist())
        return sample

    guided(record, torch.tensor([4, 5]), null_class=10, guidance_scale=scale)(torch.zeros(2, 1, 2, 2), 3)
    assert asked == expected


class Rescaled:
    """A schedule at whose last timestep nothing of the signal is left."""

    alphas_cumprod = rescale_zero_terminal_snr(SCHEDULE.alphas_cumprod)


def scales(schedule: NoiseSchedule | Rescaled, t: int) -> tuple[Tensor, Tensor]:
    return schedule.alphas_cumprod[t].sqrt(), (1 - schedule.alphas_cumprod[t]).sqrt()


def saying(prediction_type: PredictionType, schedule: NoiseSchedule | Rescaled) -> Callable[[Tensor, int], Tensor]:
    """A network that takes the same image to be in x_t, whichever way it says so."""

    def predict(sample: Tensor, t: int) -> Tensor:
        signal, noise = scales(schedule, t)
        original = crooked(sample, t)
        epsilon = (sample - signal * original) / noise
        return {"sample": original, "epsilon": epsilon, "v_prediction": signal * epsilon - noise * original}[
            prediction_type
        ]

    return predict


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddim_is_the_same_whatever_the_network_predicts(prediction_type: PredictionType, eta: float) -> None:
    start, timesteps = normal(3, 1, 4, 4, seed=0), [29, 20, 11, 2]

    def walk(kind: PredictionType) -> list[Tensor]:
        predict, noise = saying(kind, SCHEDULE), fresh((3, 1, 4, 4), 1)
        return list(sample_ddim(predict, SCHEDULE, start, timesteps, noise, eta, kind, final_alpha_cumprod=0.98))

    for mine, expected in zip(walk(prediction_type), walk("sample"), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_ddim_starts_where_no_signal_is_left() -> None:
    start, schedule = normal(3, 1, 4, 4, seed=0), Rescaled()
    v, sample = (
        list(sample_ddim(saying(kind, schedule), schedule, start, [29, 15, 4], prediction_type=kind))
        for kind in ("v_prediction", "sample")
    )
    for mine, expected in zip(v, sample, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)
    assert v[-1].isfinite().all()


def test_ddim_ends_at_the_level_that_is_asked_for() -> None:
    start, final = normal(3, 1, 4, 4, seed=0), 0.9
    found = last(sample_ddim(crooked, SCHEDULE, start, [7], final_alpha_cumprod=final))
    signal, noise = scales(SCHEDULE, 7)
    epsilon = crooked(start, 7)
    expected = math.sqrt(final) * (start - noise * epsilon) / signal + math.sqrt(1 - final) * epsilon
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_ddim_that_draws_needs_noise() -> None:
    with pytest.raises(ValueError, match=r"eta 0\.5 draws fresh noise; pass noise="):
        last(sample_ddim(crooked, SCHEDULE, normal(1, 1, 2, 2, seed=0), [20, 10], eta=0.5))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samples_stay_on_their_device(sampler: str) -> None:
    """The meta device computes nothing but refuses, as a GPU does, to be mixed with tensors that lie elsewhere."""
    start = torch.empty(4, 1, 28, 28, device="meta")
    steps = (
        sample_ddim(lambda sample, t: sample * 0.1, SCHEDULE, start, [9, 5], lambda: torch.randn_like(start), 1.0)
        if sampler == "ddim"
        else sample_ddpm(lambda sample, t: sample * 0.1, SCHEDULE, start, lambda: torch.randn_like(start))
    )
    assert {sample.device.type for sample in steps} == {"meta"}
