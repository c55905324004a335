"""Proves ``python -m runtime plan``: its table, its file and its picture, also where there is no ONNX Runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
from PIL import Image

from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.plan import SAMPLERS, Plan, compile_plan
from runtime.plan_plot import BLUE, CELL_HEIGHT, GAP, plot, sigmas

ROOT = Path(__file__).parent.parent


@pytest.fixture
def model(tiny_models: Path) -> str:
    return str(tiny_models / "tiny")


def test_what_is_saved_is_what_is_printed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ([], ["--json"]):
        assert main(["plan", "--model", model, "--sampler", "heun", "--steps", "5", *form]) == 0
        printed = capsys.readouterr().out
        arguments = ["--sampler", "heun", "--steps", "5", *form, "-o", "plan.txt", "--overwrite"]
        assert main(["plan", "--model", model, *arguments]) == 0
        assert capsys.readouterr().out == ""
        assert Path("plan.txt").read_text() == printed


def test_a_saved_plan_is_printed_again(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["--sampler", "dpmpp_2m", "--steps", "7", "--clip-sample", "1.5", "--guidance-rescale", "0.7"]
    assert main(["plan", "--model", model, *made, "--json", "-o", "plan.json"]) == 0
    assert main(["plan", "--model", model, "--plan", "plan.json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 7 + 2
    assert printed[-2:] == ["the predicted original sample is clipped to +-1.5", "guidance is rescaled by 0.7"]
    saved = Plan.from_json(json.loads(Path("plan.json").read_text()))
    assert (saved.clip_sample, saved.guidance_rescale) == (1.5, 0.7)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_can_be_plotted(model: str, sampler: str) -> None:
    """And every weight is found in the picture again: blue above nothing, orange below it."""
    plan = compile_plan(open_bundle(model).noise_schedule, sampler, 8)
    picture = plot(plan).astype(int)
    assert picture.shape[1:] == (1200, 3)
    used = [column for column in range(9) if plan.weights[:, column].any()]
    for line, column in enumerate(used):
        top = len(picture) - GAP - CELL_HEIGHT * (len(used) - line)
        for i, weight in enumerate(plan.weights[:, column]):
            red, _, blue = picture[top + 5, round(90 + 1080 * i / len(plan)) + 5]
            seen = np.sign(blue - red)
            assert seen == np.sign(weight) if abs(weight) > 1e-3 else seen in (0, np.sign(weight))


def test_the_plotted_line_falls_with_sigma(model: str) -> None:
    """The line is found in the picture again: at each row its height is sigma's logarithm."""
    plan = compile_plan(open_bundle(model).noise_schedule, "euler", 8)
    picture = plot(plan)
    blue = (picture[70:340] == BLUE).all(axis=2)
    columns = [round(90 + 1080 * (i + 0.5) / 8) for i in range(8)]
    heights = [float(np.flatnonzero(blue[:, column]).mean()) for column in columns]
    logarithms = np.log10(sigmas(plan)[:8])
    slope, intercept = np.polyfit(logarithms, heights, 1)
    assert slope < -50
    np.testing.assert_allclose(slope * logarithms + intercept, heights, atol=2)


def test_extreme_plans_can_be_plotted(model: str) -> None:
    schedule = open_bundle(model).noise_schedule
    velocity = type(schedule)(schedule.alphas_cumprod, "v_prediction")
    for plan in (
        compile_plan(velocity, "ddim", 1),
        compile_plan(velocity, "ddim", 4, rescale_betas_zero_snr=True),  # sigma is infinite
        compile_plan(velocity, "ddpm", 100),
        compile_plan(velocity, "ddim", 5, guidance_interval=(0.5, 2.0)),
    ):
        assert plot(plan).shape[1] == 1200


def test_the_picture_is_written_like_any_other(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", model, "--plot", "plan.png"]) == 0
    with Image.open("plan.png") as picture:
        assert picture.width == 1200
    for arguments, message in (
        (["--plot", "plan.png"], "plan.png exists; choose another name or add --overwrite"),
        (["--plot", "plan.svg"], "plan.svg has no suffix of a picture"),
        (["--plot", "missing/plan.png"], "the folder missing does not exist"),
        (["--plot", "new.png", "-o", "new.png"], "--output and --plot are both new.png; give two names"),
        (["-o", "missing/plan.json"], "the folder missing does not exist"),
    ):
        capsys.readouterr()
        assert main(["plan", "--model", model, *arguments]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""


def test_plans_need_no_onnx_runtime(model: str, tmp_path: Path) -> None:
    """The hard dependencies alone are on the path, linked from where they are installed."""
    installed, site = Path(safetensors.__file__).parent.parent, tmp_path / "site"
    site.mkdir()
    for package in ("numpy*", "safetensors*", "PIL", "pillow*", "tokenizers*"):
        for found in installed.glob(package):
            (site / found.name).symlink_to(found)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    command = [sys.executable, "-S", "-m", "runtime", "plan", "--model", model, "--json", "--plot", "plan.png"]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert Plan.from_json(json.loads(finished.stdout)).sampler == "ddim"
    assert Path("plan.png").exists()
