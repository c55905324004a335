"""Proves image to image: the loop begins at the picture with as much noise as its strength says, on networks known in
closed form; pictures are read with suspicion, fitted, and stay as they are at strength 0."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import tiny_text_bundle as tiny
from PIL import Image

from runtime import load
from runtime.__main__ import main
from runtime.class_to_image import ClassToImage
from runtime.errors import RequestError
from runtime.image import METADATA_KEY
from runtime.noise import noise_generator
from runtime.plan import compile_plan
from runtime.source_image import MAX_PIXELS, open_image, open_mask
from runtime.text_to_image import TextToImage

STEPS, SEED = 10, 5


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def class_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def text(text_model: Path) -> TextToImage:
    pipeline = load(text_model, provider="cpu")
    assert isinstance(pipeline, TextToImage)
    return pipeline


@pytest.fixture(scope="module")
def classes(class_model: Path) -> ClassToImage:
    pipeline = load(class_model, provider="cpu")
    assert isinstance(pipeline, ClassToImage)
    return pipeline


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8)


def ddim(
    start: np.ndarray, noise: np.ndarray, predict: Callable[[np.ndarray, int], np.ndarray], strength: float
) -> Any:
    """DDIM (Song et al. 2021, eq. 12) from a noised start (Ho et al. 2020, eq. 4), in float64."""
    abar = tiny_bundle.alphas_cumprod()  # both bundles have the same
    timesteps = [round(100 - k * 100 / STEPS) - 1 for k in range(STEPS)][STEPS - int(STEPS * strength) :]
    x = np.sqrt(abar[timesteps[0]]) * start + np.sqrt(1 - abar[timesteps[0]]) * noise
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        before = 1.0 if following is None else abar[following]
        eps = predict(x, t)
        x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
        x = np.sqrt(before) * x0 + np.sqrt(1 - before) * eps
    return x


@pytest.mark.parametrize("strength", [0.1, 0.55, 1.0])
def test_classes_begin_at_the_picture(classes: ClassToImage, strength: float) -> None:
    image = picture(8, 8, 1)
    result = classes(
        [2, 0], image=image, strength=strength, seed=SEED, sampler="ddim", num_inference_steps=STEPS, guidance_scale=1
    )
    for k, label in enumerate((2, 0)):
        noise = noise_generator("philox", SEED + k).draw((1, 8, 8)).astype(np.float64)
        start = image.transpose(2, 0, 1) / 127.5 - 1
        expected = ddim(start, noise, lambda x, t, label=label: x * t / (t + 1) + label / 10, strength)
        np.testing.assert_allclose(result.sample[k], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_texts_begin_at_the_pictures_latents(text: TextToImage, strength: float) -> None:
    image = picture(8, 12)
    settings = {"sampler": "ddim", "num_inference_steps": STEPS, "guidance_scale": 1, "timestep_spacing": "trailing"}
    result = text("red", image=image, strength=strength, seed=SEED, **settings)
    pooled = (image.transpose(2, 0, 1) / 127.5 - 1).reshape(3, 4, 2, 6, 2).mean((2, 4))
    start = np.concatenate([pooled, np.zeros((1, 4, 6))]) * tiny.SCALING_FACTOR
    noise = noise_generator("philox", SEED).draw((4, 4, 6)).astype(np.float64)
    expected = ddim(start, noise, lambda x, t: x * t / (t + 1) + tiny.shift("red"), strength)
    np.testing.assert_allclose(result.sample[0], expected, rtol=0, atol=1e-5)
    assert result.images.shape == (1, 8, 12, 3)


def test_strength_0_leaves_what_the_vae_keeps(text: TextToImage) -> None:
    image = picture(8, 12)
    result = text(["red", "blue"], image=image, strength=0)
    means = image.reshape(4, 2, 6, 2, 3).astype(np.float64).mean((1, 3))
    expected = np.repeat(np.repeat(means, 2, axis=0), 2, axis=1)
    assert np.abs(result.images - expected).max() <= 0.5 + 1e-4  # one rounding
    assert result.metadata["options"]["strength"] == 0


def test_strength_0_leaves_pixels_as_they_are(classes: ClassToImage) -> None:
    image = picture(8, 8, 1)
    np.testing.assert_array_equal(classes(1, image=image, strength=0).images[0], image)


def test_strength_is_0_8_unless_a_plan_says_otherwise(text: TextToImage) -> None:
    image = picture(8, 8)
    usual = text("red", image=image, seed=1)
    assert usual.sample.tobytes() == text("red", image=image, seed=1, strength=0.8).sample.tobytes()
    plan = compile_plan(text.bundle.noise_schedule, "euler", 10, strength=0.5)
    by_plan = text("red", image=image, seed=1, plan=plan)
    options = {"sampler": "euler", "num_inference_steps": 10}
    assert by_plan.sample.tobytes() == text("red", image=image, seed=1, strength=0.5, **options).sample.tobytes()


def test_batches_and_memory_change_nothing(text_model: Path, text: TextToImage) -> None:
    arguments: dict[str, Any] = {"image": picture(8, 8), "strength": 0.6, "seed": 3, "sampler": "euler_ancestral"}
    expected = text(["red", "blue", "a"], **arguments).sample.tobytes()
    sparing = load(text_model, provider="cpu", low_memory=True)
    for pipeline, batch_size in ((text, 2), (text, 3), (sparing, 1)):
        assert pipeline(["red", "blue", "a"], batch_size=batch_size, **arguments).sample.tobytes() == expected


def test_files_pillow_images_and_arrays_are_the_same(text: TextToImage, tmp_path: Path) -> None:
    array = picture(8, 8)
    Image.fromarray(array).save(tmp_path / "it.png")
    results = [text("red", image=image, seed=1) for image in (array, Image.fromarray(array), tmp_path / "it.png")]
    assert len({result.sample.tobytes() for result in results}) == 1
    assert results[0].metadata["image_sha256"] == hashlib.sha256(array.tobytes()).hexdigest()


def test_the_size_is_the_pictures_or_as_asked(text: TextToImage) -> None:
    image = picture(21, 13)
    assert text("red", image=image).images.shape == (1, 20, 12, 3)
    assert text("red", image=image, width=16, height=8).images.shape == (1, 8, 16, 3)
    assert text("red", image=picture(1, 1)).images.shape == (1, 2, 2, 3)


def test_a_picture_is_scaled_to_cover_and_cut_from_the_middle(text: TextToImage) -> None:
    image = np.zeros((8, 32, 3), np.uint8)
    image[:, 12:20] = 200  # the middle square
    assert (text("red", image=image, width=8, height=8, strength=0).images == 200).all()


def test_transparent_turned_and_deep_pictures() -> None:
    clear = np.zeros((2, 2, 4), np.uint8)
    assert np.asarray(open_image(clear)).min() == 255
    turned = Image.fromarray(picture(2, 3))
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera held on its side
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    assert open_image(Image.open(io.BytesIO(buffer.getvalue()))).size == (2, 3)
    deep = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert np.asarray(open_image(deep))[0, :, 0].tolist() == [0, 128, 255]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_picture_of_unknown_range_is_refused(mode: str) -> None:
    with pytest.raises(RequestError, match=f"mode {mode} has no range that is known"):
        open_image(Image.new(mode, (4, 4), 200))


def test_an_opened_picture_may_still_be_broken_or_too_large() -> None:
    whole = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(whole, "PNG")
    with pytest.raises(RequestError, match="the picture cannot be read as a picture"):
        open_image(Image.open(io.BytesIO(whole.getvalue()[:2000])))
    with pytest.raises(RequestError, match=f"pixels; a picture has at most {MAX_PIXELS}"):
        open_image(Image.new("1", (2**14, MAX_PIXELS // 2**14 + 1)))


def test_strength_without_a_picture(text: TextToImage) -> None:
    assert text("red", seed=1, strength=None).sample.tobytes() == text("red", seed=1).sample.tobytes()
    for strength in (0, 0.5, "much"):
        with pytest.raises(RequestError, match="says how much of an image changes; give one"):
            text("red", strength=strength)
    with pytest.raises(RequestError, match="strength is False"):
        text("red", image=picture(8, 8), strength=False)


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def broken_files() -> dict[str, tuple[bytes, str]]:
    """Files by what is wrong with them, and what must be said of it."""
    buffer = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(buffer, "PNG")
    whole = buffer.getvalue()
    long_text = chunk(b"zTXt", b"k\0\0" + zlib.compress(b" " * 20_000_000, 9))
    after_header = len(b"\x89PNG\r\n\x1a\n") + len(chunk(b"IHDR", bytes(13)))
    return {
        "text": (b"this is no picture", "cannot be read as a picture"),
        "empty": (b"", "cannot be read as a picture"),
        "truncated": (whole[:2000], "cannot be read as a picture"),
        "huge": (png_that_claims(100_000, 100_000), "pixels"),
        "large": (png_that_claims(2**14, MAX_PIXELS // 2**14 + 1), f"at most {MAX_PIXELS}"),
        "text bomb": (whole[:after_header] + long_text + whole[after_header:], "cannot be read as a picture"),
    }


BROKEN = broken_files()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(text_model: Path, tmp_path: Path, refusal: Callable[..., str], name: str) -> None:
    data, message = BROKEN[name]
    source, output = tmp_path / "source.png", tmp_path / "out.png"
    source.write_bytes(data)
    error = refusal(main, "--model", text_model, "red", "--image", source, "-o", output)
    assert message in error
    assert str(source) in error
    assert not output.exists()


def claiming(suffix: str) -> bytes:
    """A small file that claims more pixels than any program would decode."""
    small, buffer = Image.new("RGB", (8, 8)), io.BytesIO()
    moving = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]} if suffix == "webp" else {}
    small.save(buffer, "JPEG" if suffix == "jpg" else suffix.upper(), **moving)
    data = bytearray(buffer.getvalue())
    place, size = {
        "jpg": (data.find(b"\xff\xc0") + 5, struct.pack(">HH", 65500, 65500)),
        "gif": (6, struct.pack("<HH", 65535, 65535)),
        "bmp": (18, struct.pack("<ii", 2**30, 2**30)),
        "webp": (data.find(b"VP8X") + 12, 2 * (2**14 - 1).to_bytes(3, "little")),
    }[suffix]
    data[place : place + len(size)] = size
    return bytes(data)


@pytest.mark.parametrize("suffix", ["jpg", "gif", "bmp", "webp"])
def test_a_claim_of_any_format_is_refused_before_it_is_decoded(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"claim.{suffix}"
    file.write_bytes(claiming(suffix))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for opening in (open_image, open_mask):
        with pytest.raises(
            RequestError, match=r"claim\.\w+ cannot be read as a picture \(Image size \(\d{9,} pixels\)"
        ):
            opening(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB, where a gigabyte is claimed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "0.5"], "--strength 0.5 says how much of an --image changes; give one"),
        (["--image", "no.png"], "the picture no.png does not exist"),
        (["--image", "."], ". is no file"),
        (["--image", "it.png", "--strength", "1.5"], "strength is 1.5; it must be a number from 0 to 1"),
        (["--image", "it.png", "--strength", "nan"], "strength is nan"),
        (["--image", "it.png", "--strength", "-0.1"], "strength is -0.1"),
        (["--image", "it.png", "--strength", "0.01", "--steps", "10"], "it must be at least 0.1"),
        (["--image", "it.png", "--size", "9x9"], "multiples of 2"),
        (["--image", "it.png", "--plan", "plan.json", "--strength", "0.5"], "either a plan or strength"),
    ],
)
def test_bad_requests(
    text_model: Path,
    tmp_path: Path,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(8, 8)).save("it.png")
    schedule = load(text_model, provider="cpu").bundle.noise_schedule
    Path("plan.json").write_text(json.dumps(compile_plan(schedule, "ddim", 10, strength=0.5).to_json()))
    assert message in refusal(main, "--model", text_model, "red", *arguments, "-o", "out.png")
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    "image", [3, np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(text: TextToImage, image: Any) -> None:
    with pytest.raises(RequestError, match="it must be"):
        text("red", image=image)


def test_the_command_line_draws_from_a_picture(class_model: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "source.png", tmp_path / "out.png"
    Image.fromarray(picture(16, 20)).save(source)
    arguments = ["--label", "1", "--image", str(source), "--strength", "0.5", "--seed", "4", "-o", str(output)]
    assert main(["--model", str(class_model), *arguments]) == 0
    expected = load(class_model, provider="cpu")(1, image=source, strength=0.5, seed=4)
    with Image.open(output) as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), expected.images[0, :, :, 0])
        kept = json.loads(drawn.info[METADATA_KEY])
    assert kept["options"]["strength"] == 0.5
    assert kept["image_sha256"] == expected.metadata["image_sha256"]
