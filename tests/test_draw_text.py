"""Proves the command line of text to image: what it writes and says, and one line for each bad word in it."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import load
from runtime.__main__ import main
from runtime.networks import Networks
from runtime.session import Session

ROOT = Path(__file__).parent.parent


@pytest.fixture
def model(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", str(tiny_models))
    return "tiny-text"


def test_two_pictures_with_everything_said(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a red circle", "--negative", "blue", "--steps", "5", "--guidance-scale", "7.5", "--seed", "7"]
    words += ["--size", "16x10", "--count", "2", "--clip-skip", "1", "--low-memory", "-o", "out.png"]
    assert main(["--model", model, *words]) == 0
    expected = load(model, "cpu")(
        "a red circle",
        negative_prompt="blue",
        width=16,
        height=10,
        num_images_per_prompt=2,
        num_inference_steps=5,
        guidance_scale=7.5,
        seed=7,
        clip_skip=1,
    )
    assert sorted(os.listdir()) == ["out-1.png", "out-2.png"]
    for k in range(2):
        with Image.open(f"out-{k + 1}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected.images[k])
    captured = capsys.readouterr()
    said = "out-1.png to out-2.png: 2 of tiny-text, ddim 5 steps, guidance scale 7.5, seed 7 (philox)"
    assert said in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["a red circle"], 0),
        (["a red circle", "--count", "2", "--batch-size", "1"], 0),
        (["a red circle", "--upscale", "2"], 2),
        (["--prompts", "list.txt"], 2),
    ],
)
def test_networks_that_are_not_needed_again_make_room(
    model: str, monkeypatch: pytest.MonkeyPatch, words: list[str], most: int
) -> None:
    """One request asks each in its turn; a second pass and a list ask for some again."""
    Path("list.txt").write_text("a red circle\na blue square\n")
    beside: list[int] = []
    load_one = Networks._load

    def counted(networks: Networks, role: str) -> Session:
        beside.append(len(networks._sessions))
        return load_one(networks, role)

    monkeypatch.setattr(Networks, "_load", counted)
    assert main(["--model", model, *words, "--steps", "4", "-o", "out" if "--prompts" in words else "out.png"]) == 0
    assert max(beside) == most
    assert len(beside) == 3


def test_flags_of_the_sampler_reach_the_plan(model: str) -> None:
    words = ["red", "--sampler", "DPM++ 2M", "--sigma-spacing", "karras", "--sigma-min", "0.05", "--sigma-max", "9"]
    words += ["--final-sigmas-type", "sigma_min", "--guidance-interval", "0.2,4", "--guidance-rescale", "0.5"]
    words += ["--clip-sample", "2", "--rescale-betas-zero-snr", "--spacing", "leading", "--steps", "6"]
    assert main(["--model", model, *words, "-o", "out.png"]) == 0
    with Image.open("out.png") as picture:
        used = json.loads(picture.info["diffusion-anywhere"])["options"]
    assert used == {
        "sigma_spacing": "karras",
        "sigma_min": 0.05,
        "sigma_max": 9.0,
        "final_sigmas_type": "sigma_min",
        "guidance_interval": [0.2, 4.0],
        "guidance_rescale": 0.5,
        "clip_sample": 2.0,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "leading",
    }


def test_a_saved_plan_draws_the_same_picture(model: str) -> None:
    made = ["--sampler", "unipc", "--steps", "6", "--sampler-option", "solver_order=3"]
    assert main(["plan", "--model", model, *made, "--json", "-o", "plan.json"]) == 0
    assert main(["--model", model, "red", "--seed", "1", *made, "-o", "a.png"]) == 0
    assert main(["--model", model, "red", "--seed", "1", "--plan", "plan.json", "-o", "b.png"]) == 0
    with Image.open("a.png") as a, Image.open("b.png") as b:
        assert a.tobytes() == b.tobytes()
        made = json.loads(b.info["diffusion-anywhere"])
    assert made["plan_sha256"] == hashlib.sha256(Path("plan.json").read_bytes()).hexdigest()


def test_arrays_of_text(model: str) -> None:
    assert main(["--model", model, "red", "--count", "3", "--seed", "2", "-o", "x.npz"]) == 0
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape == (3, 8, 12, 3)
        assert arrays["prompts"].tolist() == ["red"] * 3


def test_too_little_memory_is_refused_unless_it_is_to_be_ignored(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.memory_plan.available_bytes", lambda: 2**20)
    monkeypatch.setattr("runtime.memory_plan.held_bytes", lambda: 0)
    words = ["--model", model, "a red circle", "--steps", "2", "-o", "out.png"]
    assert main(words) == 2
    assert "--ignore-memory" in capsys.readouterr().err
    assert not Path("out.png").exists()
    assert main([*words, "--ignore-memory"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("runtime.memory_plan.available_bytes", lambda: 2**40)
    assert main([*words, "--overwrite"]) == 0


def test_a_cut_off_prompt_is_one_warning(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model, "red " * 192 + "a blue square", "--count", "3", "-o", "out.png"]) == 0
    said, cut = capsys.readouterr().err, "cut off is 'a blue square'"
    assert said == f"warning: the prompt has 195 tokens in 33 chunks, of which 192 in 32 are read; {cut}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "tiny-text draws what a prompt says; give one"),
        (["red", "--label", "1"], "tiny-text draws what a prompt says; leave out --label 1"),
        (["red", "--model", "tiny"], "tiny draws classes and takes no text; leave out a prompt"),
        (["--model", "tiny", "--negative", "x"], "tiny draws classes and takes no text; leave out --negative"),
        (["--model", "tiny", "--clip-skip", "1"], "tiny draws classes and takes no text; leave out --clip-skip"),
        (["--model", "tiny", "--size", "16x16"], "tiny draws 8x8 pixels only, not 16x16"),
        (["red", "--size", "0x8"], "width is 0; it must be a whole number from 2 to 16384"),
        (["red", "--size", "8x7"], "height is 7; tiny-text draws multiples of 2: 6"),
        (["red", "--size=-8x8"], "size '-8x8' must be WIDTHxHEIGHT in pixels, such as 512x512"),
        (["red", "--size", "512"], "size '512' must be WIDTHxHEIGHT"),
        (["red", "--size", "8X8"], "size '8X8' must be WIDTHxHEIGHT"),
        (["red", "--size", "999999998x8"], "width is 999999998; it must be a whole number from 2 to 16384"),
        (["red", "--size", "9" * 40 + "x8"], "must be WIDTHxHEIGHT"),
        (["red", "--clip-skip", "9"], "clip_skip is 9; it must be a whole number from 0 to 3"),
        (["red", "--guidance-interval", "3"], "guidance interval '3' must be two sigmas with a comma between them"),
        (["red", "--guidance-interval", "90,99"], "holds none of the plan's sigmas"),
        (["red", "--guidance-rescale", "2"], "guidance_rescale is 2.0; it must be a number from 0 to 1"),
        (["red", "--clip-sample", "0"], "clip_sample is 0.0; it must be a number above 0"),
        (["red", "--sampler-option", "order"], "sampler option 'order' must be NAME=VALUE"),
        (["red", "--sampler-option", "solver_order=3"], "sampler ddim has no option 'solver_order'"),
        *[
            (["red", "--sampler-option", f"{name}=3"], f"no sampler has an option '{name}'; there are clip_sample, ")
            for name in (
                *("prompt", "seed", "rng", "batch_size", "guidance_scale", "num_inference_steps", "sampler", "plan"),
                *("schedule", "bundle", "self", "default_batch_size", "class_labels", "progress", "width", "order"),
            )
        ],
        (["red", "--sampler", "ddim", "--sampler-option", "sampler=lms"], "no sampler has an option 'sampler'"),
        (["red", "--sampler-option", "eta=x"], "eta is x"),
        (["red", "--eta", "1", "--sampler-option", "eta=0"], "eta is given twice, as 1.0 and as 0"),
        (["red", "--sampler-option", "eta=NaN"], "eta is nan"),
        (["red", "--sampler-option", "strength=0.5"], "strength 0.5 says how much of an image changes"),
        (["red", "--plan", "missing.json"], "the plan missing.json cannot be read (No such file or directory)"),
        (["red", "--plan", "."], "the plan . is no file"),
        (["red", "--plan", "/dev/zero"], "the plan /dev/zero is no file"),
        (["red", "--plan", "x.json", "--steps", "3"], "--plan x.json is whole; leave out num_inference_steps"),
        (["red", "--variant", "fp61"], "variant 'fp61' is unknown; tiny-text has fp32"),
        (["bad \udcff byte"], "the prompt is not text: character 5"),
        (["red", "blue"], "unrecognized arguments: blue"),
    ],
)
def test_bad_arguments(model: str, refusal: Callable[..., str], arguments: list[str], message: str) -> None:
    assert message in refusal(main, "--model", model, "-o", "out.png", *arguments)
    assert os.listdir() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"timesteps": []}', "[" * 100_000, '"' + "\xff" * 9])
def test_a_file_that_is_no_plan(model: str, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("plan.json").write_text(text, encoding="latin-1")
    assert main(["--model", model, "red", "--plan", "plan.json", "-o", "out.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: plan.json")
    assert error.count("\n") == 1


def test_bytes_on_the_command_line_that_are_no_text(model: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command: list[str | bytes] = [sys.executable, "-m", "runtime", "--model", model, b"caf\xe9", "-o", "out.png"]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: the prompt is not text: character 4 is '\\udce9'")
    assert finished.stderr.count("\n") == 1


def test_a_terminal_sees_what_is_loaded_and_how_far_it_is(model: str) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "runtime", "--model", model, "red", "--steps", "4", "-o", "out.png"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=60)
    os.close(theirs)
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert finished.returncode == 0
    for graph in ("text_encoder.onnx", "unet.onnx", "vae_decoder.onnx"):
        assert f"loading {graph}" in said
    assert said.index("4/4") < said.index("loading vae_decoder.onnx")
