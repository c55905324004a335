"""Proves variations: the interpolation of noise by closed forms, that nothing but draw 0 is touched, that seeds count
as in the web UIs, and that command line, lists and replay know of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime import load
from runtime.__main__ import main
from runtime.arithmetic import combine, first_sample
from runtime.errors import RequestError
from runtime.image import METADATA_KEY
from runtime.noise import noise_generator
from runtime.pipeline import Pipeline
from runtime.variation import Blend, generator_of, slerp

SHAPE = (4, 6, 5)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def text(models: Path) -> Pipeline:
    return load("tiny-text", "cpu")


@pytest.fixture
def classes(models: Path) -> Pipeline:
    return load("tiny", "cpu")


def test_ends_are_the_noises_themselves() -> None:
    a, b = noise(1), noise(2)
    assert slerp(a, b, 0).tobytes() == a.tobytes()
    assert slerp(a, b, 1).tobytes() == b.tobytes()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.floats(0, 1))
def test_each_column_turns_by_its_share_of_the_angle(seed: int, share: float) -> None:
    """Of unit vectors it is the rotation in their plane, a · cos(share · ω) + e · sin(share · ω), with e the unit
    vector in it at right angles to a (Gram and Schmidt)."""
    a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (noise(seed), noise(seed + 1)))
    turned = slerp(a, b, share).astype(np.float64)
    along = (a.astype(np.float64) * b).sum(1, keepdims=True)
    across = b - along * a
    length = np.linalg.norm(across, axis=1, keepdims=True)
    angle = np.arctan2(length, along)
    expected = a * np.cos(share * angle) + across / length * np.sin(share * angle)
    clear = np.broadcast_to(length > 0.1, a.shape)  # where the plane of the two is known
    np.testing.assert_allclose(turned[clear], expected[clear], rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1)[clear[:, 0]], 1, rtol=0, atol=2e-6)


def test_columns_at_right_angles() -> None:
    a, b = np.zeros((1, 2, 1), np.float32), np.zeros((1, 2, 1), np.float32)
    a[0, 0, 0], b[0, 1, 0] = 3, 2
    np.testing.assert_allclose(slerp(a, b, 1 / 3)[0, :, 0], [3 * np.cos(np.pi / 6), 2 * np.sin(np.pi / 6)], atol=1e-6)


def test_parallel_opposite_and_empty_columns_are_mixed_linearly() -> None:
    a = noise(1)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, -2 * a, 0.25), a / 4, rtol=0, atol=1e-6)
    assert np.isfinite(slerp(a, 0 * a, 0.5)).all()
    assert np.isfinite(slerp(noise(1, (2, 1, 3)), noise(2, (2, 1, 3)), 0.5)).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_what_is_drawn_stays_normal(share: float) -> None:
    drawn = slerp(noise(1, (8, 64, 64)), noise(2, (8, 64, 64)), share)
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(drawn.std() - 1) < 4 / np.sqrt(2 * drawn.size)


@pytest.mark.parametrize("rng", ["philox", "torch"])
def test_draw_0_lies_between_and_later_draws_are_the_images_own(rng: str) -> None:
    between, own, other = (generator_of(rng, each) for each in (Blend(3, 9, 0.4), 3, 9))
    np.testing.assert_array_equal(between.draw(SHAPE), slerp(own.draw(SHAPE), other.draw(SHAPE), 0.4))
    np.testing.assert_array_equal(between.draw(SHAPE), own.draw(SHAPE))


@pytest.mark.parametrize("kind", ["text", "classes"])
def test_strength_0_is_no_variation(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline, what = request.getfixturevalue(kind), ["red", "blue"] if kind == "text" else [1, 2]
    plain = pipeline(what, seed=3)
    same = pipeline(what, seed=3, variation_seed=9, variation_strength=0)
    assert same.sample.tobytes() == plain.sample.tobytes()
    assert same.metadata_of(1) == plain.metadata_of(1)


@pytest.mark.parametrize("kind", ["text", "classes"])
def test_strength_1_begins_as_the_other_seed(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline, what = request.getfixturevalue(kind), "red" if kind == "text" else 1
    varied = pipeline(what, seed=3, variation_seed=9, variation_strength=1)
    assert varied.sample.tobytes() == pipeline(what, seed=9).sample.tobytes()


def test_several_images_keep_the_seed_and_count_the_variation_seed_up(text: Pipeline) -> None:
    varied = text("red", seed=3, variation_seed=9, variation_strength=0.3, num_images_per_prompt=3, batch_size=2)
    assert varied.seeds == (3, 3, 3)
    for k in range(3):
        alone = text("red", seed=3, variation_seed=9 + k, variation_strength=0.3)
        assert varied.sample[k].tobytes() == alone.sample[0].tobytes()
        assert varied.metadata_of(k) == alone.metadata_of(0)
        assert varied.metadata_of(k)["variation_seed"] == 9 + k


def test_an_ancestral_sampler_from_a_picture_by_hand(classes: Pipeline) -> None:
    """The loop once more, on a network known in closed form."""
    image = np.random.default_rng(7).integers(0, 256, (8, 8), np.uint8)
    arguments: dict[str, Any] = {"sampler": "euler_ancestral", "num_inference_steps": 4, "strength": 0.75}
    varied = classes(
        2, image=image, seed=3, variation_seed=9, variation_strength=0.4, guidance_scale=1, batch_size=1, **arguments
    )
    plan = classes.plan(**arguments)
    own, other = noise_generator("philox", 3), noise_generator("philox", 9)
    start = slerp(own.draw((1, 8, 8)), other.draw((1, 8, 8)), 0.4)[None]
    x = first_sample(plan, start, (image[None] / np.float32(127.5) - 1).astype(np.float32))
    for i, t in enumerate(plan.timesteps):
        output = (x * (t / (t + 1)) + 0.2).astype(np.float32)
        drawn = own.draw((1, 8, 8))[None] if plan.weights[i, -1] else None
        x = combine(plan.weights[i], [x, None, None, None, output, None, None, None, drawn])
    np.testing.assert_allclose(varied.sample, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variation_seed": 5}, "variation_seed 5 does nothing by itself; give a variation_strength"),
        ({"variation_strength": 0.5}, "variation_strength 0.5 leads towards another seed; give a variation_seed"),
        (
            {"variation_seed": 5, "variation_strength": 1.5},
            "variation_strength is 1.5; it must be a number from 0 to 1",
        ),
        ({"variation_seed": 5, "variation_strength": "x"}, "variation_strength is x"),
        ({"variation_seed": -1, "variation_strength": 0.5}, "variation_seed"),
        ({"variation_seed": "x", "variation_strength": 0.5}, "variation_seed"),
    ],
)
def test_bad_requests(text: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        text("red", **arguments)


def test_the_command_line_and_replay(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "tiny-text", "red", "--seed", "3", "--variation-seed", "9", "--variation-strength", "0.3"]
    assert main([*words, "--count", "2", "-o", "out.png"]) == 0
    expected = load("tiny-text", "cpu")("red", seed=3, variation_seed=10, variation_strength=0.3)
    with Image.open("out-2.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected.images[0])
        carried = json.loads(picture.info[METADATA_KEY])
        assert "Variation seed: 10, Variation seed strength: 0.3" in picture.info["parameters"]
    assert carried["seed"] == 3
    assert carried["variation_seed"] == 10
    capsys.readouterr()
    assert main(["replay", "out-2.png"]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def test_a_picture_by_a_plan_is_replayed_with_its_variation(models: Path) -> None:
    assert main(["plan", "--model", "tiny", "--steps", "5", "--json", "-o", "plan.json"]) == 0
    words = ["--variation-seed", "9", "--variation-strength", "0.3", "--plan", "plan.json", "-o", "out.png"]
    assert main(["--model", "tiny", *words]) == 0
    assert main(["replay", "out.png", "--plan", "plan.json"]) == 0


def test_lists(models: Path, text: Pipeline) -> None:
    lines = [
        '{"prompt": "red", "seed": 3, "count": 2, "variation_seed": 9, "variation_strength": 0.3}',
        '{"prompt": "blue"}',
        '{"prompt": "green", "count": 2, "variation_seed": 4, "variation_strength": 0.6}',
    ]
    Path("list.jsonl").write_text("\n".join(lines))
    command = ["--model", "tiny-text", "--prompts", "list.jsonl", "--seed", "20", "--batch-size", "2", "-o", "out"]
    assert main(command) == 0
    near, far = {"variation_strength": 0.3}, {"variation_strength": 0.6}
    expected = [
        text("red", seed=3, variation_seed=9, **near),
        text("red", seed=3, variation_seed=10, **near),
        text("blue", seed=22),
        text("green", seed=23, variation_seed=4, **far),
        text("green", seed=23, variation_seed=5, **far),
    ]
    for file, alone in zip(sorted(Path("out").glob("*.png")), expected, strict=True):
        with Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), alone.images[0], file.name)
            assert json.loads(picture.info[METADATA_KEY]) == json.loads(json.dumps(alone.metadata_of(0)))
    before = [file.stat().st_mtime_ns for file in Path("out").glob("*.png")]
    assert main(command) == 0  # nothing is drawn again
    assert [file.stat().st_mtime_ns for file in Path("out").glob("*.png")] == before


def test_a_list_that_is_wrong_names_the_line(models: Path, refusal: Callable[..., str]) -> None:
    Path("list.jsonl").write_text('{"prompt": "red", "variation_strength": 0.3}')
    error = refusal(main, "--model", "tiny-text", "--prompts", "list.jsonl", "-o", "out")
    assert "list.jsonl, line 1: variation_strength 0.3 leads towards another seed" in error
    assert not Path("out").exists()
