"""Proves frames from one picture to another: the first and the last are the plain pictures, those between are what
the formulas say; moving pictures hold them, last as long as asked, and say what made them; a mistake is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import tiny_text_bundle as tiny
from PIL import Image

from runtime import Cancelled, CancelToken, interpolate, load
from runtime.__main__ import main
from runtime.animation import durations
from runtime.errors import RequestError
from runtime.image import carried_by
from runtime.noise import noise_generator
from runtime.pipeline import Pipeline
from runtime.variation import slerp

# Ancestral, so that later draws count as well.
ARGUMENTS: dict[str, Any] = {"seed": 3, "sampler": "euler_ancestral", "num_inference_steps": 4}


@pytest.fixture
def text(models: Path) -> Pipeline:
    return load("tiny-text", "cpu")


@pytest.fixture
def classes(models: Path) -> Pipeline:
    return load("tiny", "cpu")


@pytest.mark.parametrize("to", ["blue square", "blue " * 9])  # in as many chunks, and in more
def test_first_and_last_are_the_plain_pictures_of_texts(text: Pipeline, to: str) -> None:
    frames = interpolate(text, "red", to=to, to_seed=9, frames=4, negative_prompt="green", **ARGUMENTS)
    first = text("red", negative_prompt="green", **ARGUMENTS)
    last = text(to, negative_prompt="green", **ARGUMENTS | {"seed": 9})
    assert frames.images.shape == (4, 8, 12, 3)
    for k, plain in ((0, first), (-1, last)):
        assert frames.sample[k].tobytes() == plain.sample[0].tobytes()
        assert frames.metadata_of(k) == plain.metadata_of(0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_first_and_last_are_the_plain_pictures_of_classes(classes: Pipeline, batch_size: int) -> None:
    frames = interpolate(classes, 0, to=2, to_seed=9, frames=4, batch_size=batch_size, **ARGUMENTS)
    assert frames.sample[0].tobytes() == classes(0, **ARGUMENTS).sample[0].tobytes()
    assert frames.sample[-1].tobytes() == classes(2, **ARGUMENTS | {"seed": 9}).sample[0].tobytes()


def test_variations_a_second_pass_and_a_picture_to_begin_at(text: Pipeline) -> None:
    image = np.random.default_rng(7).integers(0, 256, (8, 12, 3), np.uint8)
    more = {"variation_seed": 5, "variation_strength": 0.4, "upscale": 2, "image": image, "strength": 0.75}
    frames = interpolate(text, "red", to_seed=9, frames=3, **more, **ARGUMENTS)
    assert frames.sample[0].tobytes() == text("red", **more, **ARGUMENTS).sample[0].tobytes()
    assert frames.sample[2].tobytes() == text("red", **more, **ARGUMENTS | {"seed": 9}).sample[0].tobytes()


def test_between_two_labels_the_networks_outputs_are_mixed(classes: Pipeline) -> None:
    """The tiny network's output is linear in the label's number, so that a share of the way it is as of a fraction."""
    settings: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": 5, "guidance_scale": 2.0}
    frames = interpolate(classes, 0, to=2, frames=5, seed=3, **settings)
    plain = [classes(label, seed=3, **settings).sample[0] for label in range(3)]
    np.testing.assert_allclose(frames.sample[2], plain[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(frames.sample[1], (plain[0].astype(np.float64) + plain[1]) / 2, rtol=0, atol=1e-6)
    assert np.abs(plain[0] - plain[2]).max() > 0.1
    assert tiny_bundle.CLASSES == 3


def test_between_two_prompts_the_encoders_words_are_mixed(text: Pipeline) -> None:
    """The tiny network is told the mean of these, so that its output lies between in the same share."""
    settings: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": 5, "guidance_scale": 1}
    frames = interpolate(text, "red", to="blue square", frames=5, seed=3, **settings)
    first, last = (text(prompt, seed=3, **settings).sample[0].astype(np.float64) for prompt in ("red", "blue square"))
    for k in range(5):
        np.testing.assert_allclose(frames.sample[k], first + (last - first) * k / 4, rtol=0, atol=2e-6)
    assert abs(tiny.shift("red") - tiny.shift("blue square")) > 0.01


def test_between_two_seeds_every_draw_is_interpolated(text: Pipeline) -> None:
    frames = interpolate(text, "red", to_seed=9, frames=3, guidance_scale=1, **ARGUMENTS)
    plan = text.plan(sampler="euler_ancestral", num_inference_steps=4)
    generators = [noise_generator("philox", seed) for seed in (3, 9)]

    def draw() -> np.ndarray:
        return slerp(*(each.draw((4, 4, 6)) for each in generators), 0.5).astype(np.float64)

    x = plan.initial_scale * draw()
    for i, t in enumerate(plan.timesteps):
        output = x * t / (t + 1) + tiny.shift("red")
        x = plan.weights[i, 0] * x + plan.weights[i, 4] * output
        x = x + (plan.weights[i, 8] * draw() if plan.weights[i, 8] else 0)
    np.testing.assert_allclose(frames.sample[1], x, rtol=0, atol=1e-5)


def test_progress_is_over_all_frames(text: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    interpolate(text, "red", to="blue", frames=5, progress=lambda *done: told.append(done), **ARGUMENTS)
    assert told == [(k + 1, 20) for k in range(20)]


def test_frames_can_be_stopped(text: Pipeline) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        interpolate(text, "red", to="blue", cancel=token, **ARGUMENTS)


def test_frames_carry_where_they_lead(text: Pipeline, refusal: Callable[..., str]) -> None:
    frames = interpolate(text, "red", to="blue", to_seed=9, frames=3, **ARGUMENTS)
    made = frames.metadata_of(1)
    assert (made["prompt"], made["to_prompt"]) == ("red", "blue")
    assert (made["seed"], made["to_seed"], made["share"]) == (3, 9, 0.5)
    frames.save("frame.png")
    assert main(["replay", "frame-1.png"]) == main(["replay", "frame-3.png"]) == 0
    assert "it is a frame between two pictures" in refusal(main, "replay", "frame-2.png")
    with Image.open("frame-1.png") as first, Image.open("frame-2.png") as second:
        assert "parameters" in first.info
        assert "parameters" not in second.info


@pytest.mark.parametrize(("fps", "units"), [(12, 100), (12, 1000), (7.5, 100), (50, 100), (1, 100), (24, 1000)])
def test_a_moving_picture_lasts_as_long_as_it_should(fps: float, units: int) -> None:
    lasting = durations(24, fps, units)
    assert len(lasting) == 24
    assert abs(sum(lasting) - 24000 / fps) <= 1000 / units
    assert max(lasting) - min(lasting) <= 1000 / units
    assert not any(each % (1000 // units) for each in lasting)


@pytest.mark.parametrize("kind", ["text", "classes"])
@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_moving_pictures(kind: str, suffix: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(kind)
    ends = ("red", "blue") if kind == "text" else (0, 2)
    frames = interpolate(pipeline, ends[0], to=ends[1], to_seed=9, frames=4, **ARGUMENTS)
    path = frames.save_animation(f"out{suffix}", fps=10)
    with Image.open(path) as moving:
        assert moving.n_frames == 4  # type: ignore[attr-defined]
        assert moving.info["loop"] == 0
        shown = []
        for k in range(4):
            moving.seek(k)
            moving.load()
            assert moving.info["duration"] == 100
            shown.append(np.asarray(moving.convert("RGB")))
        kept = moving.info.get("comment") or carried_by(moving)
    exact = np.broadcast_to(frames.images, (*frames.images.shape[:3], 3))
    assert np.abs(np.array(shown).astype(int) - exact).max() <= (0 if suffix == ".webp" or kind == "classes" else 8)
    made = json.loads(kept)
    assert (made["frames"], made["fps"], made["bundle"]) == (4, 10, pipeline.bundle.name)
    assert made["first"] == {"seed": 3, **frames.conditions[0]}
    assert made["last"] == {"seed": 9, **frames.conditions[3]}


def test_what_exists_is_kept_and_nothing_is_left_aside(classes: Pipeline) -> None:
    frames = interpolate(classes, 0, to=2, frames=2, **ARGUMENTS)
    Path("out.gif").write_text("mine")
    with pytest.raises(RequestError, match=r"out\.gif exists"):
        frames.save_animation("out.gif")
    frames.save_animation("out.gif", overwrite=True)
    assert [path.name for path in Path().iterdir()] == ["out.gif"]


def test_a_moving_picture_is_not_replayed(classes: Pipeline, refusal: Callable[..., str]) -> None:
    frames = interpolate(classes, 0, to=2, frames=2, **ARGUMENTS)
    for name, message in (("out.gif", "is a moving picture"), ("out.webp", "it is a frame between two pictures")):
        frames.save_animation(name)
        assert message in refusal(main, "replay", name)


def test_the_command_line(models: Path, text: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "tiny-text", "red", "--to", "blue", "--to-seed", "9", "--frames", "4", "--fps", "10"]
    words += ["--negative", "green", "--seed", "3", "--steps", "4"]
    assert main([*words, "-o", "morph.webp"]) == 0
    assert "morph.webp: 4 frames of tiny-text, ddim 4 steps, guidance scale 3, seed 3" in capsys.readouterr().out
    frames = interpolate(
        text, "red", to="blue", to_seed=9, frames=4, negative_prompt="green", seed=3, num_inference_steps=4
    )
    with Image.open("morph.webp") as moving:
        for k in range(4):
            moving.seek(k)
            np.testing.assert_array_equal(np.asarray(moving.convert("RGB")), frames.images[k])
    assert main(["--model", "tiny", "--label", "cat", "--to-label", "owl", "--frames", "3", "-o", "out.png"]) == 0
    assert sorted(path.name for path in Path().glob("out*")) == ["out-1.png", "out-2.png", "out-3.png"]


TEXT, CLASSES = ["--model", "tiny-text", "red"], ["--model", "tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TEXT, "--frames", "5"], "--frames leads nowhere by itself; give --to, --to-label or --to-seed"),
        ([*TEXT, "--fps", "5"], "--fps leads nowhere by itself"),
        ([*TEXT, "--to", "blue", "--frames", "1"], "frames is 1; it must be a whole number from 2 to 600"),
        ([*TEXT, "--to", "blue", "--frames", "601"], "frames is 601"),
        ([*TEXT, "--to", "blue", "--fps", "0"], "fps is 0.0; it must be a number from 1 to 50"),
        ([*TEXT, "--to", "blue", "--fps", "nan"], "fps is nan"),
        ([*TEXT, "--to", "blue", "--count", "2"], "leave out --count"),
        ([*TEXT, "--to", "blue", "--grid"], "leave out --count, --grid"),
        ([*TEXT, "--to-label", "1"], "tiny-text draws what a prompt says; give --to instead of --to-label 1"),
        ([*TEXT, "--to-seed", "-1"], "to_seed"),
        ([*TEXT, "--to", "blue", "--size", "8192x8", "--upscale", "4"], "width is 32768"),
        ([*TEXT, "--to", "blue", "--size", "2048x2048", "--frames", "100"], "100 frames of 2048x2048 have"),
        ([*CLASSES, "--to", "blue"], "tiny draws classes and takes no text; give --to-label instead of --to"),
        ([*CLASSES, "--to-label", "7"], "label '7' is none of 0 to 2"),
        ([*CLASSES, "--to-label", "all"], "give one --to-label, not all"),
        ([*CLASSES, "--label", "all", "--to-label", "1"], "leave out --count, --grid and --label all"),
    ],
)
def test_one_line_for_each_mistake(
    models: Path, refusal: Callable[..., str], arguments: list[str], message: str
) -> None:
    assert message in refusal(main, *arguments, "-o", "out.gif")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.npz"], "out.npz has no suffix of a moving picture; use one of .gif, .webp"),
        (["--fps", "5", "-o", "out.png"], "--fps 5 is of a moving picture, and out.png is not"),
        (["-o", "nowhere/out.gif"], "the folder nowhere does not exist"),
        (["--prompts", "list.txt", "-o", "out"], "draws single pictures; leave out --to"),
    ],
)
def test_outputs_that_cannot_be(models: Path, refusal: Callable[..., str], arguments: list[str], message: str) -> None:
    prompt = [] if "--prompts" in arguments else ["red"]
    assert message in refusal(main, "--model", "tiny-text", *prompt, "--to", "blue", *arguments)


def test_from_python_what_is_wrong_is_told_as_well(text: Pipeline, classes: Pipeline) -> None:
    for pipeline, first, arguments, message in (
        (text, "red", {}, "there is nothing to lead to"),
        (text, "red", {"to": 5}, "a prompt must be a string, not int"),
        (text, "red", {"to": "blue", "negative_prompt": ["a", "b"]}, "all frames have the same one"),
        (classes, [0], {"to": 1}, r"class_labels \[\[0\], 1\] must be a whole number or a list of them"),
        (classes, 0, {"to": 7}, "label 7 is out of range"),
        (classes, 0, {"to": 1, "negative_prompt": "x"}, "takes no text; leave out negative_prompt"),
    ):
        with pytest.raises(RequestError, match=message):
            interpolate(pipeline, first, **arguments)  # type: ignore[arg-type]
