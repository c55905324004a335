"""Proves that whatever is typed and asked ends in a picture or in one clear line: never in a traceback, never without
end, never with a file that is half-written, and that the same pipeline draws afterwards what it drew before.

``make quick`` takes a small sample, always the same. DIFFUSION_ANYWHERE_FUZZ=10000 takes so many of each kind, other
ones every time; hypothesis shows the smallest case that fails, and keeps it in .hypothesis to begin with the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fuzz_calls import Call, calls
from fuzz_files import write_clip_model, write_inputs, write_models
from fuzz_words import DRAWN, PROMPTS, TASKS, VALUES, command_lines
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from PIL import Image

import runtime.__main__
from runtime import DiffusionError, Result, interpolate, load
from runtime.cancel import in_force
from runtime.image import METADATA_KEY, PARAMETERS_KEY
from runtime.pipeline import Pipeline
from runtime.text_to_image import TextToImage

SAMPLE = 40
ASKED = int(os.environ.get("DIFFUSION_ANYWHERE_FUZZ", SAMPLE))
fuzz = settings(
    max_examples=ASKED,
    derandomize=ASKED == SAMPLE,
    deadline=None,
    print_blob=True,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],  # not explain, for which every line is traced
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
LIMIT, PATIENCE = 60, 600  # seconds of the processor's time for what takes some hundredths, and of the clock's
MOST_MEMORY = 2**30  # bytes that a case may take more than any before
FREE = 2**30  # bytes that the machine is said to have, so that on any machine the same is refused


class EndlessError(BaseException):
    """The time is over; nothing that is meant for errors catches it."""


@contextlib.contextmanager
def bounded(folder: Path, case: object) -> Iterator[None]:
    """Fail what does not end, or eats the memory.

    What does not even come back to Python ends the process; then the case is found in ``folder``/case.
    """

    def ring(*_: object) -> None:
        raise EndlessError

    (folder / "case").write_text(ascii(case))
    clocks = {signal.ITIMER_PROF: (signal.SIGPROF, LIMIT), signal.ITIMER_REAL: (signal.SIGALRM, PATIENCE)}
    before = {number: signal.signal(number, ring) for number, _ in clocks.values()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True, file=sys.__stderr__)
    for clock, (_, seconds) in clocks.items():
        signal.setitimer(clock, seconds)
    try:
        yield
    except EndlessError as error:
        raise AssertionError(f"it took longer than {LIMIT} s of the processor, or {PATIENCE} s") from error
    finally:
        for clock, (number, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])
        faulthandler.cancel_dump_traceback_later()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    assert grown < MOST_MEMORY, f"it took {grown} bytes"
    assert in_force.get() == ()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files to be named, beside one of bundles."""
    folder = tmp_path_factory.mktemp("fuzz") / "inputs"
    folder.mkdir()
    write_models(folder.parent / "models")
    write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_ANYWHERE_MODELS", str(folder.parent / "models"))
        for name, task in DRAWN.items():
            words = [word.replace("{}", str(folder)) for unit in TASKS[task] for word in unit]
            assert runtime.__main__.main([*words, "--seed", "7", "-o", str(folder / name)]) == 0
    return folder


@pytest.fixture(autouse=True)
def small_machine(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", str(inputs.parent / "models"))
    monkeypatch.setenv("DIFFUSION_ANYWHERE_CACHE", str(inputs.parent / "cache"))  # which a command may clear
    monkeypatch.setattr("runtime.memory_plan.available_bytes", lambda: FREE)
    monkeypatch.setattr("runtime.memory_plan.held_bytes", lambda: 0)


# --- command lines --------------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    error: str


def run(words: list[str]) -> Ended:
    """Run a command in this process, with standard streams such as a process has."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    error = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = runtime.__main__.main(words)
        except SystemExit as ended:  # argparse's way
            status = int(str(ended.code))
    return Ended(status, *(stream.buffer.getvalue().decode() for stream in (out, error)))  # type: ignore[attr-defined]


def flags() -> dict[str, dict[str, str | None]]:
    """The flags of commands that end, from their own parsers: each with the name of its value, or None without one."""
    (commands,) = (each for each in runtime.__main__.parser()._actions if isinstance(each, argparse._SubParsersAction))
    return {
        command: {
            flag: None if action.nargs == 0 else action.dest
            for action in parser._actions
            for flag in action.option_strings
            if action.dest not in ("help", "worker")  # the second is no user's, and reads orders from standard input
        }
        for command, parser in commands.choices.items()
        if command != "web"  # which serves until Ctrl-C; test_web_server.py asks it
    }


def test_every_flag_has_values() -> None:
    named = {name for each in flags().values() for name in each.values() if name is not None}
    assert named - VALUES.keys() == set()
    assert len(named) > 50


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def empty_folder(folder: Path) -> Iterator[Path]:
    """A folder in another one, for as long as the block runs."""
    here = folder / "here"
    here.mkdir()
    try:
        yield here
    finally:
        shutil.rmtree(here)


def check_whole(name: str, data: bytes) -> None:
    """A file is none that was written aside, and can be read to its end."""
    assert not Path(name).name.startswith(".")
    suffix = Path(name).suffix.lower()
    if suffix in (".png", ".webp", ".jpg", ".jpeg", ".gif"):
        with Image.open(io.BytesIO(data)) as picture:
            for frame in range(getattr(picture, "n_frames", 1)):
                picture.seek(frame)
                picture.load()
    elif suffix == ".npz":
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            assert len(arrays["images"]) > 0
    elif suffix == ".jsonl":
        for line in data.splitlines():
            json.loads(line)
    else:
        json.loads(data)


def check_ended(words: list[str], ended: Ended, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """A picture, or one clear line and no trace."""
    assert ended.error == "" or ended.error.endswith("\n")
    lines = ended.error.split("\n")[:-1]
    errors = [line for line in lines if line.startswith("error: ")]
    assert [line for line in lines if not line.startswith(("error: ", "warning: "))] == []
    assert [line for line in lines if not line.isprintable() or "encountered in" in line] == []
    new = {name: data for name, data in after.items() if before.get(name) != data}
    assert before.keys() <= after.keys()
    assert "--overwrite" in words or not before.keys() & new.keys()
    listed, command = "--prompts" in words, words[0] if words else ""
    for name, data in new.items():
        if command != "plan" or name.startswith("plot"):  # which writes its table under any name
            check_whole(name, data)
    if ended.status == 0:
        assert errors == []
        assert new or command in ("replay", "check", "plan", "doctor", "benchmark", "cache")
    elif ended.status == 1:
        assert command in ("replay", "check")
        assert errors == []
    else:
        assert ended.status == 2
        assert len(errors) == 1 or (listed and errors)  # of a list each line that failed has one
        assert new == {} or listed


@fuzz
@given(words=command_lines(flags()))
def test_any_command_line_is_a_picture_or_one_line(words: list[str], inputs: Path, tmp_path: Path) -> None:
    there = contents(inputs)
    with empty_folder(tmp_path) as here, contextlib.chdir(here):
        Path("there.png").write_bytes(there["colours.png"])
        before = contents(here)
        typed = [word.replace("{}/", f"{inputs}/") if word != "{}" else str(inputs) for word in words]
        with bounded(tmp_path, words):
            ended = run(typed)
        event(f"status {ended.status}")
        check_ended(typed, ended, before, contents(here))
    assert contents(inputs) == there


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> TextToImage:
    pipeline = load(write_clip_model(tmp_path_factory.mktemp("clip")), "cpu", 1, embeddings=inputs / "words")
    assert isinstance(pipeline, TextToImage)
    return pipeline


@contextlib.contextmanager
def said_in_lines() -> Iterator[None]:
    """Whatever is warned of is one short line, and no rounding of numbers that nobody looked at."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for each in caught:
        assert issubclass(each.category, UserWarning), each
        assert str(each.message).isprintable()
        assert len(str(each.message)) < 2000


def check_line(error: DiffusionError) -> None:
    assert str(error)
    assert str(error).isprintable()


@fuzz
@given(prompt=PROMPTS, negative=st.just("") | PROMPTS)
def test_any_prompt_is_a_picture_or_one_line(reader: TextToImage, prompt: str, negative: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"width": 8, "height": 8, "num_inference_steps": 2, "guidance_scale": 3, "seed": 7}
    with bounded(tmp_path, (prompt, negative)), said_in_lines():
        try:
            result = reader(prompt, negative_prompt=negative, **asked)
        except DiffusionError as error:
            check_line(error)
            with pytest.raises(UnicodeEncodeError):  # there is no other reason
                f"{prompt}{negative}".encode()
            return
    assert np.isfinite(result.sample).all()
    with Image.open(io.BytesIO(result.encoded(0, ".png"))) as picture:
        carried = json.loads(picture.text[METADATA_KEY])  # type: ignore[attr-defined]
        assert picture.text[PARAMETERS_KEY].startswith(prompt)  # type: ignore[attr-defined]
    assert (carried["prompt"], carried["negative_prompt"]) == (prompt, negative)


# --- calls ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipelines(inputs: Path) -> dict[str, Pipeline]:
    models = inputs.parent / "models"
    return {
        "text": load(models / "tiny-text", "cpu", 1, embeddings=inputs / "words"),
        "fill": load(models / "tiny-fill", "cpu", 1),
        "classes": load(models / "tiny", "cpu", 1),
    }


def plain(pipeline: Pipeline, kind: str) -> str:
    """The hash of what a plain call draws."""
    picture = np.full((8, 8), 90, np.uint8)
    further = {"image": picture, "mask": picture} if kind == "fill" else {}
    first = 1 if kind == "classes" else "a red circle"
    return hashlib.sha256(pipeline(first, seed=3, num_inference_steps=2, **further).sample.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def expected(pipelines: dict[str, Pipeline]) -> dict[str, str]:
    return {kind: plain(pipeline, kind) for kind, pipeline in pipelines.items()}


def answer(pipeline: Pipeline, call: Call, arguments: dict[str, Any]) -> Result | None:
    """Make a call, and see that what it says has the right shape; None if it said why not."""
    try:
        if call.how == "interpolate":
            result: Result = interpolate(pipeline, call.first, **arguments)
        elif call.how == "denoise":
            *_, last = pipeline.denoise(call.first, **arguments)
            result = last.result()
        else:
            result = pipeline(call.first, **arguments)
    except DiffusionError as error:
        check_line(error)
        return None
    assert result.images.dtype == np.uint8
    assert result.images.ndim == 4
    assert len(result.images) == len(result.seeds) == len(result.conditions) == len(result.sample)
    assert np.isfinite(result.sample).all()
    return result


@fuzz
@given(call=calls())
def test_any_call_is_a_picture_or_one_line(
    call: Call, inputs: Path, pipelines: dict[str, Pipeline], expected: dict[str, str], tmp_path: Path
) -> None:
    arguments = {
        name: value.replace("{}", str(inputs)) if isinstance(value, str) and value.startswith("{}") else value
        for name, value in call.arguments.items()
    }
    pipeline = pipelines[call.kind]
    with empty_folder(tmp_path) as here:
        with bounded(tmp_path, call), said_in_lines():
            result = answer(pipeline, call, arguments)
            event("refused" if result is None else "drawn")
            if result is not None:
                keep(result, call, here)
            assert plain(pipeline, call.kind) == expected[call.kind]
        for name, data in contents(here).items():
            check_whole(name, data)


def keep(result: Result, call: Call, folder: Path) -> None:
    """Write a result as the call wants it, or see that nothing is written."""
    action, what = call.then
    try:
        if action == "save":
            result.save(folder / what)
        elif action == "save_grid":
            result.save_grid(folder / "sheet.png", what)
    except DiffusionError as error:
        check_line(error)
        assert contents(folder) == {}
