"""Proves what a bundle of Stable Diffusion draws with unless told otherwise, and which plans come with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from text_samples import CONFIG

from export.errors import ExportError
from export.sd15 import noise_schedule
from export.sd15_defaults import Defaults, at_most, choose_defaults
from runtime.errors import RequestError
from runtime.plan import compile_plan


@pytest.mark.parametrize("timesteps", [5, 10, 20, 21, 30, 31, 1000])
def test_a_short_schedule_has_plans_with_the_steps_that_it_has_room_for(timesteps: int) -> None:
    beta = replace(CONFIG.scheduler.noise_schedule, num_train_timesteps=timesteps)
    schedule = noise_schedule(replace(CONFIG.scheduler, noise_schedule=beta))
    assert (schedule.timestep_spacing, schedule.steps_offset) == ("leading", 1)
    defaults = choose_defaults(schedule)
    steps = defaults.num_inference_steps
    assert steps == at_most(20, schedule)
    plans = defaults.plans(schedule)
    for sampler in ("dpmpp_2m_karras", "ddim", "pndm"):
        assert {f"{sampler}-{steps}", f"{sampler}-{at_most(10, schedule)}"} <= plans.keys()


def test_what_a_bundle_draws_with_unless_told_otherwise() -> None:
    schedule = noise_schedule(CONFIG.scheduler)
    assert choose_defaults(schedule) == Defaults("dpmpp_2m_karras", 20, 7.5)
    assert choose_defaults(schedule, "DPM++ 3M exponential", 30, 4) == Defaults("dpmpp_3m_exponential", 30, 4.0)
    own = choose_defaults(schedule, "k_euler_a", 7)
    assert own.samplers(schedule) == ("euler_ancestral", "dpmpp_2m_karras", "ddim", "pndm")
    assert own.plans(schedule)["euler_ancestral-7"].to_json() == compile_plan(schedule, "euler_ancestral", 7).to_json()
    assert choose_defaults(schedule, "ddim").samplers(schedule) == ("ddim", "dpmpp_2m_karras", "pndm")
    assert choose_defaults(schedule, "lcm").num_inference_steps == 4


def test_where_no_signal_is_left_the_default_plan_leaves_it_at_once() -> None:
    """Karras' levels would spend steps where there is nothing to see."""
    scheduler = replace(CONFIG.scheduler, prediction_type="v_prediction", zero_terminal_snr=True)
    schedule = noise_schedule(replace(scheduler, timestep_spacing="trailing", steps_offset=0))
    defaults = choose_defaults(schedule)
    assert defaults.sampler == "dpmpp_2m"
    for plan in defaults.plans(schedule).values():
        assert plan.signal_scales[2] > 0.004
    assert compile_plan(schedule, "dpmpp_2m_karras", 20).signal_scales[2] < 0.001


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"sampler": "dmp"}, "sampler 'dmp' is unknown"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"steps": 999}, "steps is 999; this model's bundle can have 1 to 998 by default"),
        ({"guidance_scale": float("nan")}, "guidance scale is nan; it must be a finite number"),
    ],
)
def test_defaults_out_of_range(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises((RequestError, ExportError), match=message):
        choose_defaults(noise_schedule(CONFIG.scheduler), **chosen)
