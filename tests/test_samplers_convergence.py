"""Proves that samplers solve the equation they are for: those without noise follow the probability flow of a mixture of
Gaussians with their order, and all of them, those with noise too, draw from that mixture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.plan import PREDICTION_TYPES, SAMPLERS, NoiseSchedule, compile_plan
from tests.gaussian_mixture import DEVIATION, MEAN, SCHEDULE, SHARES, combined, errors, output

COUNTS = (32, 64, 128)

# Multistep samplers begin with lower orders, and with very many steps the error of the first ones is what is left, of
# order two. DPM-Solver++ (3M) is published with half of its second difference and so has order two; UniPC's corrector
# adds one.
ORDERS: list[tuple[str, dict[str, Any], float]] = [
    ("ddim", {}, 1),
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpm2", {}, 2),
    ("pndm", {}, 2),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2s", {}, 2),
    ("dpmpp_3m", {}, 2),
    ("lms", {"solver_order": 2}, 2),
    ("lms", {}, 3),
    ("deis", {}, 2),
    ("deis", {"solver_order": 3}, 3),
    ("unipc", {}, 3),
    ("unipc", {"solver_order": 1}, 2),
    ("sa_solver", {"tau": 0.0}, 2),
]


def measured_order(sampler: str, counts: tuple[int, ...] = COUNTS, **options: Any) -> float:
    """The slope of log error over log number of steps."""
    logs = np.log(list(errors(sampler, counts, **options)))
    return float(-np.polyfit(np.log(counts), logs, 1)[0])


@pytest.mark.parametrize(("sampler", "options", "order"), ORDERS, ids=lambda value: str(value))
def test_order_of_convergence(sampler: str, options: dict[str, Any], order: float) -> None:
    assert order - 0.3 < measured_order(sampler, **options) < order + 0.5


def test_higher_orders_are_nearer() -> None:
    """Where the order does not show, the error does, at the numbers of steps that people use."""
    nearer = [("dpmpp_3m", {}, "dpmpp_2m", {}), ("deis", {"solver_order": 3}, "deis", {})]
    nearer += [("unipc", {"solver_order": 3}, "unipc", {}), ("lms", {}, "lms", {"solver_order": 2})]
    nearer += [("sa_solver", {"tau": 0.0, "predictor_order": 3, "corrector_order": 4}, "sa_solver", {"tau": 0.0})]
    nearer += [("dpmpp_2m", {}, "ddim", {}), ("pndm", {}, "ddim", {}), ("heun", {}, "ddim", {})]
    for sampler, options, other, other_options in nearer:
        assert next(errors(sampler, (16,), **options)) < next(errors(other, (16,), **other_options)), sampler


@pytest.mark.parametrize("sampler", ["heun", "unipc", "dpmpp_3m", "lms"])
def test_the_prediction_type_changes_nothing(sampler: str) -> None:
    ends = [sampled(sampler, 12, 50, prediction_type, {}) for prediction_type in PREDICTION_TYPES]
    np.testing.assert_allclose(ends[1:], [ends[0]] * 2, atol=1e-9)


def sampled(sampler: str, count: int, size: int, prediction_type: str, options: dict[str, Any]) -> np.ndarray:
    """Samples of the mixture, float64 (size,), by the loop of a host."""
    plan = compile_plan(NoiseSchedule(SCHEDULE.alphas_cumprod, prediction_type), sampler, count, **options)
    rng = np.random.default_rng(0)
    samples, outputs = [plan.initial_scale * rng.standard_normal(size)], []
    for i, weights in enumerate(plan.weights):
        outputs.insert(0, output(samples[0], plan.signal_scales[i], plan.noise_scales[i], prediction_type))
        samples.insert(0, combined(weights, samples, outputs, rng.standard_normal(size) if weights[8] else None))
    return samples[0] / plan.signal_scales[-1]


# LCM and TCD jump to the mean of what may be, and so want networks that are distilled to do without.
@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"lcm", "tcd"}))
def test_it_draws_from_the_mixture(sampler: str) -> None:
    drawn = sampled(sampler, 100, 4000, "epsilon", {})
    left = np.count_nonzero(drawn < -0.5) / len(drawn)
    assert abs(drawn.mean() - MEAN) < 0.06
    assert abs(drawn.std() - DEVIATION) < 0.05
    assert abs(left - SHARES[0]) < 0.03
