"""Proves ``python -m training stable-diffusion`` as people run it: stopped, killed, out of time and resumed; and one
line for every mistake."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training import checkpoint
from training.__main__ import main
from training.stable_diffusion.pocket.checkpoint import STATE
from training.stable_diffusion.pocket.config import pocket

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--minutes -1", "--minutes is -1.0; it must be 0 or more"),
        ("--save-minutes nan", "--save-minutes is nan; it must be 0 or more"),
        ("--vae-steps 100", "steps is 100; it must be at least warmup_steps and decay_steps together, 3100"),
        ("--diffusion-steps 0", "steps is 0; it must be at least 1"),
        (
            "--stage judge --judge-steps 5",
            "steps is 5; it must be at least warmup_steps and decay_steps together",
        ),
        ("--seed -1", "seed is -1; it must be at least 0 and below 2^64"),
        ("--data nowhere", "nowhere holds neither"),
        ("--from model.safetensors --resume", "--from is for the beginning of a run of text encoder and UNet"),
        ("--from model.safetensors --stage vae", "--from is for the beginning of a run of text encoder and UNet"),
    ],
)
def test_a_mistake_is_one_line(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["stable-diffusion", "--out", "run", *options.split()]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]*\n", error)
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["vae-state", "vae", "text-state", "text", "diffusion-state", "model"])
def test_an_earlier_run_is_not_overwritten(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"{name}.safetensors").write_bytes(b"hours of work")
    assert main(["stable-diffusion", "--out", str(tmp_path)]) == 2
    assert "holds a run already; continue it with --resume" in capsys.readouterr().err
    assert (tmp_path / f"{name}.safetensors").read_bytes() == b"hours of work"


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    words = ["stable-diffusion", "--out", str(folder), "--resume", "--save-minutes", "0", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "training", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def steps_saved(folder: Path) -> int:
    state = folder / "vae-state.safetensors"
    return int(checkpoint.read(state, STATE)[1]["step"]) if state.exists() else 0


@pytest.mark.slow
def test_what_was_saved_survives_a_kill_an_interruption_and_the_end_of_the_time(
    mnist_folder: Path, tmp_path: Path
) -> None:
    endings = (
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGINT, 130, "vae: interrupted at step"),
        (signal.SIGTERM, 130, "vae: interrupted at step"),
    )
    for number, status, message in endings:
        before = steps_saved(tmp_path)
        process = start(tmp_path)
        deadline = time.monotonic() + 300
        while steps_saved(tmp_path) <= before and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(number)
        _, error = process.communicate(timeout=300)
        assert process.returncode == status
        assert message in error
        assert "Traceback" not in error
        assert steps_saved(tmp_path) > before
    before = steps_saved(tmp_path)
    process = start(tmp_path, "--minutes", "0")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0
    assert f"vae: time is up at step {before + 1} of {pocket().vae.optimizer.steps}; continue with --resume" in error
