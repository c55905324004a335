"""Proves ``python -m training evaluate`` for models of texts, on a bundle whose VAE is known in closed form: drawn by
the runtime, read by a judge, reported and shown; and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_text_bundle
import torch
from PIL import Image

import training.checkpoint
from training.__main__ import main
from training.randomness import array_generator
from training.stable_diffusion.pocket.captions import known_words
from training.stable_diffusion.pocket.checkpoint import JUDGE
from training.stable_diffusion.pocket.config import JudgeNetwork, pocket
from training.stable_diffusion.pocket.evaluation.images import INSIDE, REBUILT
from training.stable_diffusion.pocket.evaluation.negatives import PICTURES
from training.stable_diffusion.pocket.judge import Judge
from training.stable_diffusion.pocket.render import render
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.world import draw_scene

COUNT = 12


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has learned nothing."""
    config = pocket()
    network = JudgeNetwork(features=2, levels=2, hidden=8)
    config = dataclasses.replace(config, judge=dataclasses.replace(config.judge, network=network))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    training.checkpoint.write(path, JUDGE, dict(Judge(network).state_dict()), {"config": config.to_json()})
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_text_bundle.write(tmp_path_factory.mktemp("text"))
    world = {"known_words": list(known_words())}
    return tiny_text_bundle.changed(folder, folder.parent, lambda manifest: manifest["conditioning"].update(world))


def psnr_by_hand(folder: Path) -> float:
    """Of a VAE that keeps the mean of each 2 x 2 pixels."""
    draws, sources = array_generator(0, "rebuilt", 0), Sources.load("test", folder)
    pictures = [render(draw_scene(draws), sources, draws) for _ in range(REBUILT)]
    real = np.stack([picture.pixels for picture in pictures]).astype(np.float64)
    means = real.reshape(REBUILT, 32, 2, 32, 2, 3).mean((2, 4))
    rebuilt = np.rint(means).repeat(2, axis=1).repeat(2, axis=2)
    inside = np.stack([picture.alpha for picture in pictures]) > INSIDE
    return float(10 * np.log10(255**2 / np.square(rebuilt - real)[inside].mean()))


@pytest.mark.slow
def test_a_bundle_is_judged_and_shown(
    bundle: Path, judge: Path, mnist_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [str(bundle), "--classifier", str(judge), "--data", str(mnist_folder), "--out", str(out)]
    words += ["--count", str(COUNT), "--steps", "2"]
    assert main(["evaluate", *words]) == 0
    written = (out / "evaluation.json").read_bytes()
    report = json.loads(written)
    assert report["vae_psnr_db"]["value"] == pytest.approx(psnr_by_hand(mnist_folder), abs=0.05)
    facts = report["facts"]
    assert facts["all"]["thing"]["count"] == facts["known"]["thing"]["count"] + facts["held out"]["thing"]["count"]
    assert facts["real"].keys() == facts["all"].keys()
    trials = report["negative_prompts"].pop("trials")
    assert trials, "a judge that has learned nothing reads much the same everywhere"
    for way, rates in report["negative_prompts"].items():
        assert {trial[way]["shown"]["count"] for trial in trials} == {PICTURES}
        for name, rate in rates.items():
            hits, counts = (sum(trial[way][name][key] for trial in trials) for key in ("hits", "count"))
            assert rate["value"] == pytest.approx(hits / counts)
            assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
    table = capfd.readouterr().out
    assert f"| thing | {100 * facts['all']['thing']['rate']:.1f} %" in table
    assert f"{report['vae_psnr_db']['value']:.1f} ({report['vae_psnr_db']['low']:.1f} to " in table
    assert report["bundle"]["defaults"] == json.loads((bundle / "manifest.json").read_text())["defaults"]
    assert set(report["image_to_image"]) == {"thing", "background", "position", "size", "colour"}
    for name in ("prompts", "wrong", "recoloured", "rebuilt", "neighbours"):
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) >= 28

    assert main(["evaluate", *words]) == 2
    assert "holds an evaluation already; choose another --out" in capfd.readouterr().err
    (out / "evaluation.json").unlink()  # as if it had been stopped: nothing is drawn again
    drawn = (out / "prompts" / "pictures" / "index.jsonl").stat().st_mtime_ns, sorted((out / "prompts").rglob("*.png"))
    times = [path.stat().st_mtime_ns for path in drawn[1]]
    assert main(["evaluate", *words]) == 0
    assert [path.stat().st_mtime_ns for path in drawn[1]] == times
    assert (out / "evaluation.json").read_bytes() == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "1"], "--count is 1; it must be at least 2"),
        (["--classifier", "no.safetensors"], "no.safetensors does not exist; make one with: "),
        (["--data", "nowhere"], "nowhere holds neither"),
    ],
)
def test_a_mistake_is_one_line(
    bundle: Path, judge: Path, tmp_path: Path, refusal: Callable[..., str], options: list[str], message: str
) -> None:
    words = [bundle, "--classifier", judge, "--out", tmp_path / "out", *options]
    assert message in refusal(main, "evaluate", *words)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_world_is_refused(judge: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tiny_text_bundle.write(tmp_path)
    assert main(["evaluate", str(other), "--classifier", str(judge), "--out", str(tmp_path / "out")]) == 2
    assert f"{other} is no bundle of the pocket model" in capfd.readouterr().err
