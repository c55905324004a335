"""How a bundle draws when nobody says how: its sampler, steps and guidance, and the plans that come with it."""

from __future__ import annotations

from dataclasses import dataclass

from export.bundle import default_plans
from export.errors import ExportError
from runtime.plan import SAMPLERS, NoiseSchedule, Plan, find_sampler, is_finite_number

SAMPLER, STEPS, GUIDANCE_SCALE = "dpmpp_2m_karras", 20, 7.5
# Karras' levels crowd towards the noisiest one, which does not end where no signal is left.
SAMPLER_WITHOUT_SIGNAL = "dpmpp_2m"
OTHERS = ("ddim", "pndm")  # whose plans come along, too: the samplers that the model was published with


@dataclass(frozen=True)
class Defaults:
    """What a bundle does unless told otherwise.

    Attributes:
        sampler: its name.
        num_inference_steps: of the sampler.
        guidance_scale: 1 is off.
    """

    sampler: str
    num_inference_steps: int
    guidance_scale: float

    def samplers(self, schedule: NoiseSchedule) -> tuple[str, ...]:
        """Those whose plans come with the bundle, the default first."""
        return tuple(dict.fromkeys((self.sampler, usual_sampler(schedule), *OTHERS)))

    def plans(self, schedule: NoiseSchedule) -> dict[str, Plan]:
        """The plans, by name.

        Raises:
            RequestError: the schedule does not allow one of them.
        """
        steps = self.num_inference_steps
        samplers = self.samplers(schedule)
        return {name: plan for each in samplers for name, plan in default_plans(schedule, each, steps).items()}


def usual_sampler(schedule: NoiseSchedule) -> str:
    """The default where none is named; where another is, its plans come along all the same."""
    return SAMPLER_WITHOUT_SIGNAL if schedule.alphas_cumprod[-1] == 0 else SAMPLER


def at_most(steps: int, schedule: NoiseSchedule) -> int:
    """So many steps, or fewer in a short schedule: "leading" ones leave out the last timestep, and are shifted."""
    return min(steps, schedule.num_train_timesteps - 1 - schedule.steps_offset)


def check_choice(sampler: str | None, steps: int | None, guidance_scale: float | None) -> None:
    """Refuse what no model could draw with, before one is read.

    Raises:
        RequestError: there is no such sampler.
        ExportError: steps or guidance scale is out of range.
    """
    if sampler is not None:
        find_sampler(sampler)
    if steps is not None and steps < 1:
        raise ExportError(f"steps is {steps}; it must be at least 1")
    if guidance_scale is not None and not is_finite_number(guidance_scale):
        raise ExportError(f"guidance scale is {guidance_scale}; it must be a finite number (1 is off)")


def choose_defaults(
    schedule: NoiseSchedule, sampler: str | None = None, steps: int | None = None, guidance_scale: float | None = None
) -> Defaults:
    """Fill in what is not said.

    Args:
        schedule: of the model.
        sampler: any name that samplers have.
        steps: of it; without them ``STEPS``, or fewer for samplers of networks that were distilled for fewer.
        guidance_scale: 1 is off.

    Raises:
        RequestError: there is no such sampler.
        ExportError: steps or guidance scale is out of range.
    """
    check_choice(sampler, steps, guidance_scale)
    if sampler is None:
        sampler = usual_sampler(schedule)
    name, implied = find_sampler(sampler)
    most = at_most(schedule.num_train_timesteps, schedule)
    if steps is not None and steps > most:
        raise ExportError(f"steps is {steps}; this model's bundle can have 1 to {most} by default")
    usual = min(STEPS, SAMPLERS[name].default_steps or STEPS)
    return Defaults(
        "_".join((name, *implied.values())),
        at_most(usual, schedule) if steps is None else steps,
        GUIDANCE_SCALE if guidance_scale is None else float(guidance_scale),
    )
