"""Proves ``--prompts`` on the command line: what it writes and says, one line and status 2 for what is wrong; and that
a process which was interrupted or killed is continued by the same words."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime import load
from runtime.__main__ import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def model(models: Path) -> str:
    """The tiny bundle of text, by name; the one of classes lies beside it."""
    return "tiny-text"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "runtime", *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def records(folder: str = "out") -> list[dict[str, object]]:
    return [json.loads(line) for line in (Path(folder) / "index.jsonl").read_text().splitlines()[1:]]


def test_flags_hold_for_what_a_list_does_not_say(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.jsonl").write_text('{"prompt": "red"}\n{"prompt": "blue", "steps": 4, "size": "8x8", "negative": "a"}\n')
    flags = ["--steps", "5", "--size", "10x6", "--negative", "green", "--guidance-scale", "2", "--clip-skip", "1"]
    flags += ["--count", "2", "--seed", "3", "--rng", "torch", "--sampler", "euler", "--sigma-spacing", "karras"]
    assert main(["--model", model, "--prompts", "list.jsonl", *flags, "-o", "out/", "--provider", "cpu"]) == 0
    same = {"num_images_per_prompt": 2, "guidance_scale": 2, "clip_skip": 1, "rng": "torch", "sampler": "euler"}
    same |= {"sigma_spacing": "karras"}
    pipeline = load(model, "cpu")
    red = pipeline("red", negative_prompt="green", width=10, height=6, num_inference_steps=5, seed=3, **same)
    blue = pipeline("blue", negative_prompt="a", width=8, height=8, num_inference_steps=4, seed=5, **same)
    names = ["00001-red.png", "00002-red.png", "00003-blue.png", "00004-blue.png"]
    for name, image in zip(names, [*red.images, *blue.images], strict=True):
        with Image.open(f"out/{name}") as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "out/index.jsonl: tiny-text, seed 3; 4 drawn, 0 there before"
    assert captured.err == ""


def test_plain_lines_are_prompts_or_labels(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("# labels\nowl\n\n1\n")
    assert main(["--model", "tiny", "--prompts", "list.txt", "-o", "classes"]) == 0
    assert [each["file"] for each in records("classes")] == ["00001-owl.png", "00002-dog.png"]
    assert main(["--model", model, "--prompts", "list.txt", "-o", "text"]) == 0
    assert [each["file"] for each in records("text")] == ["00001-owl.png", "00002-1.png"]
    for _ in range(2):  # the second time "paper" is a folder, too
        assert main(["--model", model, "--prompts", "paper", "--steps", "2", "-o", "paper"]) == 0
    names = ["00001-spiderman-sliding-between-buildings.png", "00002-iron-man.png", "00003-black-widow.png"]
    assert [each["file"] for each in records("paper")] == names


def test_a_saved_plan_serves_a_whole_list(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("red\nblue\n")
    assert main(["plan", "--model", model, "--sampler", "ddpm", "--steps", "3", "--json", "-o", "plan.json"]) == 0
    words = ["--model", model, "--plan", "plan.json", "-o", "out", "--prompts"]
    assert main([*words, "list.txt"]) == 0
    assert {each["settings"]["sampler"] for each in records()} == {"ddpm"}  # type: ignore[index]
    Path("list.jsonl").write_text('{"prompt": "red", "steps": 4}\n')
    assert main([*words, "list.jsonl"]) == 2
    assert "list.jsonl, line 1: give either a plan or num_inference_steps" in capsys.readouterr().err


def test_failures_come_last_and_with_their_lines(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    failing = '{"prompt": "a", "guidance_scale": 1e60, "count": 2}'
    Path("list.jsonl").write_text(f'{failing}\n{{"prompt": "red"}}\n{failing}\n')
    words = ["--model", model, "--prompts", "list.jsonl", "-o", "out", "--seed", "0"]
    for drawn, kept in ((1, 0), (0, 1)):
        assert main(words) == 2
        captured = capsys.readouterr()
        first, second = captured.err.splitlines()
        assert first.startswith("error: list.jsonl, line 1: row 1 of 10 is no longer finite; ")
        assert second.startswith("error: list.jsonl, line 3: row 1 of 10 is no longer finite; ")
        said = f"{drawn} drawn, {kept} there before, 4 failed, which the same command tries again"
        assert captured.out.splitlines()[-1] == f"out/index.jsonl: tiny-text, seed 0; {said}"
    assert sorted(os.listdir("out")) == ["00003-red.png", "index.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a prompt"], "--prompts list.txt says what to draw, one file each; leave out a prompt"),
        (["--label", "1"], "--prompts list.txt says what to draw, one file each; leave out --label"),
        (["--grid"], "--prompts list.txt says what to draw, one file each; leave out --grid"),
        (["-o", "out.png"], "with --prompts -o names a folder, and out.png is named like a file"),
        (["-o", "out.npz"], "with --prompts -o names a folder"),
        (["-o", "missing/out"], "the folder missing does not exist; make it first"),
        (["-o", "list.txt"], "the folder list.txt cannot be made (File exists); choose another folder"),
        (["-o", "/proc/out"], "cannot be made (No such file or directory)"),
        (["-o", "x" * 300], "cannot be made (File name too long)"),
        (["--prompts", "missing.txt"], "the list missing.txt cannot be read (No such file or directory)"),
        (["--prompts", 300 * "x"], "x cannot be read (File name too long)"),
        (["--prompts", "broken.jsonl"], "broken.jsonl, line 2: prompt must be str, not int"),
        (["--model", "tiny"], "list.txt, line 1: label 'red' is none of 0 to 2 (cat, dog, owl) or all"),
        (["--model", "tiny", "--prompts", "broken.jsonl"], "broken.jsonl, line 1 lacks the key 'label'"),
        (["--seed", "-1"], "seed -1 is out of range"),
        (["--count", "0"], "count is 0"),
        (["--count", "100000"], "list.txt, line 1: count is 100000; it must be a whole number from 1 to 99999"),
        (["--batch-size", "0"], "list.txt, line 1: batch_size is 0"),
        (["--steps", "0"], "list.txt, line 1: num_inference_steps is 0"),
        (["--size", "8"], "size '8' must be WIDTHxHEIGHT"),
    ],
)
def test_bad_arguments(model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    Path("list.txt").write_text("red\nblue\n")
    Path("broken.jsonl").write_text('{"prompt": "red"}\n{"prompt": 7}\n')
    if "/proc/out" in arguments and os.geteuid():
        pytest.skip("what only root may do is refused for another reason")
    assert main(["--model", model, "--prompts", "list.txt", "-o", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(os.listdir()) == ["broken.jsonl", "list.txt"]


SLOW = [json.dumps({"prompt": "red", "sampler": "ddpm", "count": 40}), json.dumps({"prompt": "blue", "count": 40})]


@pytest.mark.slow  # two processes of ONNX Runtime
@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_process_that_is_stopped_is_continued_by_the_same_words(model: str, sign: int, status: int) -> None:
    Path("list.jsonl").write_text("\n".join(SLOW))
    words = command("--model", model, "--prompts", "list.jsonl", "-o", "out")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        deadline = time.monotonic() + 60
        while len(list(Path("out").glob("0*.png"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(sign)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert "Traceback" not in error
    before = {path.name: path.stat() for path in Path("out").glob("0*.png")}
    assert 3 <= len(before) < 80
    assert main(words[3:]) == 0
    assert len(records()) == 80
    after = {path.name: path.stat() for path in Path("out").iterdir()}
    assert len(after) == 81
    # What was there is the same file, neither written nor drawn again.
    assert {name: after[name].st_ino for name in before} == {name: each.st_ino for name, each in before.items()}
    alone = load(model, "cpu")("red", sampler="ddpm", num_images_per_prompt=40, seed=records()[0]["settings"]["seed"])  # type: ignore[index]
    for k, image in enumerate(alone.images):
        with Image.open(f"out/{k + 1:05}-red.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)


def test_a_picture_that_cannot_be_written_ends_the_run(model: str) -> None:
    """The limit on file size stands in for the disk's end; the index, which is shorter, could be written."""
    Path("list.txt").write_text("red\nblue\n")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))

    words = command("--model", model, "--prompts", "list.txt", "--size", "64x64", "-o", "out")
    finished = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=60, preexec_fn=limit)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: out/")
    assert "cannot be written (File too large)" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert os.listdir("out") == ["index.jsonl"]
    assert records() == []


def test_a_terminal_sees_how_far_the_whole_list_is(model: str) -> None:
    Path("list.jsonl").write_text('{"prompt": "red"}\n{"prompt": "blue", "steps": 4}\n')
    ours, theirs = pty.openpty()
    words = command("--model", model, "--prompts", "list.jsonl", "--low-memory", "-o", "out")
    finished = subprocess.run(words, stdout=subprocess.PIPE, stderr=theirs, env=environment(), timeout=60)
    os.close(theirs)
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert finished.returncode == 0
    assert [f" {done}/14  " in said for done in range(1, 15)] == [True] * 14
    assert said.index(" 10/14  ") < said.rindex("\rloading text_encoder.onnx") < said.index(" 11/14  ")


JSON = st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=5) | st.lists(st.floats())
SAID = ["prompt", "negative", "label", "seed", "size", "width", "clip_skip", "rng", "guidance_scale", "two\nlines"]
OPTIONS = ["sampler", "eta", "guidance_interval", "guidance_rescale", "clip_sample", "strength", "sigma_spacing"]
KEYS = st.sampled_from([*SAID, *OPTIONS])
LINES = st.binary(max_size=20) | st.dictionaries(KEYS, JSON, max_size=2).map(
    lambda value: json.dumps({"prompt": "red", "steps": 2} | value).encode()
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, min_size=1, max_size=2), st.sampled_from(["list.txt", "list.jsonl"]))
def test_any_list_is_drawn_or_refused_in_one_line(
    model: str, capsys: pytest.CaptureFixture[str], lines: list[bytes], name: str
) -> None:
    Path(name).write_bytes(b"\n".join(lines))
    status = main(["--model", model, "--prompts", name, "--steps", "2", "--overwrite", "-o", "random"])
    error = [line for line in capsys.readouterr().err.split("\n")[:-1] if not line.startswith("warning: ")]
    assert (status, len(error) > 0) in ((0, False), (2, True))
    assert all(line.startswith(f"error: {name}") for line in error)
