"""Proves what holds of every sampler by the algebra of its table, and that the names people know find their sampler."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runtime.errors import RequestError
from runtime.plan import PREDICTION_TYPES, SAMPLERS, NoiseSchedule, Plan, compile_plan, find_sampler, sampler_options
from runtime.samplers import SUFFIXES
from runtime.samplers.rows import NOISE, aged, unit

SCHEDULE = NoiseSchedule(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
SHORT = NoiseSchedule(np.cumprod(1 - np.linspace(1e-4, 0.02, 400)))

PLAIN: dict[str, Any] = {}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ddim": [{"eta": 1.0}],
    "ddpm": [{"variance": "beta"}],
    "euler_ancestral": [{"eta": 0.5}],
    "dpm2_ancestral": [{"eta": 0.5}],
    "dpmpp_3m_sde": [{"diffusers_sign": True}],
    "unipc": [{"solver_order": 1}, {"solver_order": 3}],
    "deis": [{"solver_order": 1}, {"solver_order": 3}],
    "lms": [{"solver_order": 2}],
    "sa_solver": [{"predictor_order": 3, "corrector_order": 4, "tau": 0.5}, {"tau": 0.0}],
    "tcd": [{"eta": 0.0}, {"eta": 1.0}],
}
LAID_OUT = [
    {"sigma_spacing": "karras"},
    {"sigma_spacing": "exponential", "final_sigmas_type": "sigma_min"},
    {"sigma_spacing": "beta", "final_sigmas_type": "zero"},
    {"sigma_spacing": "align_your_steps"},
    {"final_sigmas_type": "sigma_min"},
    {"final_sigmas_type": "zero", "timestep_spacing": "linspace"},
    {"sigma_spacing": "karras", "sigma_min": 0.1, "sigma_max": 8.0, "timestep_spacing": "leading"},
]
ALL = [
    (sampler, options)
    for sampler, found in SAMPLERS.items()
    for options in [
        PLAIN,
        *VARIANTS.get(sampler, []),
        *(LAID_OUT if "sigma_spacing" in sampler_options(sampler) else []),
    ]
]


def journey(plan: Plan) -> list[np.ndarray]:
    """x_0 .. x_N where the network always predicts the same original, each as shares of what it is made of.

    That is the original (element 0), the noise at the start (1), and the draw of row i (2 + i).
    """
    width = 2 + len(plan)
    basis = np.eye(width)
    samples = [plan.signal_scales[0] * basis[0] + plan.noise_scales[0] * basis[1]]
    outputs: list[np.ndarray] = []
    for i, weights in enumerate(plan.weights):
        s, n = plan.signal_scales[i], plan.noise_scales[i]
        eps = (samples[0] - s * basis[0]) / n
        outputs.insert(0, {"epsilon": eps, "v_prediction": s * eps - n * basis[0]}.get(plan.prediction_type, basis[0]))
        terms = [*samples[:4], *[None] * (4 - len(samples[:4])), *outputs[:4], *[None] * (4 - len(outputs[:4]))]
        used = [weight * term for weight, term in zip(weights, [*terms, basis[2 + i]], strict=True) if weight]
        samples.insert(0, np.sum(used, axis=0))
    return samples[::-1]


# PNDM averages what the network says, and v of one image says another thing at every level.
@pytest.mark.parametrize(
    ("sampler", "options", "prediction_type"),
    [
        (*case, prediction_type)
        for case in ALL
        for prediction_type in PREDICTION_TYPES
        if (case[0], prediction_type) != ("pndm", "v_prediction")
    ],
    ids=str,
)
def test_a_single_image_is_drawn_exactly(sampler: str, options: dict[str, Any], prediction_type: str) -> None:
    """Where the network knows the original, x_i is signal_scale · original + noise_scale · unit noise in every row."""
    schedule = NoiseSchedule(SCHEDULE.alphas_cumprod, prediction_type)
    # LCM's boundary condition keeps 7e-6 of the sample at its lowest timestep.
    tolerance = 1e-5 if sampler == "lcm" else 1e-9
    for count in (1, 4, 16):
        plan = compile_plan(schedule, sampler, count, **options)
        shares = np.array(journey(plan))
        np.testing.assert_allclose(shares[:, 0], plan.signal_scales, rtol=0, atol=tolerance)
        if options.get("variance") != "beta":  # more noise than there is in the posterior of one image
            np.testing.assert_allclose(np.linalg.norm(shares[:, 1:], axis=1), plan.noise_scales, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("sampler", "options"), ALL, ids=str)
def test_a_plan_is_remade_from_what_it_says_of_itself(sampler: str, options: dict[str, Any]) -> None:
    plan = compile_plan(SCHEDULE, sampler, 9, **options)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    remade = compile_plan(SCHEDULE, again.sampler, again.num_inference_steps, **again.options)
    assert remade.to_json() == plan.to_json()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_and_draws(sampler: str) -> None:
    rows = {"pndm": 11, "heun": 19, "dpm2": 19, "dpm2_ancestral": 19, "dpmpp_sde": 19}.get(sampler, 10)
    drawing = {"ddpm", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm", "tcd"}
    draws = {"dpm2_ancestral": 9, "dpmpp_sde": 18, "sa_solver": 6} | dict.fromkeys(drawing, 9)
    plan = compile_plan(SCHEDULE, sampler, 10)
    assert len(plan) == rows
    assert np.count_nonzero(plan.weights[:, NOISE]) == draws.get(sampler, 0)
    assert plan.weights[-1, NOISE] == 0
    assert np.isfinite(plan.weights).all()


def test_ancestral_samplers_without_noise_are_the_plain_ones() -> None:
    for noisy, quiet in (("euler_ancestral", "euler"), ("dpm2_ancestral", "dpm2")):
        one, other = compile_plan(SCHEDULE, noisy, 12, eta=0.0), compile_plan(SCHEDULE, quiet, 12)
        np.testing.assert_allclose(one.weights, other.weights, rtol=0, atol=1e-14)


def test_euler_is_ddim_over_the_same_levels() -> None:
    """Of the start too: both begin at unit noise where nothing is left of the signal."""
    rescaled = {"rescale_betas_zero_snr": True}
    schedule = NoiseSchedule(SCHEDULE.alphas_cumprod, "v_prediction")
    euler, ddim = (compile_plan(schedule, name, 8, **rescaled) for name in ("euler", "ddim"))
    np.testing.assert_allclose(euler.weights[1:], ddim.weights[1:], atol=1e-12)
    np.testing.assert_allclose(euler.weights[0], ddim.weights[0], atol=1e-3)  # σ = 4096 for infinity
    assert ddim.initial_scale == 1
    np.testing.assert_allclose(euler.initial_scale, 1, atol=1e-7)


def test_strength_is_a_plan_from_its_start_level_and_no_slice() -> None:
    whole, part = compile_plan(SCHEDULE, "dpmpp_2m", 20), compile_plan(SCHEDULE, "dpmpp_2m", 20, strength=0.5)
    np.testing.assert_array_equal(part.timesteps, whole.timesteps[10:])
    np.testing.assert_array_equal(part.weights[1:], whole.weights[11:])
    assert whole.weights[10, [1, 5]].any()
    assert not part.weights[0, [1, 5]].any()


def test_guidance_in_an_interval_of_noise_levels() -> None:
    plan = compile_plan(SCHEDULE, "heun", 20, guidance_interval=(0.2, 3.0))
    sigmas = plan.noise_scales[:-1] / plan.signal_scales[:-1]
    np.testing.assert_array_equal(plan.guidance, (sigmas > 0.2) & (sigmas <= 3.0))
    assert 0 < plan.guidance.sum() < len(plan)


def test_facts_that_are_not_linear_are_only_named() -> None:
    plain, named = (
        compile_plan(SCHEDULE, "ddim", 5, **options)
        for options in (PLAIN, {"clip_sample": 1.0, "guidance_rescale": 0.7})
    )
    np.testing.assert_array_equal(plain.weights, named.weights)
    assert (plain.clip_sample, plain.guidance_rescale) == (None, 0)
    assert (named.clip_sample, named.guidance_rescale) == (1, 0.7)


@pytest.mark.parametrize(
    ("name", "sampler", "options"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", {"sigma_spacing": "karras"}),
        ("dpmpp_2m_karras", "dpmpp_2m", {"sigma_spacing": "karras"}),
        ("sample_dpmpp_2m_sde", "dpmpp_2m_sde", {}),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde", {"sigma_spacing": "exponential"}),
        ("DPM++ SDE", "dpmpp_sde", {}),
        ("k_euler_a", "euler_ancestral", {}),
        ("Euler a", "euler_ancestral", {}),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral", {}),
        ("KDPM2DiscreteScheduler", "dpm2", {}),
        ("DPM2 a Karras", "dpm2_ancestral", {"sigma_spacing": "karras"}),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", {}),
        ("LMS Karras", "lms", {"sigma_spacing": "karras"}),
        ("PLMS", "pndm", {}),
        ("UniPC", "unipc", {}),
        ("SA-Solver", "sa_solver", {}),
        ("euler beta", "euler", {"sigma_spacing": "beta"}),
        ("Euler AYS", "euler", {"sigma_spacing": "align_your_steps"}),
        (" LCM ", "lcm", {}),
    ],
)
def test_names_that_people_know(name: str, sampler: str, options: dict[str, Any]) -> None:
    assert find_sampler(name) == (sampler, options)
    plan = compile_plan(SCHEDULE, name, 8)
    assert plan.sampler == sampler
    assert plan.options.items() >= options.items()


def test_every_name_and_suffix_leads_to_itself() -> None:
    for sampler in SAMPLERS:
        assert find_sampler(sampler) == (sampler, {})
        for suffix, spacing in SUFFIXES.items():
            assert find_sampler(f"{sampler}_{suffix}") == (sampler, {"sigma_spacing": spacing})


@pytest.mark.parametrize(
    ("name", "closest"),
    [("eular", "euler"), ("dpm++2", "dpm2, dpmpp_2m"), ("uni_pc_bh2", "unipc"), ("DPM++ 2S a", "dpmpp_2s")],
)
def test_an_unknown_name_lists_the_closest(name: str, closest: str) -> None:
    with pytest.raises(RequestError) as error:
        find_sampler(name)
    message = str(error.value)
    assert message.startswith(f"sampler {name!r} is unknown; choose ddim, ddpm, deis, ")
    assert set(closest.split(", ")) <= set(message.partition("closest: ")[2].split(", "))


def test_nothing_resembles_nothing() -> None:
    with pytest.raises(RequestError, match=r"^sampler '' is unknown; choose [a-z0-9_, ]+$"):
        find_sampler("")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "euler", "num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"sampler": "euler karras", "num_inference_steps": 401}, "401 exceeds num_train_timesteps 400"),
        (
            {"sampler": "dpmpp_2m", "num_inference_steps": 400, "timestep_spacing": "linspace"},
            "linspace has at most 399",
        ),
        ({"sampler": "dpmpp_2m", "timestep_spacing": "odd"}, "timestep_spacing 'odd' is unknown"),
        (
            {"sampler": "euler", "sigma_spacing": "karas"},
            "sigma_spacing 'karas' is unknown; choose karras, exponential",
        ),
        ({"sampler": "dpmpp_2m karras", "sigma_spacing": "beta"}, "means sigma_spacing 'karras', but 'beta' is asked"),
        ({"sampler": "ddim", "sigma_spacing": "karras"}, "sampler ddim has no option 'sigma_spacing'; it has eta"),
        ({"sampler": "ddim karras"}, "sampler ddim has no option 'sigma_spacing'"),
        ({"sampler": "euler", "sigma_max": 3.0}, "sigma_max 3.0 needs a sigma_spacing"),
        ({"sampler": "euler karras", "sigma_max": float("nan")}, "sigma_max is nan"),
        ({"sampler": "euler karras", "sigma_min": 0}, "sigma_min is 0"),
        ({"sampler": "euler karras", "sigma_min": 5.0, "sigma_max": 2.0}, "noise levels must fall"),
        (
            {"sampler": "euler", "final_sigmas_type": "one"},
            "final_sigmas_type 'one' is unknown; choose zero or sigma_min",
        ),
        ({"sampler": "euler ays"}, "align_your_steps was found for Stable Diffusion"),
        ({"sampler": "euler_ancestral", "eta": 2}, "eta is 2; it must be a number from 0"),
        ({"sampler": "unipc", "solver_order": 4}, "solver_order is 4; choose 1, 2, 3"),
        ({"sampler": "unipc", "solver_order": None}, "solver_order is None"),
        ({"sampler": "sa_solver", "tau": -1}, "tau is -1"),
        ({"sampler": "sa_solver", "tau_start": "x"}, "tau_start is x"),
        (
            {"sampler": "lcm", "num_inference_steps": 60},
            "original_inference_steps is 50; it must be a whole number from 60",
        ),
        ({"sampler": "lcm", "original_inference_steps": 1000}, "original_inference_steps is 1000"),
        ({"sampler": "tcd", "timestep_spacing": "leading"}, "sampler tcd has timesteps of its own"),
        (
            {"strength": 0.01, "num_inference_steps": 20},
            "strength 0.01 of 20 steps leaves none; it must be at least 0.05",
        ),
        ({"strength": 1.5}, "strength is 1.5; it must be a number from 0 to 1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"guidance_interval": [1]}, "guidance_interval is [1]; it must be two sigmas"),
        ({"guidance_interval": 3}, "guidance_interval is 3"),
        ({"guidance_interval": (500, 900)}, "guidance_interval [500, 900] holds none of the plan's sigmas"),
        ({"guidance_rescale": -0.1}, "guidance_rescale is -0.1"),
        ({"clip_sample": 0}, "clip_sample is 0"),
        ({"rescale_betas_zero_snr": True, "num_inference_steps": 4}, "no signal is left at timestep 399"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as error:
        compile_plan(SHORT, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_combinations_age_until_they_are_out_of_reach() -> None:
    combination = unit(0) + 2 * unit(4)
    np.testing.assert_array_equal(aged(aged(combination)), unit(2) + 2 * unit(6))
    for column in (3, 7, NOISE):
        with pytest.raises(ValueError, match="cannot be told from one row later"):
            aged(unit(column))
