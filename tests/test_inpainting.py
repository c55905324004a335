"""Proves that a part of a picture is drawn anew and the rest is kept: the loop against DDIM by hand with the known part
put back, networks that are told of masks against the closed form of what they were told, grey against strengths, kept
pixels to the last bit, pictures that grow, and every bad mask in one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import tiny_text_bundle as tiny
from PIL import Image
from test_image_to_image import BROKEN, picture

from runtime import load
from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.class_to_image import ClassToImage
from runtime.errors import BundleError, RequestError
from runtime.extend import parse_extend
from runtime.image import METADATA_KEY
from runtime.inpainting import pasted_back
from runtime.noise import noise_generator
from runtime.plan import compile_plan
from runtime.source_image import open_mask
from runtime.text_to_image import TextToImage

STEPS, SEED = 10, 5
DDIM: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": STEPS, "guidance_scale": 1, "seed": SEED}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder)
    tiny_bundle.write(folder)
    (tiny.write(folder / "told", told=True)).rename(folder / "tiny-told")
    return folder


@pytest.fixture(scope="module")
def text(models: Path) -> TextToImage:
    pipeline = load(models / "tiny-text", provider="cpu")
    assert isinstance(pipeline, TextToImage)
    return pipeline


@pytest.fixture(scope="module")
def told(models: Path) -> TextToImage:
    pipeline = load(models / "tiny-told", provider="cpu")
    assert isinstance(pipeline, TextToImage)
    return pipeline


@pytest.fixture(scope="module")
def classes(models: Path) -> ClassToImage:
    pipeline = load(models / "tiny", provider="cpu")
    assert isinstance(pipeline, ClassToImage)
    return pipeline


def rectangle(height: int, width: int, value: int = 255) -> np.ndarray:
    """A mask whose edges lie across latents of two pixels."""
    mask = np.zeros((height, width), np.uint8)
    mask[1:5, 3:-2] = value
    return mask


def latents(image: np.ndarray) -> np.ndarray:
    """What the tiny encoder makes of a picture, in float64."""
    height, width = image.shape[:2]
    pooled = (image.transpose(2, 0, 1) / 127.5 - 1).reshape(3, height // 2, 2, width // 2, 2).mean((2, 4))
    return np.concatenate([pooled, np.zeros((1, height // 2, width // 2))]) * tiny.SCALING_FACTOR


def ddim(
    start: np.ndarray,
    noise: np.ndarray,
    free: np.ndarray | None,
    predict: Callable[[np.ndarray, int], np.ndarray],
    strength: float,
) -> np.ndarray:
    """DDIM (Song et al. 2021, eq. 12) from noise or a noised start, the known part put back at the next level.

    ``free`` is how many of the last rows draw each place; None puts nothing back.
    """
    abar = tiny_bundle.alphas_cumprod()  # all the bundles have the same
    timesteps = [round(100 - k * 100 / STEPS) - 1 for k in range(STEPS)][STEPS - int(STEPS * strength) :]
    first = abar[timesteps[0]]
    x = noise if strength == 1 else np.sqrt(first) * start + np.sqrt(1 - first) * noise
    for row, (t, following) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
        before = 1.0 if following is None else abar[following]
        eps = predict(x, t)
        x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
        x = np.sqrt(before) * x0 + np.sqrt(1 - before) * eps
        if free is not None:
            known = np.sqrt(before) * start + np.sqrt(1 - before) * noise
            x = np.where(row < len(timesteps) - free, known, x)
    return x


def drawn_noise(shape: tuple[int, ...], seed: int = SEED) -> np.ndarray:
    return noise_generator("philox", seed).draw(shape).astype(np.float64)


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_what_is_kept_is_put_back_after_every_row(text: TextToImage, strength: float) -> None:
    image, mask = picture(8, 12), rectangle(8, 12)
    result = text("red", image=image, mask=mask, strength=strength, **DDIM)
    free = np.where(mask[::2, ::2] == 255, STEPS, 0)  # the upper left pixel of each latent's
    shift = tiny.shift("red")
    expected = ddim(latents(image), drawn_noise((4, 4, 6)), free, lambda x, t: x * t / (t + 1) + shift, strength)
    np.testing.assert_allclose(result.sample[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.sample[0][:, free == 0], latents(image)[:, free == 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_models_of_pixels_keep_pixels_to_the_bit(classes: ClassToImage, strength: float) -> None:
    image, mask = picture(8, 8, 1), rectangle(8, 8)
    result = classes([2, 0], image=image, mask=mask, strength=strength, **DDIM)
    for k, label in enumerate((2, 0)):
        free = np.where(mask == 255, STEPS, 0)
        start, noise = image.transpose(2, 0, 1) / 127.5 - 1, drawn_noise((1, 8, 8), SEED + k)
        expected = ddim(start, noise, free, lambda x, t, label=label: x * t / (t + 1) + label / 10, strength)
        np.testing.assert_allclose(result.sample[k], expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(result.images[k][mask == 0], image[mask == 0])


def test_grey_is_let_go_of_later_as_by_a_smaller_strength(text: TextToImage) -> None:
    image, shift = picture(8, 12), tiny.shift("red")
    mask = np.repeat(np.linspace(0, 255, 12).astype(np.uint8)[None], 8, axis=0)
    result = text("red", image=image, mask=mask, **DDIM)
    free = np.broadcast_to(mask[::2, ::2].astype(int) * STEPS // 255, (4, 6))
    assert len(np.unique(free)) == 6
    noise = drawn_noise((4, 4, 6))
    expected = ddim(latents(image), noise, free, lambda x, t: x * t / (t + 1) + shift, 1.0)
    np.testing.assert_allclose(result.sample[0], expected, rtol=0, atol=1e-5)
    # This network looks at one place at a time, so a grey picture is a picture of that strength.
    grey = text("red", image=image, mask=np.full((8, 12), 128, np.uint8), **DDIM)
    half = text("red", image=image, strength=0.5, **DDIM)
    np.testing.assert_allclose(grey.sample, half.sample, rtol=0, atol=1e-6)


def test_black_keeps_all_and_white_draws_all(text: TextToImage) -> None:
    image = picture(8, 12)
    kept = text("red", image=image, mask=np.zeros((8, 12), bool), **DDIM)
    np.testing.assert_array_equal(kept.images[0], image)
    drawn = text("red", image=image, mask=np.ones((8, 12), bool), **DDIM)
    assert drawn.sample.tobytes() == text("red", width=12, height=8, **DDIM).sample.tobytes()


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_network_is_told_of_mask_and_masked_picture(told: TextToImage, strength: float) -> None:
    image, mask = picture(8, 12), rectangle(8, 12)
    mask[6, 2] = 128  # which counts as white
    mask[6, 4] = 127  # and this as black
    result = told("red", image=image, mask=mask, strength=strength, **DDIM)
    white = mask >= 128
    without = np.where(white[..., None], 127.5, image)  # 0 in [-1, 1]
    shift = tiny.shift("red") + white[None, ::2, ::2] + latents(without)
    expected = ddim(latents(image), drawn_noise((4, 4, 6)), None, lambda x, t: x * t / (t + 1) + shift, strength)
    np.testing.assert_allclose(result.sample[0], expected, rtol=0, atol=1e-5)


def test_such_a_network_draws_no_whole(told: TextToImage, models: Path, refusal: Callable[..., str]) -> None:
    for settings in ({}, {"image": picture(8, 8)}):
        with pytest.raises(RequestError, match=r"fills in parts of a picture .*sample, mask, masked_sample.*--mask"):
            told("red", **settings)
    assert "give an image with a mask" in refusal(main, "--model", models / "tiny-told", "red", "-o", "out.png")


def test_the_order_of_its_channels_is_the_manifests(models: Path, told: TextToImage, tmp_path: Path) -> None:
    turned = tiny.changed(models / "tiny-told", tmp_path, lambda m: m["unet_input"].reverse())
    request: dict[str, Any] = {"image": picture(8, 12), "mask": np.ones((8, 12), bool), **DDIM}
    region = load(turned, provider="cpu")
    taken = []
    session = region.networks.session("unet")
    original = session.run
    session.run = lambda **inputs: taken.append(inputs["sample"]) or original(**inputs)  # type: ignore[method-assign]
    region("red", **request)
    assert (taken[0][:, 4] == 1).all()  # masked sample, mask, sample
    np.testing.assert_array_equal(taken[0][0, 5:], noise_generator("philox", SEED).draw((4, 4, 6)))


@pytest.mark.parametrize(
    ("unet_input", "message"),
    [
        ([("sample", 4), ("mask", 4), ("masked_sample", 1)], "unet_input has mask of 4 channels; once, and of 1"),
        ([("sample", 4), ("mask", 1), ("mask", 1)], "unet_input has mask of 1 channels; once"),
        ([("sample", 4), ("mask", 1), ("masked_sample", 3)], "unet_input has masked_sample of 3 channels"),
    ],
)
def test_channels_that_nobody_could_fill_are_refused(
    models: Path, tmp_path: Path, unet_input: list[tuple[str, int]], message: str
) -> None:
    described = [{"name": name, "channels": channels} for name, channels in unet_input]
    bundle = tiny.changed(models / "tiny-told", tmp_path, lambda m: m.update(unet_input=described))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_batches_memory_and_prompts_change_nothing(models: Path, text: TextToImage, told: TextToImage) -> None:
    request: dict[str, Any] = {"image": picture(8, 8), "mask": rectangle(8, 8), "seed": 3, "sampler": "euler_ancestral"}
    for name, pipeline in (("tiny-text", text), ("tiny-told", told)):
        expected = pipeline(["red", "blue", "a"], **request)
        sparing = load(models / name, provider="cpu", low_memory=True)
        for other, batch_size in ((pipeline, 3), (sparing, 2)):
            assert other(["red", "blue", "a"], batch_size=batch_size, **request).sample.tobytes() == (
                expected.sample.tobytes()
            )
        alone = pipeline("blue", **request | {"seed": 4})
        np.testing.assert_array_equal(alone.images[0], expected.images[1])


def test_a_plan_begins_as_its_strength_says(text: TextToImage) -> None:
    request: dict[str, Any] = {"image": picture(8, 8), "mask": rectangle(8, 8), "seed": 1}
    for strength in (0.5, 1.0):
        plan = compile_plan(text.bundle.noise_schedule, "euler", 10, strength=strength)
        options = {"sampler": "euler", "num_inference_steps": 10, "strength": strength}
        assert text("red", plan=plan, **request).sample.tobytes() == text("red", **options, **request).sample.tobytes()
    whole = text("red", plan=compile_plan(text.bundle.noise_schedule, "euler", 10), **request)
    assert whole.sample.tobytes() == text("red", sampler="euler", num_inference_steps=10, **request).sample.tobytes()


def test_after_the_last_row_no_noise_is_put_back(text: TextToImage) -> None:
    """Also where the plan ends with some: what is decoded is the picture."""
    plan = compile_plan(text.bundle.noise_schedule, "euler", 10, sigma_spacing="karras", final_sigmas_type="sigma_min")
    image, mask = picture(8, 12), rectangle(8, 12)
    result = text("red", image=image, mask=mask, plan=plan, seed=1)
    black = mask[::2, ::2] == 0
    np.testing.assert_allclose(result.sample[0][:, black], latents(image)[:, black], rtol=0, atol=1e-6)


def test_kept_pixels_are_the_pictures_own(text: TextToImage) -> None:
    image, mask = picture(16, 24), np.zeros((16, 24), bool)
    mask[4:12, 8:14] = True
    pasted = text("red", image=image, mask=mask, **DDIM)
    decoded = text("red", image=image, mask=mask, paste_back=False, **DDIM)
    far = np.ones_like(mask)
    far[2:14, 6:16] = False  # two pixels around
    np.testing.assert_array_equal(pasted.images[0][far], image[far])
    np.testing.assert_array_equal(pasted.images[0][mask], decoded.images[0][mask])
    assert (decoded.images[0][far] != image[far]).any()  # this VAE averages
    assert pasted.sample.tobytes() == decoded.sample.tobytes()
    assert (pasted.metadata["paste_back"], decoded.metadata["paste_back"]) == (True, False)


def test_kept_pixels_fade_in_over_one_latent() -> None:
    drawn = np.zeros((1, 40), bool)
    drawn[:, :10] = True
    white = np.full((1, 1, 40, 3), 255, np.uint8)
    mixed = pasted_back(white, Image.new("RGB", (40, 1)), drawn, 8)[0, 0, :, 0]
    ramp = [255 * (9 - k) / 9 for k in range(1, 9)]  # the mean of nine, of which nine, eight ... are drawn
    np.testing.assert_allclose(mixed[:18], [255] * 10 + ramp, rtol=0, atol=1)
    assert not mixed[18:].any()


def test_a_picture_grows_by_what_is_drawn(text: TextToImage) -> None:
    image = picture(8, 12)
    result = text("red", image=image, extend={"left": 4, "bottom": 2}, **DDIM)
    assert result.images.shape == (1, 10, 16, 3)
    np.testing.assert_array_equal(result.images[0][:6, 6:], image[:6, 2:])
    assert result.metadata["extend"] == {"left": 4, "bottom": 2}
    padded = np.pad(image, ((0, 2), (4, 0), (0, 0)), mode="edge")
    mask = np.ones((10, 16), bool)
    mask[:8, 4:] = False
    by_hand = text("red", image=padded, mask=mask, **DDIM)
    np.testing.assert_array_equal(result.images, by_hand.images)
    assert result.metadata["mask_sha256"] == by_hand.metadata["mask_sha256"]
    both = text("red", image=image, mask=rectangle(8, 12), extend={"right": 4}, **DDIM)
    grown = np.pad(rectangle(8, 12), ((0, 0), (0, 4)), constant_values=255)
    assert both.metadata["mask_sha256"] == hashlib.sha256(grown.tobytes()).hexdigest()


def test_a_picture_of_a_fixed_size_grows_and_is_scaled(classes: ClassToImage) -> None:
    image = np.full((6, 6), 100, np.uint8)
    result = classes(1, image=image, extend={"left": 1, "top": 1, "right": 1, "bottom": 1}, **DDIM)
    assert result.images.shape == (1, 8, 8, 1)
    assert (result.images[0, 1:7, 1:7] == 100).all()


def test_a_mask_goes_the_way_of_its_picture(text: TextToImage) -> None:
    image, mask = picture(16, 48), np.zeros((16, 48), np.uint8)
    mask[:, 24:] = 255
    result = text("red", image=image, mask=mask, width=8, height=8, **DDIM)
    small = np.zeros((8, 8), np.uint8)
    small[:, 4:] = 255
    assert result.sample.shape == (1, 4, 4, 4)
    kept = text("red", image=image, width=8, height=8, strength=0)
    np.testing.assert_array_equal(result.sample[0][:, :, :2], kept.sample[0][:, :, :2])
    assert (result.sample[0][:, :, 2:] != kept.sample[0][:, :, 2:]).all()


def test_masks_of_every_kind_are_the_same(tmp_path: Path) -> None:
    expected = np.array([[0, 255, 0], [255, 0, 0]], np.uint8)
    clear = np.zeros((2, 3, 4), np.uint8)
    clear[..., 3] = 255 - expected  # black, and transparent where it is drawn anew
    Image.fromarray(clear).save(tmp_path / "clear.png")
    for mask in (expected, expected > 0, Image.fromarray(expected).convert("1"), clear, tmp_path / "clear.png"):
        np.testing.assert_array_equal(np.asarray(open_mask(mask)), expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (3, "mask is int; it must be a file"),
        (np.zeros((8, 8)), "mask is an array float64"),
        (np.array([["white"]]), "mask is an array <U5"),
        (np.eye(8, dtype=np.uint8), "mask is an array of at most 1, and white is 255"),
        (np.zeros((4, 8), bool), "the mask has 8x4 pixels and the image 8x8; give both in one size"),
        (np.zeros((0, 8), bool), "mask is an array uint8"),
    ],
)
def test_what_is_no_mask_is_refused(text: TextToImage, mask: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        text("red", image=picture(8, 8), mask=mask)


@pytest.mark.parametrize(
    ("extend", "message"),
    [
        (64, "extend is 64; it must be pixels by side"),
        ({"up": 4}, "extend has a side 'up'; there are left, top, right, bottom"),
        ({"left": -2}, "extend left is -2; it must be a whole number from 0 to 16384"),
        ({"left": 2.0}, "extend left is 2.0"),
        ({"left": 0}, "extend adds nothing on any side"),
        ({"left": 1, "top": 3}, "multiples of 2 are drawn; add 1 to left or right and 1 to top or bottom"),
        (dict.fromkeys(("left", "top"), 16384), "extended, the picture has 16392x16392 pixels; at most 67108864"),
    ],
)
def test_what_no_picture_grows_by_is_refused(text: TextToImage, extend: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        text("red", image=picture(8, 8), extend=extend)


@pytest.mark.parametrize("value", [None, 1, "no", np.zeros(3)])
def test_pixels_are_put_back_or_not(text: TextToImage, value: Any) -> None:
    with pytest.raises(RequestError, match=r"paste_back is .*; it must be True or False"):
        text("red", image=picture(8, 8), mask=rectangle(8, 8), paste_back=value)


def test_a_mask_is_of_an_image(text: TextToImage) -> None:
    for name, value in (("mask", rectangle(8, 8)), ("extend", {"left": 2})):
        with pytest.raises(RequestError, match=f"{name} says what of an image is drawn anew, and there is no image"):
            text("red", **{name: value})


@pytest.mark.parametrize(
    "text", ["", "left", "left=", "left=4,", "left=4,left=2", "left=-1", "north=3", "left=4;top=2"]
)
def test_sides_that_cannot_be_read(text: str) -> None:
    with pytest.raises(RequestError, match="such as left=64,bottom=128"):
        parse_extend(text)
    assert parse_extend("bottom=128,left=64") == {"bottom": 128, "left": 64}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "it.png"], "--mask it.png says what of an --image is drawn anew; give one"),
        (["--extend", "left=2"], "--extend left=2 says what of an --image is drawn anew; give one"),
        (["--image", "it.png", "--no-paste-back"], "--no-paste-back says what is done with what a --mask keeps"),
        (["--image", "it.png", "--mask", "no.png"], "the picture no.png does not exist"),
        (["--image", "it.png", "--mask", "small.png"], "the mask has 4x4 pixels and the image 8x8"),
        (["--image", "it.png", "--extend", "left=1"], "add 1 to left or right, or say the size"),
        (["--image", "it.png", "--extend", "top"], "extend 'top' must be sides with pixels"),
        *((["--image", "it.png", "--mask", f"{name}.broken"], message) for name, (_, message) in BROKEN.items()),
    ],
)
def test_bad_requests(
    models: Path,
    tmp_path: Path,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, side in (("it.png", 8), ("small.png", 4)):
        Image.fromarray(picture(side, side)).save(name)
    for name, (data, _) in BROKEN.items():
        Path(f"{name}.broken").write_bytes(data)
    assert message in refusal(main, "--model", models / "tiny-text", "red", *arguments, "-o", "out.png")
    assert not Path("out.png").exists()


def save(name: str, array: np.ndarray) -> None:
    Image.fromarray(array).save(name)


def test_the_command_line_fills_in_and_replays(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", str(models))
    save("it.png", picture(8, 12))
    save("mask.png", rectangle(8, 12))
    save("other.png", rectangle(8, 12, 200))
    draw = ["--model", "tiny-text", "red", "--image", "it.png", "--seed", "4"]
    assert main([*draw, "--mask", "mask.png", "--no-paste-back", "-o", "out.png"]) == 0
    expected = load("tiny-text", provider="cpu")("red", image="it.png", mask="mask.png", paste_back=False, seed=4)
    with Image.open("out.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), expected.images[0])
        kept = json.loads(drawn.info[METADATA_KEY])
    assert kept["mask_sha256"] == hashlib.sha256(rectangle(8, 12).tobytes()).hexdigest()
    again = ["replay", "out.png", "--image", "it.png"]
    assert main([*again, "--mask", "mask.png"]) == 0
    assert "was drawn with a mask; give it with --mask" in refusal(main, *again)
    assert "other.png is not the mask that out.png was drawn with" in refusal(main, *again, "--mask", "other.png")

    assert main([*draw, "--extend", "right=4,top=2", "-o", "grown.png"]) == 0
    with Image.open("grown.png") as drawn:
        assert drawn.size == (16, 10)
    again = ["replay", "grown.png", "--image", "it.png"]
    assert main(again) == 0
    assert "other.png is not the mask" in refusal(main, *again, "--mask", "other.png")
    assert main([*draw, "--extend", "right=4", "--mask", "mask.png", "-o", "both.png"]) == 0
    again = ["replay", "both.png", "--image", "it.png"]
    assert main([*again, "--mask", "mask.png"]) == 0
    assert "no mask is not the mask that both.png was drawn with" in refusal(main, *again)


def test_a_list_has_masks_of_its_own(
    models: Path, text: TextToImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lists").mkdir()
    for folder in ("", "lists/"):
        save(f"{folder}it.png", picture(8, 12))
        save(f"{folder}mask.png", rectangle(8, 12))
    lines = [
        {"prompt": "red", "image": "it.png", "mask": "mask.png", "strength": 0.6, "paste_back": False},
        {"prompt": "red", "image": "it.png", "extend": {"left": 2}},
        {"prompt": "red"},
    ]
    Path("lists/list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["--model", str(models / "tiny-text"), "--prompts", "lists/list.jsonl", "--seed", "7", "-o", "drawn"]
    assert main([*command, "--mask", "mask.png"]) == 0
    own: dict[str, Any] = {"image": "it.png", "mask": "mask.png"}
    expected = [
        text("red", **own, strength=0.6, paste_back=False, seed=7),
        text("red", **own, extend={"left": 2}, seed=8),
        text("red", seed=9),
    ]
    for k, result in enumerate(expected, 1):
        with Image.open(f"drawn/{k:05d}-red.png") as drawn:
            np.testing.assert_array_equal(np.asarray(drawn), result.images[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mask", "mask.png"], "--mask mask.png says what of an --image is drawn anew"),
        (["--extend", "left=2"], "--extend left=2 says what of an --image is drawn anew"),
        (["--strength", "0.5"], "--strength 0.5 says how much of an --image changes"),
        (["--no-paste-back"], "--no-paste-back says what is done with what a --mask keeps"),
    ],
)
def test_flags_of_an_image_are_for_a_list_that_has_one(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: Callable[..., str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("red\n")
    command = ["--model", models / "tiny-text", "--prompts", "list.txt", "-o", "drawn"]
    assert message in refusal(main, *command, *flags)
    assert not Path("drawn").exists()
