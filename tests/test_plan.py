"""Proves the plan tables: DDIM and DDPM against their papers' formulas by hand, spacings, and strict reading."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from runtime.errors import RequestError
from runtime.plan import NoiseSchedule, Plan, compile_plan, select_timesteps

ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 400))
SCHEDULE = NoiseSchedule(ALPHAS_CUMPROD)
PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


def output_for(x: np.ndarray, eps: np.ndarray, alpha_cumprod: float, prediction_type: str) -> np.ndarray:
    """What a network of this type says when it takes ``eps`` to be the noise in ``x``."""
    s, n = np.sqrt(alpha_cumprod), np.sqrt(1 - alpha_cumprod)
    x0 = (x - n * eps) / s
    return {"epsilon": eps, "v_prediction": s * eps - n * x0, "sample": x0}[prediction_type]


def walk(plan: Plan, start: np.ndarray, noises: list[np.ndarray]) -> list[np.ndarray]:
    """Run a table on the fake network ε = x · t / (t + 1); these samplers look back no further than one row."""
    x, trail = start, []
    for i, t in enumerate(plan.timesteps):
        o = output_for(x, x * t / (t + 1), ALPHAS_CUMPROD[int(t)], plan.prediction_type)
        assert not plan.weights[i, [1, 2, 3, 5, 6, 7]].any()
        x = plan.weights[i, 0] * x + plan.weights[i, 4] * o + plan.weights[i, 8] * noises[i]
        trail.append(x)
    return trail


@pytest.fixture(scope="module")
def noise() -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(50), [rng.standard_normal(50) for _ in range(400)]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 50, 400])
def test_ddim_is_song_et_al_equation_12(noise: Any, steps: int, eta: float, prediction_type: str) -> None:
    start, noises = noise
    plan = compile_plan(NoiseSchedule(ALPHAS_CUMPROD, prediction_type), "ddim", steps, eta=eta)
    x, expected = start, []
    for i, t in enumerate(plan.timesteps.astype(int)):
        before = ALPHAS_CUMPROD[int(plan.timesteps[i + 1])] if i + 1 < steps else 1.0
        after, eps = ALPHAS_CUMPROD[t], x * t / (t + 1)
        sigma = eta * np.sqrt((1 - before) / (1 - after)) * np.sqrt(1 - after / before)
        x0 = (x - np.sqrt(1 - after) * eps) / np.sqrt(after)
        x = np.sqrt(before) * x0 + np.sqrt(1 - before - sigma**2) * eps + sigma * noises[i]
        expected.append(x)
    np.testing.assert_allclose(walk(plan, start, noises), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm_is_ho_et_al_algorithm_2(noise: Any, variance: str, prediction_type: str) -> None:
    start, noises = noise
    plan = compile_plan(NoiseSchedule(ALPHAS_CUMPROD, prediction_type), "ddpm", variance=variance)
    betas = np.linspace(1e-4, 0.02, 400)
    x, expected = start, []
    for i, t in enumerate(reversed(range(400))):
        mean = (x - betas[t] / np.sqrt(1 - ALPHAS_CUMPROD[t]) * x * t / (t + 1)) / np.sqrt(1 - betas[t])
        before = ALPHAS_CUMPROD[t - 1] if t else 1.0
        sigma_squared = betas[t] if variance == "beta" else (1 - before) / (1 - ALPHAS_CUMPROD[t]) * betas[t]
        x = mean + (np.sqrt(sigma_squared) * noises[i] if t else 0)
        expected.append(x)
    np.testing.assert_allclose(walk(plan, start, noises), expected, rtol=0, atol=1e-9)


def test_ddim_with_eta_1_is_ddpm_over_any_steps() -> None:
    one, other = compile_plan(SCHEDULE, "ddim", 13, eta=1.0), compile_plan(SCHEDULE, "ddpm", 13)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-12)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_scales_square_to_one_and_end_clean(sampler: str) -> None:
    plan = compile_plan(SCHEDULE, sampler, 20)
    np.testing.assert_allclose(plan.signal_scales**2 + plan.noise_scales**2, 1, atol=1e-15)
    assert (plan.signal_scales[-1], plan.noise_scales[-1]) == (1, 0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x0_weights_recover_the_original(prediction_type: str) -> None:
    rng = np.random.default_rng(1)
    x0, eps = rng.standard_normal((2, 9))
    plan = compile_plan(NoiseSchedule(ALPHAS_CUMPROD, prediction_type), "ddim", 11)
    for i, t in enumerate(plan.timesteps.astype(int)):
        x = plan.signal_scales[i] * x0 + plan.noise_scales[i] * eps
        o = output_for(x, eps, ALPHAS_CUMPROD[t], prediction_type)
        np.testing.assert_allclose(plan.x0_weights[i] @ [x, o], x0, atol=1e-11)


def test_a_deterministic_sampler_draws_nothing_and_the_last_row_never_does() -> None:
    assert not compile_plan(SCHEDULE, "ddim", 30).weights[:, 8].any()
    drawing = compile_plan(SCHEDULE, "ddpm").weights[:, 8]
    assert drawing[:-1].all()
    assert drawing[-1] == 0


@pytest.mark.parametrize(
    ("spacing", "total", "count", "offset", "expected"),
    [
        ("leading", 1000, 4, 1, [751, 501, 251, 1]),
        ("leading", 1000, 3, 0, [666, 333, 0]),
        ("trailing", 1000, 4, 0, [999, 749, 499, 249]),
        ("trailing", 400, 3, 0, [399, 266, 132]),
        ("linspace", 1000, 4, 0, [999, 666, 333, 0]),
        ("linspace", 1000, 1, 0, [0]),
    ],
)
def test_spacings(spacing: str, total: int, count: int, offset: int, expected: list[int]) -> None:
    assert select_timesteps(total, count, spacing, offset) == expected


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("count", [1, 2, 7, 399, 400])
def test_timesteps_decrease_and_stay_in_range(spacing: str, count: int) -> None:
    steps = select_timesteps(400, count, spacing)
    assert len(steps) == count
    assert all(a > b for a, b in itertools.pairwise(steps))
    assert 0 <= steps[-1] <= steps[0] < 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be a whole number from 1 to 400"),
        ({"num_inference_steps": -3}, "num_inference_steps is -3"),
        ({"num_inference_steps": 401}, "num_inference_steps 401 exceeds num_train_timesteps 400"),
        ({"sampler": "eular"}, "sampler 'eular' is unknown; choose ddim, ddpm"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"eta": -1.0}, "eta is -1.0"),
        ({"eta": 30.0, "num_inference_steps": 10}, "asks for more noise than there is"),
        ({"eta": 1e308, "num_inference_steps": 10}, "eta 1e+308 asks for more noise than there is"),
        ({"eta": 1e308, "num_inference_steps": 1}, "eta 1e+308 asks for more noise than there is"),
        ({"eta": 10**200, "num_inference_steps": 10}, "eta 1e+200 asks for more noise than there is"),
        ({"sampler": "ddpm", "variance": np.zeros(3)}, "variance array([0., 0., 0.]) is unknown"),
        ({"sampler": "ddpm", "variance": "learned"}, "variance 'learned' is unknown; choose posterior or beta"),
        ({"sampler": "ddpm", "eta": 1.0}, "sampler ddpm has no option 'eta'"),
        ({"timestep_spacing": "karras"}, "timestep_spacing 'karras' is unknown"),
        ({"timestep_spacing": np.zeros(3)}, "timestep_spacing array([0., 0., 0.]) is unknown"),
        ({"sampler": "euler", "timestep_spacing": np.zeros(3)}, "timestep_spacing array([0., 0., 0.]) is unknown"),
        ({"sampler": "euler", "sigma_spacing": np.zeros(3)}, "sigma_spacing array([0., 0., 0.]) is unknown"),
        ({"sampler": "euler", "final_sigmas_type": np.zeros(3)}, "final_sigmas_type array([0., 0., 0.]) is unknown"),
    ],
)
def test_bad_arguments_name_the_value_and_the_choice(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as error:
        compile_plan(SCHEDULE, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_offset_that_leaves_the_schedule_is_refused() -> None:
    with pytest.raises(RequestError, match="goes beyond timestep 399"):
        compile_plan(NoiseSchedule(ALPHAS_CUMPROD, timestep_spacing="leading", steps_offset=1), "ddim", 400)


def test_json_keeps_every_digit() -> None:
    plan = compile_plan(SCHEDULE, "ddim", 17, eta=0.3)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again.to_json() == plan.to_json()
    assert again.weights.tobytes() == plan.weights.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [[1.0] * 8] * 5}, "weights must be finite numbers of shape (5, 9)"),
        ({"weights": [[1.0] * 9] * 4}, "weights must be finite"),
        ({"timesteps": [1, 2, 3, 4, float("nan")]}, "timesteps must be finite"),
        ({"timesteps": []}, "has no rows"),
        ({"timesteps": ["a"] * 5}, "timesteps must be finite"),
        ({"guidance": [1, 1, 1, 1, 2]}, "guidance must lie in [0, 1]"),
        ({"prediction_type": "score"}, "prediction_type 'score' is unknown"),
        ({"initial_scale": None}, "initial_scale is None"),
        ({"surprise": 1}, "unknown keys ['surprise']"),
        ({"signal_scales": [1.0] * 6}, "squares of the plan's signal_scales and noise_scales must sum to one"),
        ({"weights": [[1.0] * 9] * 5}, "row 0 of the plan's weights uses samples or outputs from before its first row"),
        ({"sampler": 3}, "sampler must be a string"),
        ({"options": [1]}, "its options an object"),
        ({"options": {"schedule": 1}}, "its options an object without"),
        ({"clip_sample": 0}, "the plan's clip_sample is 0; it must be a number above 0, or None"),
        ({"clip_sample": -1.5}, "the plan's clip_sample is -1.5"),
        ({"clip_sample": True}, "the plan's clip_sample is True"),
        ({"guidance_rescale": 1.5}, "the plan's guidance_rescale is 1.5; it must be a number from 0 to 1"),
        ({"guidance_rescale": -0.1}, "the plan's guidance_rescale is -0.1"),
        ({"guidance_rescale": None}, "the plan's guidance_rescale is None"),
        ({"num_inference_steps": "5"}, "the plan's num_inference_steps is '5'; it must be a whole number"),
        ({"num_inference_steps": 0}, "the plan's num_inference_steps is 0"),
        ({"num_inference_steps": 4.5}, "the plan's num_inference_steps is 4.5"),
    ],
)
def test_a_malformed_plan_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    value = compile_plan(SCHEDULE, "ddim", 5).to_json() | change
    with pytest.raises(RequestError) as error:
        Plan.from_json(value)
    assert message in str(error.value)


def test_a_plan_without_a_key_is_refused() -> None:
    value = compile_plan(SCHEDULE, "ddim", 5).to_json()
    del value["x0_weights"]
    with pytest.raises(RequestError, match=r"lacks \['x0_weights'\]"):
        Plan.from_json(value)
