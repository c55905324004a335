"""Proves ``python -m training evaluate``: that it draws what was asked for through the runtime, counts what the judge
reads class by class, compares with real images, writes it down, and says in one line what does not fit together, before
anything is drawn. The statistics themselves are proved in test_evaluate_statistics.py."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import torch
from PIL import Image

from training.__main__ import main
from training.classifier.checkpoint import load_classifier, save_classifier
from training.classifier.config import ClassifierConfig, NetworkConfig
from training.classifier.train import Trainer
from training.data import Dataset, load
from training.evaluate.curves import read_curve, ticks_of_losses, ticks_of_steps
from training.evaluate.draw import Request
from training.evaluate.frechet import frechet_distance
from training.evaluate.judge import load_judge
from training.evaluate.manifolds import Manifolds
from training.evaluate.neighbours import find_neighbours

ROOT = Path(__file__).parents[1]
CLASSES, SIZE = tiny_bundle.CLASSES, tiny_bundle.SIZE


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W) of as many classes as the tiny bundle draws, by the third that is bright."""
    labels = (np.arange(count) % CLASSES).astype(np.uint8)
    images = np.random.default_rng(seed).integers(0, 80, (count, SIZE, SIZE), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[SIZE * label // CLASSES : SIZE * (label + 1) // CLASSES] += 150
    return images, labels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a judge for it, and a bundle."""
    folder = tmp_path_factory.mktemp("evaluate")
    (x_train, y_train), (x_test, y_test) = bars(480, 0), bars(390, 1)
    np.savez(folder / "bars.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    network = NetworkConfig(1, SIZE, 4, CLASSES)
    config = ClassifierConfig("bars", network, epochs=2, batch_size=20, max_shift=0.0, max_rotation=0.0)
    torch.set_num_threads(1)
    trainer = Trainer(config, Dataset("bars", x_train[:, None], y_train, ""))
    while trainer.step < trainer.total_steps:
        trainer.train_step()
    save_classifier(folder / "judge.safetensors", trainer.model, config, {})
    tiny_bundle.write(folder)
    return folder


def words(place: Path, *more: object) -> list[str]:
    fixed = ("--dataset", place / "bars.npz", "--classifier", place / "judge.safetensors")
    return ["evaluate", *map(str, (*fixed, *more))]


def drawn(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    np.savez(path, images=images, labels=labels)
    return path


def test_the_count_of_what_is_read_class_by_class(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty bars that the judge reads rightly, four of which were asked for as something else."""
    images, labels = bars(30, 2)
    asked = labels.astype(np.int64)
    asked[:4] = (asked[:4] + 1) % CLASSES  # 0, 1, 2, 0 become 1, 2, 0, 1
    file = drawn(tmp_path / "drawn.npz", images[..., None], asked)
    assert main(words(place, "--images", file, "--out", tmp_path / "report")) == 0

    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    agreement = report["agreement"]
    assert agreement["confusion"] == [[8, 0, 1], [2, 9, 0], [0, 1, 9]]
    assert (agreement["overall"]["hits"], agreement["overall"]["count"]) == (26, 30)
    assert [(each["hits"], each["count"]) for each in agreement["by_class"]] == [(8, 9), (9, 11), (9, 10)]
    assert agreement["overall"]["low"] < 26 / 30 < agreement["overall"]["high"]
    assert report["classifier"]["test"]["overall"]["hits"] == 390
    assert report["images"]["count"] == 30
    assert "bundle" not in report

    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[4].split()[:4] == ["all", "30", "26", "86.67"]
    sha256 = report["classifier"]["sha256"]
    assert f"SHA-256 {sha256}, reads 100.00 % of 390 test images of bars rightly" in out


def test_the_pictures_show_each_class_and_what_was_misread(place: Path, tmp_path: Path) -> None:
    images, labels = bars(30, 2)
    asked = np.where(np.arange(30) == 7, 2, labels)  # image 7 shows class 1
    file = drawn(tmp_path / "drawn.npz", images[..., None], asked)
    main(words(place, "--images", file, "--out", tmp_path / "report"))
    with Image.open(tmp_path / "report" / "grid.png") as picture:
        grid = np.asarray(picture)[..., 0]
    factor = 56 // SIZE
    for row in range(CLASSES):
        for column, index in enumerate(np.flatnonzero(asked == row)[:10]):
            top, left = row * 58, column * 58
            tile = grid[top : top + 56, left : left + 56]
            np.testing.assert_array_equal(tile[::factor, ::factor], images[index])
    with Image.open(tmp_path / "report" / "disagreements.png") as picture:
        misread = np.asarray(picture)[..., 0]
    assert misread.shape == (56 + 14, 56)
    np.testing.assert_array_equal(misread[:56:factor, ::factor], images[7])


def test_without_disagreement_there_is_no_picture_of_it(place: Path, tmp_path: Path) -> None:
    images, labels = bars(30, 2)
    file = drawn(tmp_path / "drawn.npz", images[..., None], labels)
    assert main(words(place, "--images", file, "--out", tmp_path / "report")) == 0
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["evaluation.json", "grid.png", "neighbours.png"]


@pytest.mark.slow
def test_figures_are_those_of_the_statistics(place: Path, tmp_path: Path) -> None:
    """Every test image of the first classes taken for a sample, so that the real images are the same ones: nothing lies
    between them. And of other bars, what the functions say of the judge's features and of the pixels."""
    with np.load(place / "bars.npz") as bars_file:
        everything = {name: bars_file[name] for name in bars_file}
    test_images, train_images = everything["x_test"], everything["x_train"]
    file = drawn(tmp_path / "test.npz", test_images[..., None], everything["y_test"])
    assert main(words(place, "--images", file, "--out", tmp_path / "same")) == 0
    same = json.loads((tmp_path / "same" / "evaluation.json").read_text())
    assert same["frechet_distance"]["value"] == pytest.approx(0, abs=1e-9)
    assert same["precision"]["value"] == same["recall"]["value"] == 1
    assert same["nearest_training_image"]["probability_nearer_than_a_real_image"]["value"] == pytest.approx(0.5)
    assert 0 < same["real"]["frechet_distance"]["value"] < 1

    others, labels = bars(390, 7)
    others = np.where(np.arange(390)[:, None, None] < 100, train_images[:390], others // 2)  # a hundred copies
    file = drawn(tmp_path / "others.npz", others[..., None], labels)
    assert main(words(place, "--images", file, "--out", tmp_path / "others")) == 0
    report = json.loads((tmp_path / "others" / "evaluation.json").read_text())
    test = Dataset("bars", test_images[:, None], everything["y_test"], "")
    judge = load_judge(place / "judge.safetensors", test, "bars.npz")
    samples, real = (judge.read(images[:, None]).features for images in (others, test_images))
    assert report["frechet_distance"]["value"] == pytest.approx(frechet_distance(samples, real), rel=1e-9)
    found = Manifolds.of(samples, real)
    assert (report["precision"]["value"], report["recall"]["value"]) == (found.precision(), found.recall())
    nearest = find_neighbours(others[:, None], train_images[:, None], 1).nearest
    assert (nearest == 0).sum() == 100
    assert report["nearest_training_image"]["share_among_nearest"]["value"] >= 100 / 390
    assert same["nearest_training_image"]["share_among_nearest"]["value"] == pytest.approx(4 / 390)  # 1 % of them
    assert report["nearest_training_image"]["median_distance"]["value"] == pytest.approx(np.median(nearest))
    assert report["real"] == same["real"]
    for name in ("frechet_distance", "precision", "recall"):
        figure = report[name]
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_a_copy_is_shown_beside_what_it_copies(place: Path, tmp_path: Path) -> None:
    with np.load(place / "bars.npz") as bars_file:
        training = bars_file["x_train"]
    images, labels = bars(30, 2)
    images[17] = training[5]
    file = drawn(tmp_path / "drawn.npz", images[..., None], labels)
    assert main(words(place, "--images", file, "--out", tmp_path / "report")) == 0
    with Image.open(tmp_path / "report" / "neighbours.png") as picture:
        sheet = np.asarray(picture)[..., 0]
    assert sheet.shape[0] == 9 * (56 + 14 + 2) - 2  # six of each class, two in a row
    first, second = sheet[:56, :56], sheet[:56, 58 : 58 + 56]
    np.testing.assert_array_equal(first[:: 56 // SIZE, :: 56 // SIZE], training[5])
    np.testing.assert_array_equal(first, second)


def test_the_runs_loss_becomes_a_picture(place: Path, tmp_path: Path) -> None:
    options = f"--dataset {place / 'bars.npz'} --out {tmp_path}/run --features 4 --epochs 2 --batch-size 40"
    assert main(["classifier", *options.split(), "--mixed-precision", "no"]) == 0
    curve = read_curve(tmp_path / "run")
    assert curve.steps.tolist() == list(range(1, 25))
    trainer = Trainer(load_classifier(tmp_path / "run" / "model.safetensors")[1], load(str(place / "bars.npz")))
    np.testing.assert_allclose(curve.losses, [trainer.train_step()[0] for _ in range(24)], rtol=1e-6)
    assert curve.smooth[0] == curve.losses[0]
    assert curve.smooth[1] == pytest.approx(0.98 * curve.losses[0] + 0.02 * curve.losses[1])

    images, labels = bars(30, 2)
    file = drawn(tmp_path / "drawn.npz", images[..., None], labels)
    assert main(words(place, "--images", file, "--out", tmp_path / "report", "--run", tmp_path / "run")) == 0
    with Image.open(tmp_path / "report" / "loss.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    assert blue.any(axis=0)[100:900].all()  # the line runs from left to right
    heights = [np.flatnonzero(blue[:, column]).mean() for column in (90, 900)]
    assert heights[0] < heights[1]  # and down


def test_a_folder_without_a_log_has_no_loss(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        error = refusal(capsys, *words(place, "--images", "x.npz", "--run", folder))
        assert f"{folder} holds no log of a loss; give the folder of a run" in error


@pytest.mark.parametrize(("first", "last"), [(1, 2340), (1, 2), (1, 24), (700, 90000)])
def test_the_axis_of_steps_has_a_few_round_numbers(first: int, last: int) -> None:
    ticks = ticks_of_steps(first, last)
    assert 1 <= len(ticks) <= 13
    assert all(first <= tick <= last for tick in ticks)
    assert len({b - a for a, b in itertools.pairwise(ticks)}) <= 1


def test_the_axis_of_losses_has_round_numbers() -> None:
    assert ticks_of_losses(0.03, 1.3) == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert ticks_of_losses(0.61, 0.64) == [0.61, 0.64]


def evaluate(place: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since the runtime writes past Python's sys.stdout."""
    command = [sys.executable, "-m", "training", *words(place, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_it_draws_what_was_asked_for_through_the_runtime(place: Path, tmp_path: Path) -> None:
    """The same images as the runtime's own command, as many of each class, judged as the classifier reads them."""
    options = "--steps 5 --sampler ddim --guidance-scale 1.5 --seed 3"
    finished = evaluate(place, place / "tiny", "--count", 18, *options.split(), "--out", tmp_path / "report")
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    asked = {"count": 18, "seed": 3, "steps": 5, "sampler": "ddim", "guidance_scale": 1.5}
    assert report["request"] == asked
    assert report["bundle"]["name"] == "tiny"
    assert report["bundle"]["defaults"]["num_inference_steps"] == 10

    runtime = ["--model", str(place / "tiny"), "--label", "all", "--count", "6", *options.split()]
    command = [sys.executable, "-m", "runtime", *runtime]
    subprocess.run([*command, "-o", str(tmp_path / "own.npz")], cwd=ROOT, check=True, capture_output=True)
    with np.load(tmp_path / "own.npz") as own, np.load(tmp_path / "report" / "images.npz") as judged:
        np.testing.assert_array_equal(own["images"], judged["images"])
        np.testing.assert_array_equal(judged["labels"], np.repeat(np.arange(CLASSES), 6))
    assert sum(map(sum, report["agreement"]["confusion"])) == 18
    assert [each["count"] for each in report["agreement"]["by_class"]] == [6, 6, 6]

    again = tmp_path / "again"
    assert main(words(place, "--images", tmp_path / "own.npz", "--out", again)) == 0
    judged_again = json.loads((again / "evaluation.json").read_text())
    assert judged_again["agreement"] == report["agreement"]
    assert judged_again["images"] == report["images"]
    for name in ("frechet_distance", "precision", "recall", "nearest_training_image", "real"):
        assert judged_again[name] == report[name]


@pytest.mark.slow
def test_sweeps_draw_the_same_noise_at_each_setting(place: Path, tmp_path: Path) -> None:
    """What the request itself says is drawn once; the rest is as drawn alone."""
    options = ["--steps", "5", "--sampler", "ddim", "--guidance-scales", "1,2", "--step-counts", "3,5", "--seed", "3"]
    finished = evaluate(place, place / "tiny", "--count", 18, *options, "--out", tmp_path / "report")
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    guided, stepped = report["sweeps"]["guidance_scale"], report["sweeps"]["steps"]
    assert ([each["guidance_scale"] for each in guided], [each["steps"] for each in stepped]) == ([1.0, 2.0], [3, 5])
    names = sorted(path.name for path in (tmp_path / "report").glob("*.npz"))
    assert names == ["guidance-scale-1.npz", "images.npz", "steps-3.npz"]  # 2 is the bundle's guidance scale
    for same in (guided[1], stepped[1]):
        assert {name: same[name] for name in ("images", "frechet_distance")} == {
            name: report[name] for name in ("images", "frechet_distance")
        }
    for picture in ("guidance-scale-sweep", "steps-sweep"):
        with Image.open(tmp_path / "report" / f"{picture}.png") as sheet:
            assert sheet.size == (4 * 58 - 2, 2 * 58 - 2)  # the setting and a tile of each class

    alone = ["--steps", "5", "--sampler", "ddim", "--guidance-scale", "1", "--seed", "3"]
    assert evaluate(place, place / "tiny", "--count", 18, *alone, "--out", tmp_path / "alone").returncode == 0
    report_alone = json.loads((tmp_path / "alone" / "evaluation.json").read_text())
    assert {name: report_alone[name] for name in guided[0] if name != "guidance_scale"} == {
        name: value for name, value in guided[0].items() if name != "guidance_scale"
    }
    assert "guidance scale" in finished.stdout


@pytest.mark.slow
def test_what_the_runtime_refuses_is_its_own_line_and_leaves_no_report(place: Path, tmp_path: Path) -> None:
    finished = evaluate(place, place / "tiny", "--count", 18, "--steps", 1000, "--out", tmp_path / "report")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert "1000" in finished.stderr
    assert list((tmp_path / "report").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Request(12, 0), "--label=all --count=4 --seed=0"),
        (Request(3, 7, steps=50, sampler="ddpm"), "--label=all --count=1 --seed=7 --steps=50 --sampler=ddpm"),
        (Request(3, -1, guidance_scale=-2.0), "--label=all --count=1 --seed=-1 --guidance-scale=-2.0"),
        (Request(3, 0, guidance_scale=2.5), "--label=all --count=1 --seed=0 --guidance-scale=2.5"),
    ],
)
def test_what_is_not_given_is_left_to_the_bundle(given: Request, expected: str) -> None:
    assert given.options(CLASSES) == expected.split()


# What does not fit.


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def other_bundle(place: Path, folder: Path, **changes: Any) -> Path:
    """A folder whose manifest says something else; it never comes to drawing."""
    folder.mkdir()
    manifest = json.loads((place / "tiny" / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"pixels": {"channels": 3, "height": 32, "width": 32}}, "images of shape (3, 32, 32), but"),
    "classes": ({"conditioning": {"kind": "class", "num_classes": 10}}, "a number of classes of 10, but"),
    "dataset": ({"provenance": {"training": {"config": {"dataset": "mnist"}}}}, "the data set mnist, but"),
    "latents": ({"pixels": None}, "is no bundle of a class-conditional model of pixels"),
    "other": ({"conditioning": {"kind": "other"}}, "is no bundle of a class-conditional model of pixels"),
    "nothing": ({"provenance": []}, "is no bundle of a class-conditional model of pixels"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_bundle_that_the_classifier_cannot_judge(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    changes, message = MISFITS[kind]
    bundle = other_bundle(place, tmp_path / "bundle", **changes)
    error = refusal(capsys, *words(place, bundle, "--count", 30, "--out", tmp_path / "report"))
    assert str(bundle) in error
    assert message in error
    assert not (tmp_path / "report").exists()


def test_what_is_no_bundle(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = words(place, tmp_path, "--out", tmp_path / "report")
    assert "manifest.json cannot be read (No such file or directory)" in refusal(capsys, *arguments)
    for content in ("{", "[" * 10**5, "\udcff"):
        (tmp_path / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
        assert f"{tmp_path} is no bundle" in refusal(capsys, *arguments)


@pytest.mark.parametrize("count", [0, -3, 2, 1000])
def test_a_count_that_the_classes_cannot_share(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    arguments = words(place, place / "tiny", "--count", count, "--out", tmp_path / "report")
    assert f"--count is {count}; it must be a multiple of the 3 classes" in refusal(capsys, *arguments)
    assert not (tmp_path / "report").exists()


def test_too_few_images_for_a_statistic(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither to be drawn nor drawn before; the judge has 16 features."""
    message = "15 images are too few: the Fréchet distance in the classifier's 16 features needs 17 or more"
    options = ("--out", tmp_path / "report")
    assert message in refusal(capsys, *words(place, place / "tiny", "--count", 15, *options))
    images, labels = bars(15, 2)
    file = drawn(tmp_path / "drawn.npz", images[..., None], labels)
    assert message in refusal(capsys, *words(place, "--images", file, *options))
    assert not (tmp_path / "report").exists()


def test_more_images_than_there_are_real_ones(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(capsys, *words(place, place / "tiny", "--count", 393, "--out", tmp_path / "report"))
    assert "131 images of class 0 cannot be measured against the 130 real ones in the test set of bars" in error
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("values", ["1,x", "", "2,2"])
def test_a_sweep_that_is_no_list_of_numbers(place: Path, capsys: pytest.CaptureFixture[str], values: str) -> None:
    for option in ("--guidance-scales", "--step-counts"):
        with pytest.raises(SystemExit) as ended:
            main(words(place, place / "tiny", f"{option}={values}"))
        assert ended.value.code == 2
        assert f"argument {option}: invalid list of different numbers value: '{values}'" in capsys.readouterr().err


def test_options_that_exclude_each_other(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give either a bundle to draw from or --images" in refusal(capsys, *words(place))
    assert "not both" in refusal(capsys, *words(place, place / "tiny", "--images", "x.npz"))
    error = refusal(capsys, *words(place, "--images", "x.npz", "--guidance-scale", 2))
    assert "--guidance-scale is for drawing; leave it out with --images" in error
    error = refusal(capsys, *words(place, "--images", "x.npz", "--step-counts", "5,10"))
    assert "--step-counts is for drawing; leave it out with --images" in error


def test_a_judge_that_is_missing_or_for_something_else(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle, dataset, judge = str(place / "tiny"), str(place / "bars.npz"), str(place / "judge.safetensors")
    error = refusal(capsys, "evaluate", bundle, "--dataset", dataset)
    command = f"python -m training classifier --dataset {dataset} --out runs/classifier-bars"
    assert f"runs/classifier-bars/model.safetensors does not exist; make one with: {command}" in error
    assert "data set 'minst' is unknown; choose mnist" in refusal(capsys, "evaluate", bundle, "--dataset", "minst")
    error = refusal(capsys, "evaluate", bundle, "--dataset", dataset, "--classifier", f"{bundle}/unet.onnx")
    assert "unet.onnx is damaged or no safetensors file" in error
    (tmp_path / "others.npz").write_bytes((place / "bars.npz").read_bytes())
    error = refusal(capsys, "evaluate", bundle, "--dataset", "others.npz", "--classifier", judge)
    assert f"{judge} was trained on bars; give a classifier for others" in error


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((6, SIZE, SIZE, 3), np.uint8), np.zeros(6, np.int64), f"the classifier reads (N, {SIZE}, {SIZE}, 1)"),
        (np.zeros((6, SIZE, SIZE, 1), np.uint8), np.zeros(5, np.int64), "labels (5,)"),
        (np.zeros((0, SIZE, SIZE, 1), np.uint8), np.zeros(0, np.int64), "images (0, "),
        (np.zeros((6, SIZE, SIZE, 1), np.uint8), np.full(6, 3), "labels from 3 to 3; the classifier reads 0 to 2"),
        (np.zeros((6, SIZE, SIZE, 1), np.uint8), np.full(6, -1), "labels from -1 to -1"),
        (np.zeros((6, SIZE, SIZE, 1)), np.zeros(6, np.int64), "images holds float64; it must be uint8"),
    ],
)
def test_images_that_the_classifier_does_not_read(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: np.ndarray,
    labels: np.ndarray,
    message: str,
) -> None:
    file = drawn(tmp_path / "drawn.npz", images, labels)
    error = refusal(capsys, *words(place, "--images", file, "--out", tmp_path / "report"))
    assert str(file) in error
    assert message in error
    assert not (tmp_path / "report").exists()


def test_an_evaluation_is_not_overwritten(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = bars(30, 2)
    file = drawn(tmp_path / "images.npz", images[..., None], labels)
    assert main(words(place, "--images", file, "--out", tmp_path)) == 0  # judging what was drawn there before
    before = (tmp_path / "evaluation.json").read_bytes()
    capsys.readouterr()
    error = refusal(capsys, *words(place, "--images", file, "--out", tmp_path))
    assert f"{tmp_path} holds an evaluation already; choose another --out" in error
    (tmp_path / "evaluation.json").unlink()
    error = refusal(capsys, *words(place, place / "tiny", "--count", 18, "--out", tmp_path))
    assert f"{file} exists already; judge it with --images, or choose another --out" in error
    assert before


@pytest.mark.slow
def test_the_judge_reads_random_images_no_better_than_by_chance(place: Path, tmp_path: Path) -> None:
    """Labels that have nothing to do with the images: agreement is what chance gives, within its interval."""
    draws = np.random.default_rng(5)
    images, _ = bars(300, 6)
    labels = draws.integers(0, CLASSES, 300)
    file = drawn(tmp_path / "drawn.npz", images[..., None], labels)
    assert main(words(place, "--images", file, "--out", tmp_path / "report")) == 0
    overall = json.loads((tmp_path / "report" / "evaluation.json").read_text())["agreement"]["overall"]
    assert overall["low"] < 1 / CLASSES < overall["high"]
    assert overall["high"] - overall["low"] < 0.12
