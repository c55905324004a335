"""Proves the loop on a network known in closed form, and that a picture depends on its seed alone, not on its batch."""

from __future__ import annotations

import contextlib
import itertools
import json
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle

from runtime import load
from runtime.class_to_image import ClassToImage
from runtime.errors import RequestError
from runtime.model_plan import check_plan, plan_for
from runtime.noise import noise_generator
from runtime.plan import SAMPLERS, SPACINGS, NoiseSchedule, Plan, compile_plan
from runtime.session import Session

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_bundle.write(tmp_path_factory.mktemp("models")), provider="cpu")


def by_hand(label: int, seed: int, steps: int, guidance: float, eta: float, rng: str) -> np.ndarray:
    """DDIM (Song et al. 2021, eq. 12) for one image, in float64 throughout."""
    abar = tiny_bundle.alphas_cumprod()
    generator = noise_generator(rng, seed)
    shape = (1, tiny_bundle.SIZE, tiny_bundle.SIZE)
    x = generator.draw(shape).astype(np.float64)
    timesteps = [round(100 - k * 100 / steps) - 1 for k in range(steps)]
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        predicted = [x * t / (t + 1) + c / 10 for c in (tiny_bundle.CLASSES, label)]
        eps = predicted[0] + guidance * (predicted[1] - predicted[0])
        after, before = abar[t], 1.0 if following is None else abar[following]
        sigma = eta * np.sqrt((1 - before) / (1 - after) * (1 - after / before))
        x0 = (x - np.sqrt(1 - after) * eps) / np.sqrt(after)
        x = np.sqrt(before) * x0 + np.sqrt(1 - before - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * generator.draw(shape)
    return x


@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_loop_is_ddim_by_hand(pipeline: ClassToImage, guidance: float, eta: float, rng: str) -> None:
    result = pipeline([2, 0], guidance_scale=guidance, seed=11, rng=rng, num_inference_steps=10, eta=eta)
    expected = np.stack([by_hand(2, 11, 10, guidance, eta, rng), by_hand(0, 12, 10, guidance, eta, rng)])
    np.testing.assert_allclose(result.sample, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(pipeline: ClassToImage, sampler: str, rng: str) -> None:
    labels, settings = [0, 1, 2, 1, 0], {"sampler": sampler, "num_inference_steps": 6, "rng": rng}
    together = pipeline(labels, seed=5, **settings)
    for batch_size in (1, 2, 3):
        apart = pipeline(labels, seed=5, batch_size=batch_size, **settings)
        assert apart.sample.tobytes() == together.sample.tobytes()
    alone = pipeline(1, seed=8, **settings)
    assert alone.sample.tobytes() == together.sample[3:4].tobytes()


def test_threads_share_a_pipeline(pipeline: ClassToImage) -> None:
    def draw(seed: int) -> bytes:
        return pipeline([seed % 3], seed=seed, sampler="ddpm").sample.tobytes()

    one_after_another = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(8))) == one_after_another
    assert len(set(one_after_another)) == 8


def test_guidance_1_evaluates_the_network_once_per_row(pipeline: ClassToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    run = Session.run

    def counting(self: Session, **inputs: Any) -> Any:
        batches.append(len(inputs["sample"]))
        return run(self, **inputs)

    monkeypatch.setattr(Session, "run", counting)
    pipeline([0, 1], guidance_scale=1.0, num_inference_steps=4)
    pipeline([0, 1], guidance_scale=2.0, num_inference_steps=4)
    assert batches == [2] * 4 + [4] * 4


def test_the_walk_yields_every_row_and_predicts_the_original(pipeline: ClassToImage) -> None:
    plan = compile_plan(pipeline.bundle.noise_schedule, "ddim", 6)
    rows = list(pipeline.walk(pipeline.encode(np.array([1])), plan, 1.0, [3], "philox", pipeline.shape))
    assert len(rows) == 6
    np.testing.assert_allclose(rows[-1].pred_original_sample, rows[-1].sample, atol=1e-5)  # the last row ends at x_0


def test_seeds_count_up_and_wrap(pipeline: ClassToImage) -> None:
    assert pipeline([0, 1, 2], seed=2**64 - 2, num_inference_steps=1).seeds == (2**64 - 2, 2**64 - 1, 0)


def test_without_a_seed_one_is_drawn_and_kept(pipeline: ClassToImage) -> None:
    result = pipeline(0, num_inference_steps=2)
    again = pipeline(0, num_inference_steps=2, seed=result.seeds[0])
    assert again.sample.tobytes() == result.sample.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 4}, "label 4 is out of range; tiny has 0 to 2"),
        ({"class_labels": -1}, "label -1 is out of range"),
        ({"class_labels": []}, "there is no label to draw"),
        ({"class_labels": [0] * 1_000_001}, "the number of images is 1000001; it must be a whole number from 1 to"),
        ({"class_labels": "seven"}, "class_labels 'seven' must be a whole number"),
        ({"class_labels": [1.9]}, "class_labels [1.9] must be a whole number or a list of them"),
        ({"class_labels": [[1, 2]]}, "must be a whole number or a list of them"),
        ({"class_labels": [[], []]}, "must be a whole number or a list of them"),
        ({"guidance_scale": "2"}, "guidance_scale is 2; it must be a finite number"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; it must be a finite number"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": 1e40}, "is no longer finite; guidance_scale 1e+40 is too large"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 101}, "exceeds num_train_timesteps 100"),
        ({"sampler": "magic"}, "sampler 'magic' is unknown"),
        ({"rng": "dice"}, "rng 'dice' is unknown; choose philox or torch"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": 2**64}, "is out of range; give a whole number from 0 to 2**64 - 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sampler": 5}, "sampler is 5; it must be a name, such as 'ddpm'"),
        ({"sampler": ["ddim"]}, "sampler is ['ddim']; it must be a name"),
        ({"rng": []}, "rng [] is unknown; choose philox or torch"),
        ({"plan": 5}, "plan is 5; it must be a Plan"),
        ({"plan": 0}, "plan is 0; it must be a Plan"),
        ({"schedule": 3}, "sampler ddim has no option 'schedule'"),
        ({"bundle": 3}, "sampler ddim has no option 'bundle'"),
        ({"default_batch_size": 3}, "sampler ddim has no option 'default_batch_size'"),
    ],
)
def test_bad_requests_name_the_value_and_what_is_allowed(
    pipeline: ClassToImage, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as error:
        pipeline(**{"class_labels": 0, **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_for_another_kind_of_network_is_refused(pipeline: ClassToImage) -> None:
    schedule = pipeline.bundle.noise_schedule
    other = compile_plan(type(schedule)(schedule.alphas_cumprod, "v_prediction"), "ddim", 4)
    with pytest.raises(RequestError, match="the plan is for v_prediction models; tiny predicts epsilon"):
        pipeline(0, plan=other)


def all_plans(schedule: NoiseSchedule) -> Iterator[Plan]:
    """Every sampler with every way to place its noise levels that it and the schedule allow."""
    ways: list[dict[str, Any]] = [{"sigma_spacing": name} for name in ("karras", "exponential", "beta")]
    ways += [{"sigma_spacing": "karras", "sigma_min": 1e-3, "sigma_max": 5e3}, {"rescale_betas_zero_snr": True}]
    ways += [{"timestep_spacing": name} for name in SPACINGS]
    for sampler, options in itertools.product(SAMPLERS, ({}, *ways)):
        with contextlib.suppress(RequestError):
            yield compile_plan(schedule, sampler, 8, **options)


def test_every_plan_made_for_a_model_fits_it_and_no_other(pipeline: ClassToImage) -> None:
    own, count = pipeline.bundle.noise_schedule, 0
    for plan in all_plans(own):
        check_plan(pipeline.bundle, Plan.from_json(json.loads(json.dumps(plan.to_json()))))
        count += 1
    assert count > 125
    longer = NoiseSchedule(np.cumprod(1 - np.linspace(1e-4, 0.02, 400)))
    # As many timesteps, and other noise at them.
    other = NoiseSchedule(np.cumprod(1 - np.linspace(1e-2**0.5, 0.1**0.5, tiny_bundle.TRAIN_STEPS) ** 2))
    for plan in (*all_plans(longer), *all_plans(other)):
        with pytest.raises(RequestError, match="the plan was made for another model"):
            check_plan(pipeline.bundle, plan)


def test_a_plan_made_for_another_model_says_where_it_differs(pipeline: ClassToImage) -> None:
    longer = NoiseSchedule(np.cumprod(1 - np.linspace(1e-4, 0.02, 400)))
    with pytest.raises(RequestError, match="the plan has timestep 399, but tiny has 0 to 99; the plan was made for"):
        pipeline(0, plan=compile_plan(longer, "ddim", 4))
    late = compile_plan(longer, "ddim", 4, strength=0.25)
    message = r"row 0 of the plan tells timestep 99 at sigma 0.\d+, which tiny has at timestep \d+"
    with pytest.raises(RequestError, match=message):
        pipeline(0, plan=replace(late, options={}))


def test_a_plan_and_options_for_another_are_refused(pipeline: ClassToImage) -> None:
    plan = pipeline.plan(num_inference_steps=np.int64(4))  # type: ignore[arg-type]
    assert len(pipeline(0, plan=plan, seed=0).images) == 1
    with pytest.raises(RequestError, match="give either a plan or sampler, eta, and not both"):
        pipeline(0, plan=plan, sampler="ddim", eta=0.5)


def test_the_models_own_sampler_keeps_its_default_steps(pipeline: ClassToImage) -> None:
    assert len(pipeline.plan()) == len(pipeline.plan(sampler="ddim")) == 10
    assert len(pipeline.plan(sampler="ddpm")) == 100


@pytest.mark.parametrize(
    ("own", "names", "others"),
    [
        (
            "dpmpp_2m_karras",
            ("DPM++ 2M Karras", "sample_dpmpp_2m_karras", "DPMSolverMultistep Karras"),
            ("dpmpp_2m", "DPM++ 2M Exponential", "DPM++ 2M SDE Karras"),
        ),
        ("Euler a", ("euler_ancestral", "EulerAncestralDiscreteScheduler"), ("euler", "euler_a_karras")),
    ],
)
def test_the_default_steps_go_with_the_sampler_under_any_of_its_names(
    pipeline: ClassToImage, own: str, names: tuple[str, ...], others: tuple[str, ...]
) -> None:
    bundle = replace(pipeline.bundle, defaults=replace(pipeline.bundle.defaults, sampler=own, num_inference_steps=13))
    for name in (own, *names):
        assert plan_for(bundle, name).num_inference_steps == 13
        assert plan_for(bundle, name, 7).num_inference_steps == 7
    assert [plan_for(bundle, name).num_inference_steps for name in others] == [50] * len(others)


def test_saved_pictures_carry_what_made_them(pipeline: ClassToImage, tmp_path: Path) -> None:
    from PIL import Image

    result = pipeline([2, 1], seed=9, num_inference_steps=3)
    paths = result.save(tmp_path / "out.png")
    assert [path.name for path in paths] == ["out-1.png", "out-2.png"]
    for k, path in enumerate(paths):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture), result.images[k, ..., 0])
            made = json.loads(picture.info["diffusion-anywhere"])
        assert (made["seed"], made["class_label"], made["bundle"]) == (9 + k, [2, 1][k], "tiny")
        assert (made["variant"], made["low_memory"]) == ("fp32", False)
        assert made["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
        assert "plan_sha256" not in made
    with pytest.raises(RequestError, match=r"out-1\.png exists; choose another name or add --overwrite"):
        result.save(tmp_path / "out.png")
