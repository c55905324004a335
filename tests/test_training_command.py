"""Proves ``python -m training ddpm`` as people run it: stopped, killed, resumed; and one line for every mistake."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from training.__main__ import main
from training.ddpm import checkpoint

ROOT = Path(__file__).parents[1]
TOTAL_STEPS = 16


@pytest.fixture(scope="module")
def specks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set so small that all there is to a run is the command itself."""
    path = tmp_path_factory.mktemp("data") / "specks.npz"
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), np.uint8)
    np.savez(path, x_train=images, y_train=np.arange(80, dtype=np.uint8) % 2)
    return path


def words(dataset: Path, out: Path, *more: str) -> list[str]:
    """Two epochs of eight steps, saved at every step."""
    fixed = "--features 8 --epochs 2 --batch-size 10 --save-minutes 0 --mixed-precision no"
    return ["ddpm", "--dataset", str(dataset), "--out", str(out), *fixed.split(), *more]


def start(*arguments: str) -> subprocess.Popen[str]:
    # A shell's background jobs ignore SIGINT, and what they start does, too: Python then has no KeyboardInterrupt.
    return subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    return process.returncode, out, err


def steps_saved(folder: Path) -> int:
    """By the state on disk, which is whole whenever it is looked at."""
    state = folder / "state.safetensors"
    return int(checkpoint.read(state)[1]["step"]) if state.exists() else 0


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    while steps_saved(folder) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(specks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    status, out, _ = finish(start(*words(specks, folder)))
    assert status == 0
    assert f"trained for {TOTAL_STEPS} steps; export it with: python -m export ddpm {folder}/model.safetensors" in out
    return folder


def same_weights(folder: Path, other: Path) -> bool:
    return (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_that_was_interrupted_and_killed_ends_as_if_it_had_not_been(
    specks: Path, whole: Path, tmp_path: Path
) -> None:
    """Ctrl-C, then SIGKILL at some moment, then left alone: the same bytes as in one piece."""
    run = start(*words(specks, tmp_path))
    wait_for_step(run, tmp_path, 2)
    run.send_signal(signal.SIGINT)
    status, _, err = finish(run)
    assert status == 130
    step = steps_saved(tmp_path)
    assert f"interrupted at step {step} of {TOTAL_STEPS}; continue with --resume" in err

    run = start(*words(specks, tmp_path, "--resume"))
    wait_for_step(run, tmp_path, step + 3)
    run.send_signal(signal.SIGKILL)
    assert finish(run)[0] == -signal.SIGKILL
    step = steps_saved(tmp_path)

    status, _, err = finish(start(*words(specks, tmp_path, "--resume")))
    assert status == 0
    assert f"resumed at step {step} of {TOTAL_STEPS}" in err
    assert step < TOTAL_STEPS
    assert same_weights(tmp_path, whole)
    assert not list(tmp_path.glob(".*"))  # nothing of what was killed is left


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what a process is importing")
def test_ctrl_c_before_the_first_step_is_one_line(specks: Path, tmp_path: Path) -> None:
    run = start(*words(specks, tmp_path))
    while "libtorch" not in Path(f"/proc/{run.pid}/maps").read_text():  # our own code runs, and waits for an import
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    status, _, err = finish(run)
    assert status == 130
    assert err == "interrupted\n"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error that a command ends with."""
    try:
        status = main(list(arguments))
    except SystemExit as stop:  # argparse's way
        status = stop.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\n", err)
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["train"], "invalid choice: 'train' (choose from"),
        (["ddpm"], "the following arguments are required: --dataset"),
        (["ddpm", "--dataset", "minst"], "data set 'minst' is unknown; choose mnist"),
        (["ddpm", "--dataset", "absent.npz"], "absent.npz does not exist"),
        (["ddpm", "--dataset", "mnist", "--preset", "best"], "--preset: invalid choice: 'best' (choose from"),
        (["ddpm", "--dataset", "mnist", "--epochs", "ten"], "--epochs: invalid int value: 'ten'"),
        (["ddpm", "--dataset", "mnist", "--rows", "3"], "unrecognized arguments: --rows 3"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--features 12", "features 12 must be a multiple of 8, up to 1024"),
        ("--features 80000", "features 80000"),
        ("--epochs 0", "epochs is 0; it must be at least 1"),
        ("--batch-size 1", "batch_size is 1; it must be at least 2"),
        ("--batch-size 81", "batch_size 81 exceeds the 80 images of the data set"),
        ("--learning-rate nan", "learning_rate is nan; it must be above 0"),
        ("--learning-rate -1", "learning_rate is -1.0"),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--seed 18446744073709551616", "it must be below 2^64"),
        ("--save-minutes -1", "--save-minutes is -1.0; it must be 0 or more"),
        ("--save-minutes nan", "--save-minutes is nan"),
    ],
)
def test_a_bad_value_is_one_line_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], specks: Path, tmp_path: Path, options: str, message: str
) -> None:
    out = tmp_path / "run"
    assert message in refusal(capsys, *words(specks, out, *options.split()))
    assert not out.exists()


def test_a_folder_that_holds_a_run_or_cannot_be_written_to(
    capsys: pytest.CaptureFixture[str], specks: Path, tmp_path: Path
) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"of an earlier run")
    assert f"{tmp_path} holds a run already; continue it with --resume" in refusal(capsys, *words(specks, tmp_path))
    folder = tmp_path / "state.safetensors" / "run"
    assert f"{folder} cannot be written to (Not a directory)" in refusal(capsys, *words(specks, folder))
    assert (tmp_path / "state.safetensors").read_bytes() == b"of an earlier run"


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_status_2(specks: Path, tmp_path: Path) -> None:
    status, out, err = finish(start(*words(specks, tmp_path / "run", "--features", "9")))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: features 9 must be a multiple of 8")


@pytest.mark.slow
def test_help_is_quick_because_it_does_not_import_torch() -> None:
    program = (
        "import sys, training.__main__\ntry: training.__main__.main(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.endswith("False\n")
    for command in ("ddpm", "classifier", "evaluate"):
        assert command in finished.stdout
