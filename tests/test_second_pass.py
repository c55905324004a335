"""Proves the second pass: it is, bit for bit, image to image from the enlarged picture; latents are enlarged as PyTorch
does; its size is checked before anything is drawn; and what carries a picture's settings carries these."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text_bundle as tiny
from PIL import Image

from runtime import load
from runtime.__main__ import main
from runtime.errors import RequestError
from runtime.image import METADATA_KEY
from runtime.noise import noise_generator
from runtime.result import Result
from runtime.second_pass import bilinear, enlarged_size
from runtime.text_to_image import TextToImage

ARGUMENTS: dict[str, Any] = {"negative_prompt": "green", "sampler": "euler_ancestral", "num_inference_steps": 6}


@pytest.fixture
def text(models: Path) -> TextToImage:
    pipeline = load("tiny-text", "cpu")
    assert isinstance(pipeline, TextToImage)
    return pipeline


@pytest.mark.parametrize("size", [(7, 9), (5, 4), (10, 8), (3, 8), (1, 1)])
def test_latents_are_enlarged_as_by_pytorch(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    latents = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(latents), size=size, mode="bilinear").numpy()
    np.testing.assert_allclose(bilinear(latents, *size), expected, rtol=0, atol=1e-6)


def test_twice_as_large_by_hand() -> None:
    latents = np.array([0, 4], np.float32).reshape(1, 1, 1, 2)
    np.testing.assert_array_equal(bilinear(latents, 2, 4)[0, 0], [[0, 1, 3, 4]] * 2)


@pytest.mark.parametrize(
    ("width", "upscale", "factor", "expected"),
    [(512, 1.5, 8, 768), (512, 1.1, 8, 560), (100, 2.9, 10, 290), (8, 1, 8, 8)],
)
def test_sizes(width: int, upscale: float, factor: int, expected: int) -> None:
    assert enlarged_size(width, width, upscale, factor) == (expected, expected)


def by_hand(text: TextToImage, prompt: str, seed: int, strength: float, steps: int) -> Result:
    """Draw, enlarge the picture, and draw from it."""
    small = text(prompt, seed=seed, **ARGUMENTS)
    larger = Image.fromarray(small.images[0]).resize((18, 12), Image.Resampling.LANCZOS)
    return text(prompt, seed=seed, image=larger, strength=strength, **ARGUMENTS | {"num_inference_steps": steps})


def test_by_pixels_it_is_image_to_image_to_the_bit(text: TextToImage) -> None:
    long = "red " * 9  # of another number of chunks
    drawn = text(["a circle", long], seed=3, upscale=1.5, upscale_by="pixels", upscale_strength=0.5, **ARGUMENTS)
    for k, prompt in enumerate(("a circle", long)):
        assert drawn.sample[k].tobytes() == by_hand(text, prompt, 3 + k, 0.5, 6).sample[0].tobytes()
    assert drawn.images.shape == (2, 12, 18, 3)


def test_it_may_have_other_steps(text: TextToImage) -> None:
    drawn = text("a circle", seed=3, upscale=1.5, upscale_by="pixels", upscale_steps=10, **ARGUMENTS)
    assert drawn.sample.tobytes() == by_hand(text, "a circle", 3, 0.7, 10).sample.tobytes()


def test_by_latents_it_begins_at_enlarged_latents(text: TextToImage) -> None:
    """On the tiny network in closed form: DDIM's rows of the second plan (Song et al. 2021, eq. 12), in float64."""
    settings: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": 10, "guidance_scale": 1}
    settings["timestep_spacing"] = "trailing"
    small = text("red", seed=3, **settings)
    drawn = text("red", seed=3, upscale=2, upscale_strength=0.5, **settings)
    abar = tiny.alphas_cumprod()
    timesteps = [49, 39, 29, 19, 9]
    start = bilinear(small.sample, 8, 12)[0].astype(np.float64)
    noise = noise_generator("philox", 3).draw((4, 8, 12))
    x = np.sqrt(abar[49]) * start + np.sqrt(1 - abar[49]) * noise
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        before = 1.0 if following is None else abar[following]
        eps = x * t / (t + 1) + tiny.shift("red")
        x = np.sqrt(before) * (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t]) + np.sqrt(1 - before) * eps
    np.testing.assert_allclose(drawn.sample[0], x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("by", ["latents", "pixels"])
def test_batches_and_memory_change_nothing(models: Path, text: TextToImage, by: str) -> None:
    arguments = ARGUMENTS | {
        "seed": 3,
        "upscale": 1.5,
        "upscale_by": by,
        "variation_seed": 5,
        "variation_strength": 0.2,
    }
    prompts = ["red", "blue " * 9, "a"]
    expected = text(prompts, **arguments).sample.tobytes()
    assert text(prompts, batch_size=3, **arguments).sample.tobytes() == expected
    assert load("tiny-text", "cpu", low_memory=True)(prompts, **arguments).sample.tobytes() == expected


def test_it_follows_image_to_image_too(text: TextToImage) -> None:
    image = np.random.default_rng(7).integers(0, 256, (8, 12, 3), np.uint8)
    small = text("red", seed=3, image=image, strength=0.4, **ARGUMENTS)
    larger = Image.fromarray(small.images[0]).resize((24, 16), Image.Resampling.LANCZOS)
    expected = text("red", seed=3, image=larger, strength=0.7, **ARGUMENTS)
    drawn = text("red", seed=3, image=image, strength=0.4, upscale=2, upscale_by="pixels", **ARGUMENTS)
    assert drawn.sample.tobytes() == expected.sample.tobytes()


def test_nothing_changes_at_strength_0(text: TextToImage) -> None:
    drawn = text("red", seed=3, upscale=2, upscale_strength=0, **ARGUMENTS)
    np.testing.assert_array_equal(drawn.sample, bilinear(text("red", seed=3, **ARGUMENTS).sample, 8, 12))


def test_guidance_may_begin_in_the_second_pass(text: TextToImage) -> None:
    """The first pass keeps the picture as it is, so that no row of it is guided."""
    image = np.random.default_rng(7).integers(0, 256, (8, 12, 3), np.uint8)
    arguments = {"seed": 3, "image": image, "strength": 0, "upscale": 2, "guidance_scale": 4.0}
    away = text("red", negative_prompt="blue", **arguments)
    assert np.abs(away.sample - text("red", negative_prompt="green", **arguments).sample).max() > 0.01


def test_progress_counts_both_passes(text: TextToImage) -> None:
    told: list[tuple[int, int]] = []
    text(["a", "red", "red " * 9], upscale=2, progress=lambda *done: told.append(done), num_inference_steps=10)
    assert told == [(k + 1, 3 * 17) for k in range(3 * 17)]


def test_step_by_step_it_is_the_same(text: TextToImage) -> None:
    steps = list(text.denoise(["red", "blue " * 9], seed=3, upscale=2, **ARGUMENTS))
    assert [step.sample.shape for step in steps[:10]] == [(1, 4, 4, 6)] * 6 + [(1, 4, 8, 12)] * 4
    assert [step.images for step in steps] == [(0,)] * 10 + [(1,)] * 10
    drawn = text(["red", "blue " * 9], seed=3, upscale=2, **ARGUMENTS)
    assert steps[-1].result().sample.tobytes() == drawn.sample.tobytes()


def test_too_little_memory_for_the_larger_size(text: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.memory_plan.held_bytes", lambda: 0)
    monkeypatch.setattr("runtime.memory_plan.available_bytes", lambda: 2**20 * 600)
    text("red", num_inference_steps=1)
    with pytest.raises(RequestError, match="512x512, 1 at once, needs"):
        text("red", width=256, height=256, upscale=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"upscale": 0.5}, "upscale is 0.5; it must be a number from 1 to 4"),
        ({"upscale": float("nan")}, "upscale is nan"),
        ({"upscale": "2"}, "upscale is '2'"),
        ({"upscale": 2, "upscale_by": "magic"}, "upscale_by 'magic' is unknown; choose latents or pixels"),
        ({"upscale": 2, "upscale_by": np.zeros(3)}, "upscale_by array([0., 0., 0.]) is unknown"),
        ({"upscale": 2, "upscale_strength": 2}, "upscale_strength is 2"),
        ({"upscale": 2, "upscale_steps": 0}, "upscale_steps is 0"),
        (
            {"upscale": 2, "image": np.zeros((8, 12, 3), np.uint8), "mask": np.full((8, 12), 255, np.uint8)},
            "a second pass draws anew what the mask keeps, too; leave out upscale, or the mask",
        ),
        (
            {"upscale": 2, "image": np.zeros((8, 12, 3), np.uint8), "extend": {"left": 4}},
            "a second pass draws anew what the extension keeps, too; leave out upscale, or extend",
        ),
        (
            {"upscale": 2, "upscale_steps": 2, "upscale_strength": 0.1},
            "the second pass, 24x16: strength 0.1 of 2 steps",
        ),
        ({"upscale": 4, "width": 2**13}, "the second pass, 32768x32: width is 32768"),
        ({"upscale_by": "pixels"}, "upscale_by pixels is of a second pass; give upscale"),
    ],
)
def test_bad_requests(text: TextToImage, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        text("red", **arguments)
    assert str(caught.value).startswith(message)


def test_with_a_plan_or_of_classes_there_is_none(models: Path, text: TextToImage) -> None:
    with pytest.raises(RequestError, match="a plan says nothing of a second pass"):
        text("red", upscale=2, plan=text.plan())
    with pytest.raises(RequestError, match="tiny draws pixels of one size; leave out upscale 2"):
        load("tiny", "cpu")(1, upscale=2)


def test_without_an_encoder_of_images(models: Path) -> None:
    folder = tiny.changed(models / "tiny-text", models, lambda manifest: manifest["graphs"].pop("vae_encoder"))
    pipeline = load(folder, "cpu")
    assert pipeline("red", upscale=2).images.shape == (1, 16, 24, 3)
    with pytest.raises(RequestError, match="has no encoder of images; give upscale_by='latents'"):
        pipeline("red", upscale=2, upscale_by="pixels")


def test_the_command_line_replay_and_lists(models: Path, text: TextToImage, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--upscale", "1.5", "--upscale-by", "pixels", "--upscale-strength", "0.5", "--upscale-steps", "8"]
    words = ["--model", "tiny-text", "red", "--seed", "3", "--steps", "6", *flags, "-o", "out.png"]
    assert main(words) == 0
    said: dict[str, Any] = {"upscale": 1.5, "upscale_by": "pixels", "upscale_strength": 0.5, "upscale_steps": 8}
    expected = text("red", seed=3, num_inference_steps=6, **said)
    with Image.open("out.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected.images[0])
        carried, words = json.loads(picture.info[METADATA_KEY]), picture.info["parameters"]
    assert carried.items() >= said.items()
    assert "Size: 12x8" in words
    assert "Denoising strength: 0.5, Hires upscale: 1.5, Hires steps: 8, Hires upscaler: Lanczos" in words
    capsys.readouterr()
    assert main(["replay", "out.png"]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    Path("list.jsonl").write_text(json.dumps({"prompt": "red", "seed": 3, "steps": 6} | said))
    assert main(["--model", "tiny-text", "--prompts", "list.jsonl", "-o", "out"]) == 0
    with Image.open("out/00001-red.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected.images[0])


def test_a_size_that_the_format_cannot_hold_is_found_at_once(models: Path, refusal: Callable[..., str]) -> None:
    words = ["--model", "tiny-text", "red", "--size", "8192x8", "--upscale", "2", "-o", "out.webp"]
    assert "16384x16 pixels is too large for WEBP" in refusal(main, *words)
