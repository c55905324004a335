"""Proves the front door: what it writes, and that every bad input is one line, status 2, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.plan import Plan

ROOT = Path(__file__).parent.parent


@pytest.fixture
def model(tiny_models: Path) -> str:
    return str(tiny_models / "tiny")


def test_one_picture(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model, "--label", "2", "--seed", "5", "--provider", "cpu", "-o", "out.png"]) == 0
    with Image.open("out.png") as picture:
        assert picture.size == (8, 8)
    assert "out.png: 1 of tiny, ddim 10 steps, guidance scale 2, seed 5 (philox)" in capsys.readouterr().out
    assert os.listdir() == ["out.png"]


def test_count_writes_numbered_files_and_grid_one_sheet(model: str) -> None:
    assert main(["--model", model, "--label", "owl", "--count", "3", "--seed", "0", "-o", "out.png"]) == 0
    assert sorted(os.listdir()) == ["out-1.png", "out-2.png", "out-3.png"]
    assert main(["--model", model, "--label", "all", "--count", "2", "--seed", "0", "--grid", "-o", "sheet.png"]) == 0
    with Image.open("sheet.png") as picture:
        assert picture.size == (2 * 8 + 2, 3 * 8 + 2 * 2)  # a row for each class, two pixels between


def test_arrays_for_evaluation(model: str) -> None:
    assert main(["--model", model, "--label", "all", "--count", "4", "--seed", "7", "-o", "x.npz"]) == 0
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape == (12, 8, 8, 1)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert arrays["seeds"].tolist() == list(range(7, 19))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_error_is_not_glued_to_the_progress_bar(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance that overflows begins at the last levels only, so that some rows are done before it is found."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    words = ["--guidance-scale", "1e40", "--guidance-interval", "0,1", "--steps", "50", "-o", "a.png"]
    assert main(["--model", model, *words]) == 2
    *_, bar, error = terminal.getvalue().split("\n")[:-1]
    assert "1/50" in bar
    assert error.startswith("error: row ")
    assert "is no longer finite" in error


def test_the_drawn_seed_is_printed_and_repeats_the_picture(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model, "-o", "a.png"]) == 0
    seed = capsys.readouterr().out.rsplit("seed ", 1)[1].split()[0]
    assert main(["--model", model, "--seed", seed, "-o", "b.png"]) == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()


def test_plan_prints_json_that_reads_back(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", model, "--steps", "10", "--json"]) == 0
    plan = Plan.from_json(json.loads(capsys.readouterr().out))
    assert plan.to_json() == open_bundle(model).plans["ddim-10"].to_json()
    assert main(["plan", "--model", model, "--steps", "4", "--sampler", "ddpm"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_doctor_knows_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime" in out
    assert "CPUExecutionProvider" in out
    assert "processors may be used" in out


def unwritable_folder(tmp_path: Path) -> Path:
    """A folder that this user cannot write to; permissions do not bind root, but /proc does."""
    if os.geteuid() == 0:
        return Path("/proc")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--seed", "1.5"], "argument --seed: invalid int value: '1.5'"),
        (["--rng", "dice"], "argument --rng: invalid choice: 'dice'"),
        (["--colour", "red"], "unrecognized arguments: --colour"),
        (["a cat", "a\ndog \x1b[31m"], r"unrecognized arguments: a\ndog \x1b[31m"),
        (["--image", "a\nb\x07"], r"the picture a\nb\x07 does not exist"),
        (["-o", "a\nb/out.png"], r"the folder a\nb does not exist"),
        (["-o", "a\x00b.png"], r"a\x00b.png is no name of a file, since it holds a null character"),
        (["--label", "3"], "label '3' is none of 0 to 2 (cat, dog, owl) or all"),
        (["--label", "-1"], "label '-1' is none of 0 to 2"),
        (["--label", "9" * 5000], "9…' is none of 0 to 2"),
        (["--model", "m" * 300], "cannot be looked into (File name too long); give a bundle's folder or name"),
        (["--label", "seven"], "label 'seven' is none of"),
        (["--size", "0x0"], "tiny draws 8x8 pixels only, not 0x0"),
        (["--size", "8x0"], "tiny draws 8x8 pixels only, not 8x0"),
        (["--steps", "0"], "num_inference_steps is 0"),
        (["--steps", "-5"], "num_inference_steps is -5"),
        (["--steps", "101"], "num_inference_steps 101 exceeds num_train_timesteps 100"),
        (["--guidance-scale", "nan"], "guidance_scale is nan"),
        (["--sampler", "eulerr"], "sampler 'eulerr' is unknown; choose ddim, ddpm"),
        (["--eta", "nan"], "eta is nan"),
        (["--sampler", "ddpm", "--eta", "1"], "sampler ddpm has no option 'eta'"),
        (["--spacing", "odd"], "timestep_spacing 'odd' is unknown"),
        (["--seed", "-1"], "seed -1 is out of range"),
        (["--count", "0"], "count is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--threads", "0"], "threads is 0"),
        (["--provider", "cuda"], "provider cuda cannot be used: "),
        (["--model", "nowhere"], "there is no bundle 'nowhere'"),
        (["-o", "missing/out.png"], "the folder missing does not exist"),
        (["-o", "x" * 300 + ".png"], "File name too long"),
        (["--count", "10000000000000"], "count is 10000000000000; it must be a whole number from 1 to 1000000"),
        (["--label", "all", "--count", "333334", "-o", "x.npz"], "the number of images is 1000002; it must be a whole"),
        (["--label", "all", "--count", "1000000", "--grid"], "of 9999998x28 pixels is too large; at most 268435456"),
        (["-o", "out.webp", "--label", "all", "--count", "1639", "--grid"], "16388x28 pixels is too large for WEBP"),
        (["-o", "out.gif"], "has no suffix of a picture; use one of .png"),
        (["-o", "out"], "has no suffix of a picture"),
    ],
)
def test_bad_arguments(model: str, refusal: Callable[..., str], arguments: list[str], message: str) -> None:
    if arguments == ["--provider", "cuda"] and has_cuda():
        pytest.skip("CUDA works on this machine")
    assert message in refusal(main, "--model", model, "-o", "out.png", *arguments)
    assert os.listdir() == []


def has_cuda() -> bool:
    from runtime.session import try_cuda

    return try_cuda() is None


def test_a_file_whose_name_is_no_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model, "-o", "\udcff.png"]) == 0
    assert r"\udcff.png: 1 of tiny" in capsys.readouterr().out
    assert os.listdir() == ["\udcff.png"]


def test_an_unwritable_folder(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model, "-o", str(unwritable_folder(tmp_path) / "out.png")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_an_existing_file_is_kept_unless_overwrite(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.png").write_text("precious")
    assert main(["--model", model, "-o", "out.png"]) == 2
    assert "out.png exists; choose another name or add --overwrite" in capsys.readouterr().err
    assert Path("out.png").read_text() == "precious"
    assert main(["--model", model, "-o", "out.png", "--overwrite"]) == 0


def test_a_graph_with_other_inputs_than_its_manifest(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(model) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["graphs"]["unet"]["fp32"]["inputs"][1]["shape"] = [3]
    path.write_text(json.dumps(manifest))
    assert main(["--model", model, "-o", "out.png"]) == 2
    error = capsys.readouterr().err
    assert "has inputs" in error
    assert "where the manifest says" in error
    assert os.listdir() == []


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "runtime", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def test_a_full_disk_leaves_nothing(model: str) -> None:
    """The limit on file size stands in for the disk's end: the write fails half way, just as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    finished = run(["--model", model, "--seed", "1", "-o", "out.png"], preexec_fn=limit)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: out.png cannot be written")
    assert finished.stderr.count("\n") == 1
    assert os.listdir() == []


def test_ctrl_c_stops_at_once_and_writes_nothing(model: str) -> None:
    arguments = ["--model", model, "--sampler", "ddpm", "--count", "20000", "--batch-size", "1", "-o", "x.npz"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        assert "provider cpu" in process.stdout.readline()  # from here on it draws
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted; no file is half-written" in error
    assert "Traceback" not in error
    assert os.listdir() == []


def test_two_wheels_of_onnx_runtime_are_refused(model: str, tmp_path: Path) -> None:
    """A second wheel's metadata is put on the path, as pip leaves it when both are installed."""
    for name in ("onnxruntime", "onnxruntime_gpu"):
        information = tmp_path / "site" / f"{name}-1.30.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.30.0\n"
        )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'site'}"}
    for arguments in (["--model", model, "-o", "out.png"], ["doctor"]):
        command = [sys.executable, "-m", "runtime", *arguments]
        finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        said = finished.stderr + finished.stdout
        assert finished.returncode == 2
        assert "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run: pip uninstall" in said
        assert "Traceback" not in said
    assert os.listdir() == []


def test_a_missing_onnx_runtime_is_named_with_its_cure(model: str, tmp_path: Path) -> None:
    """The hard dependencies alone are on the path, linked from where they are installed."""
    import safetensors

    installed, site = Path(safetensors.__file__).parent.parent, tmp_path / "site"
    site.mkdir()
    for package in ("numpy*", "safetensors*", "PIL", "pillow*", "tokenizers*"):
        for found in installed.glob(package):
            (site / found.name).symlink_to(found)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    command = [sys.executable, "-S", "-m", "runtime", "--model", model, "-o", "out.png"]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: ONNX Runtime is not installed; choose one: pip install 'diffusion-anywhere[cpu]' (or [cuda])\n"
    )
