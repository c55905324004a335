"""Proves that a picture can be drawn again from what it carries, that another one is noticed, and that whatever a
stranger's picture carries opens no file of its choosing and ends in one line."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_image_to_image import BROKEN

from runtime import load
from runtime.__main__ import main
from runtime.image import EXIF_IFD, METADATA_KEY, PARAMETERS_KEY, USER_COMMENT, UTF_16, carried_by, encode_image
from runtime.source_image import MAX_BYTES

ROOT = Path(__file__).parents[1]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["bundle", "options", "seed", "prompt", "width", "rng", "sampler"])


@pytest.fixture
def models(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", str(tiny_models))
    return tiny_models


def carrying(path: Path, **changes: Any) -> None:
    """Change what a picture carries; None takes a key away."""
    with Image.open(path) as picture:
        pixels, carried = np.asarray(picture), json.loads(picture.info[METADATA_KEY]) | changes
    kept = {key: value for key, value in carried.items() if value is not None}
    path.write_bytes(encode_image(pixels if pixels.ndim == 3 else pixels[..., None], ".png", kept))


TEXT = ["a (red:1.5) circle", "--negative", "blue", "--size", "10x8", "--sampler", "dpmpp_2m_sde", "--clip-skip", "1"]
DRAWN = {
    "text": ["--model", "tiny-text", *TEXT, "--guidance-scale", "4", "--rng", "torch"],
    "classes": ["--model", "tiny", "--label", "dog", "--sampler", "ddpm", "--steps", "12"],
    "options": ["--model", "tiny-text", "red", "--sampler", "euler", "--sigma-spacing", "karras"],
    "interval": ["--model", "tiny-text", "red", "--guidance-interval", "0.3,5", "--clip-sample", "1.5"],
    "variation": ["--model", "tiny", "--variation-seed", "8", "--variation-strength", "0.4"],
    "second pass": ["--model", "tiny-text", "red", "--upscale", "2", "--upscale-by", "pixels", "--upscale-steps", "7"],
    "low memory": ["--model", "tiny-text", "red", "--low-memory"],
}


@pytest.mark.parametrize("arguments", DRAWN.values(), ids=DRAWN)
def test_a_picture_is_drawn_again(models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main([*arguments, "--seed", "7", "-o", "out.png"]) == 0
    capsys.readouterr()
    assert main(["replay", "out.png", "-o", "again.png"]) == 0
    assert "out.png: the same, bit for bit" in capsys.readouterr().out
    with Image.open("out.png") as before, Image.open("again.png") as after:
        assert before.info[METADATA_KEY] == after.info[METADATA_KEY]


@pytest.mark.parametrize("model", ["tiny", "tiny-text"])
@pytest.mark.parametrize("suffix", [".webp", ".jpg"])
def test_a_format_that_loses_detail_carries_the_same(
    models: Path, capsys: pytest.CaptureFixture[str], model: str, suffix: str
) -> None:
    """Its picture is compared with what the format makes of the new one."""
    words = ["--model", model, *(["red"] if model == "tiny-text" else []), "--seed", "7"]
    for name in ("out.png", f"out{suffix}"):
        assert main([*words, "-o", name]) == 0
    with Image.open("out.png") as png, Image.open(f"out{suffix}") as other:
        assert carried_by(other) == carried_by(png)
        comment = other.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, UTF_16)
        assert comment.removeprefix(UTF_16).decode("utf-16-be") == png.info.get(PARAMETERS_KEY, "")
    capsys.readouterr()
    assert main(["replay", f"out{suffix}"]) == 0
    assert f"out{suffix}: the same, bit for bit" in capsys.readouterr().out


def test_what_is_too_long_for_a_jpeg_is_said(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny-text", "red " * 20_000, "--steps", "1", "--seed", "7", "-o", "out.jpg"]) == 0
    assert "too long for a .jpg and is left out; .png has it" in capsys.readouterr().err
    with Image.open("out.jpg") as picture:
        assert carried_by(picture) is None


def test_one_of_several(models: Path) -> None:
    assert main(["--model", "tiny-text", "red", "--count", "3", "--seed", "7", "-o", "out.png"]) == 0
    assert main(["replay", "out-3.png"]) == 0


def test_a_picture_that_began_at_one(models: Path, refusal: Callable[..., str]) -> None:
    for name, value in (("begin.png", 90), ("other.png", 91)):
        Image.new("RGB", (8, 8), (value, 10, 200)).save(name)
    drawn = ["--model", "tiny-text", "red", "--image", "begin.png", "--strength", "0.6", "--seed", "1", "-o", "out.png"]
    assert main(drawn) == 0
    assert main(["replay", "out.png", "--image", "begin.png"]) == 0
    assert "began at a picture; give it with --image" in refusal(main, "replay", "out.png")
    assert "other.png is not the picture" in refusal(main, "replay", "out.png", "--image", "other.png")
    output = ["--image", "begin.png", "-o", "other.png"]
    assert "other.png exists; choose another name" in refusal(main, "replay", "out.png", *output)


def test_a_picture_drawn_by_a_plan(models: Path, refusal: Callable[..., str]) -> None:
    for name, steps in (("plan.json", "7"), ("other.json", "8")):
        assert main(["plan", "--model", "tiny-text", "--steps", steps, "--json", "-o", name]) == 0
    assert main(["--model", "tiny-text", "red", "--plan", "plan.json", "--seed", "1", "-o", "out.png"]) == 0
    assert main(["replay", "out.png", "--plan", "plan.json"]) == 0
    assert "drawn by a plan that was given; give it with --plan" in refusal(main, "replay", "out.png")
    assert "other.json is not the plan" in refusal(main, "replay", "out.png", "--plan", "other.json")


def test_another_picture_is_noticed(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny-text", "red", "--seed", "7", "-o", "out.png"]) == 0
    carrying(Path("out.png"), seed=8)
    capsys.readouterr()
    assert main(["replay", "out.png"]) == 1
    assert "out.png: another picture: " in capsys.readouterr().out


def test_rounding_is_no_difference(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = load("tiny-text", provider="cpu")("red", seed=7, width=64, height=64)
    pixels = result.images[0].copy()
    pixels[3, 5, 1] ^= 1
    Path("out.png").write_bytes(encode_image(pixels, ".png", result.metadata_of(0)))
    assert main(["replay", "out.png"]) == 0
    assert "the same but for rounding: 0.024 % of the pixels differ, by at most 1 of 255" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundle": "../../etc"}, "which is no name of a bundle"),
        ({"bundle": "/etc"}, "which is no name of a bundle"),
        ({"bundle": "elsewhere"}, "was drawn by elsewhere, of which there is no bundle here"),
        ({"bundle_sha256": "0" * 64}, "was drawn by another tiny-text than the one here"),
        ({"options": {"image": "/etc/passwd"}}, "no sampler has an option 'image'"),
        ({"options": {"plan": "x"}}, "no sampler has an option 'plan'"),
        ({"options": {"eta": "x"}}, "eta is x"),
        ({"image": "/etc/passwd"}, "has unknown keys: image"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "lacks the key 'seed'"),
        ({"width": 10**9}, "width is 1000000000"),
        ({"num_inference_steps": 10**6}, "num_inference_steps 1000000 exceeds"),
        ({"prompt": 5}, "prompt must be str"),
        ({"upscale": 1e9}, "upscale is 1000000000.0; it must be a number from 1 to 4"),
        ({"upscale": 4, "width": 16384}, "the second pass, 65536x32: width is 65536"),
        ({"upscale_by": "/etc/passwd"}, "upscale_by /etc/passwd is of a second pass; give upscale"),
        ({"variation_seed": 2**70, "variation_strength": 0.5}, "variation_seed"),
        ({"pictures": []}, "it is a sheet; draw its pictures one by one"),
        ({"frames": 2}, "it is a frame between two pictures; draw the frames again"),
        ({"share": 0.5, "to_prompt": "blue"}, "it is a frame between two pictures; draw the frames again"),
        ({"seeds": [1, 2]}, "it is a sheet; draw its pictures one by one"),
    ],
)
def test_what_a_strangers_picture_may_carry(
    models: Path, refusal: Callable[..., str], changes: dict[str, Any], message: str
) -> None:
    assert main(["--model", "tiny-text", "red", "--seed", "7", "-o", "out.png"]) == 0
    carrying(Path("out.png"), **changes)
    assert message in refusal(main, "replay", "out.png")


def test_files_that_are_no_pictures_of_ours(models: Path, refusal: Callable[..., str]) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Image.new("RGB", (8, 8)).save("picture.jpg")
    Path("text.png").write_text("no picture")
    info = PngInfo()
    info.add_text(METADATA_KEY, "[" * 10**5)
    Image.new("RGB", (8, 8)).save("deep.png", pnginfo=info)
    for name, message in (
        ("missing.png", "the picture missing.png does not exist"),
        (".", ". is no file"),
        ("plain.png", "does not say what made it"),
        ("picture.jpg", "does not say what made it"),
        ("text.png", "cannot be read as a picture"),
        ("deep.png", "carries nothing that can be drawn again"),
    ):
        assert message in refusal(main, "replay", name)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_or_a_bomb_is_one_line(models: Path, refusal: Callable[..., str], name: str) -> None:
    """What is too large, or claims to be, is refused before it is decoded."""
    data, message = BROKEN[name]
    Path("bad.png").write_bytes(data)
    assert message in refusal(main, "replay", "bad.png")


def test_a_picture_of_too_many_bytes_is_not_read(models: Path, refusal: Callable[..., str]) -> None:
    with Path("huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # which takes no room on the disk
    for words in (["replay", "huge.png"], ["--model", "tiny-text", "red", "--image", "huge.png", "-o", "out.png"]):
        assert f"huge.png has {MAX_BYTES + 1} bytes; a picture has at most {MAX_BYTES}" in refusal(main, *words)


def test_a_picture_of_an_older_version(models: Path) -> None:
    assert main(["--model", "tiny-text", "red", "--seed", "7", "-o", "out.png"]) == 0
    carrying(Path("out.png"), version=None)
    assert main(["replay", "out.png"]) == 0


WATCH = """
import json, sys
from runtime.__main__ import main
named, *pictures = sys.argv[1:]
outside = ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system")
reached = []
def watch(event, arguments):
    if event in outside or named in str(arguments):
        reached.append([event, str(arguments)])
sys.addaudithook(watch)
for picture in pictures:
    assert main(["replay", picture, "--image", "begin.png", "--mask", "begin.png"]) in (0, 1, 2)
print(json.dumps(reached))
"""


def test_no_path_that_a_picture_names_is_opened_and_nothing_is_fetched(models: Path, tmp_path: Path) -> None:
    """Every value of a picture in turn is the path of a file that is there, and so are values that it does not have."""
    assert main(["--model", "tiny-text", "red", "--seed", "7", "-o", "plain.png"]) == 0
    Image.new("RGB", (12, 8)).save("begin.png")
    begun = ["--image", "begin.png", "--mask", "begin.png", "--seed", "7", "-o", "begun.png"]
    assert main(["--model", "tiny-text", "red", *begun]) == 0
    named = tmp_path / "named"
    (models / "tiny-text").rename(named)  # a whole bundle, so that whoever opens it finds what is wanted
    shutil.copytree(named, models / "tiny-text")
    further = ("image", "mask", "plan", "model", "embedding", "negative_prompt", "to_prompt", "tokenizer", "file")
    pictures = []
    for name in ("plain.png", "begun.png"):
        with Image.open(name) as picture:
            keys = {*json.loads(picture.info[METADATA_KEY]), *further}
        values: list[Any] = [str(named), [{"name": str(named), "sha256": "", "vectors": 1, "image": str(named)}]]
        for k, (key, value) in enumerate(itertools.product(sorted(keys), values)):
            pictures.append(f"{k}-{name}")
            shutil.copy(name, pictures[-1])
            carrying(Path(pictures[-1]), **{key: value})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", WATCH, str(named), *pictures]
    finished = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == []
    assert finished.stderr.count("error: ") > len(pictures) / 2
    assert "begun.png: the same" in finished.stdout  # where the value was of no importance


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, JSON))
def test_whatever_it_carries_is_no_traceback(
    models: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    if not Path("base.png").exists():
        assert main(["--model", "tiny-text", "red", "--seed", "7", "-o", "base.png"]) == 0
    Path("out.png").write_bytes(Path("base.png").read_bytes())
    try:
        carrying(Path("out.png"), **changes)
    except (ValueError, UnicodeError):  # no text that a PNG could carry
        return
    assert main(["replay", "out.png"]) in (0, 1, 2)
    assert capsys.readouterr().err.count("\n") <= 2
