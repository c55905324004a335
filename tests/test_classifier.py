"""Proves the classifier that judges: that it learns real digits within its cost, repeats from one seed, continues where
it stopped, comes back from its file, and counts honestly; and one clear line for what does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.__main__ import main
from training.classifier.agreement import Agreement, Proportion
from training.classifier.augment import augment
from training.classifier.checkpoint import load_classifier, save_classifier
from training.classifier.config import ClassifierConfig, NetworkConfig, preset
from training.classifier.model import Classifier
from training.classifier.reading import agreement_on, check_fits, read
from training.classifier.train import Trainer, one_cycle_factor
from training.data import Dataset
from training.errors import CheckpointError, TrainingError
from training.run import Run

STILL = {"max_shift": 0.0, "max_rotation": 0.0, "max_scaling": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more, threads wait for each other longer than these small networks compute, on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(config: ClassifierConfig, dataset: Dataset) -> Classifier:
    """A classifier at the end of its training, of which nothing is written."""
    trainer = Trainer(config, dataset)
    while trainer.step < trainer.total_steps:
        trainer.train_step()
    return trainer.model.eval()


def bars(count: int = 60, size: int = 8) -> Dataset:
    """Three classes of images, by the third that is bright."""
    labels = (np.arange(count) % 3).astype(np.uint8)
    images = np.random.default_rng(0).integers(0, 80, (count, 1, size, size), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, :, size * label // 3 : size * (label + 1) // 3] += 150
    return Dataset("bars", images, labels, sha256="bars")


BARS = ClassifierConfig("bars", NetworkConfig(1, 8, 4, 3), epochs=4, batch_size=10, **STILL)


@pytest.mark.slow
def test_it_learns_real_digits(mnist_sample: dict[str, np.ndarray]) -> None:
    """Four hundred digits and a few passes are enough to read most of a hundred others."""
    train_set = Dataset("digits", mnist_sample["x_train"][:, None], mnist_sample["y_train"], "")
    test_set = Dataset("digits", mnist_sample["x_test"][:, None], mnist_sample["y_test"], "")
    trainer = Trainer(ClassifierConfig("digits", epochs=10, batch_size=40), train_set)
    losses = [trainer.train_step()[0] for _ in range(100)]
    assert trainer.step == trainer.total_steps
    assert losses[0] > math.log(10) / 2 > 2 * np.mean(losses[-10:])
    assert agreement_on(trainer.model.eval(), test_set).overall.rate >= 0.9


@pytest.mark.parametrize(
    ("dataset", "network", "least", "most"),
    [
        ("mnist", NetworkConfig(1, 28), 10e6, 15e6),
        ("fashion-mnist", NetworkConfig(1, 28), 50e6, 60e6),
        ("cifar10", NetworkConfig(3, 32), 300e6, 350e6),
    ],
)
def test_what_reading_an_image_costs(dataset: str, network: NetworkConfig, least: float, most: float) -> None:
    """In operations; training costs three times as many for each image and epoch."""
    network = preset(dataset, network).network
    with torch.device("meta"):
        model, image = Classifier(network), torch.zeros(1, *network.image_shape)
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert least < counter.get_total_flops() < most


def test_what_is_upright_is_mirrored_and_not_turned() -> None:
    digits, garments, photographs = (
        preset(dataset, NetworkConfig(image_size=32)) for dataset in ("mnist", "fashion-mnist", "cifar10")
    )
    assert (digits.flip, digits.max_rotation) == (False, 10)
    assert (garments.flip, garments.max_rotation, garments.max_scaling) == (True, 0, 0)
    assert (photographs.flip, photographs.max_rotation, photographs.network.widths) == (True, 0, [64, 128, 256, 256])
    assert preset("own", NetworkConfig(3, 8, 4, 2)) == ClassifierConfig("own", NetworkConfig(3, 8, 4, 2))


NETWORKS = [NetworkConfig(), NetworkConfig(3, 32, 8, 7), NetworkConfig(3, 32, 8, 10, stages=4)]


@pytest.mark.parametrize("network", NETWORKS, ids=["28x28x1", "32x32x3", "four-stages"])
def test_shapes(network: NetworkConfig) -> None:
    model = Classifier(network).eval()
    sample = torch.zeros(2, *network.image_shape)
    assert model(sample).shape == (2, network.num_classes)
    assert model.embed(sample).shape == (2, 4 * network.features)
    assert torch.equal(model.head(model.embed(sample)), model(sample))


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = (trained(BARS, bars()).state_dict() for _ in range(2))
    other = trained(dataclasses.replace(BARS, seed=1), bars()).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_divergence_is_one_clear_error() -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d+; choose a lower --learning-rate"):
        trained(dataclasses.replace(BARS, learning_rate=1e30), bars())


@pytest.mark.parametrize("total", [4, 24, 1000])
def test_the_rate_is_that_of_torchs_one_cycle(total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total, cycle_momentum=False)
    for step in range(total):
        assert one_cycle_factor(step, total) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            theirs.step()
    assert all(0 < one_cycle_factor(step, few) <= 1 for few in (1, 2, 3) for step in range(few))


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Bit for bit, from the middle of an epoch, though the images are augmented."""
    config = dataclasses.replace(BARS, max_shift=1.0, max_rotation=5.0, flip=True, label_smoothing=0.1)
    first = Trainer(config, bars())
    for _ in range(8):
        first.train_step()
    run = Run(tmp_path)
    first.save(run)
    second = Trainer(config, bars())
    second.load(run)
    assert second.step == 8
    while second.step < second.total_steps:
        second.train_step()
    expected = trained(config, bars()).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "dataset", "message"),
    [
        (dataclasses.replace(BARS, epochs=5), bars(), "belongs to another run (epochs 4 there and 5 here)"),
        (BARS, dataclasses.replace(bars(), sha256="others"), "belongs to another run (other images or labels)"),
    ],
    ids=["options", "images"],
)
def test_a_state_of_another_run(tmp_path: Path, config: ClassifierConfig, dataset: Dataset, message: str) -> None:
    Trainer(BARS, bars()).save(Run(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        Trainer(config, dataset).load(Run(tmp_path))
    assert message in str(caught.value)
    assert "begin anew with another --out" in str(caught.value)


# Augmentation.


def spot(row: int, column: int, size: int = 21) -> torch.Tensor:
    image = torch.zeros(1, 1, size, size)
    image[0, 0, row, column] = 1
    return image


def centre(image: torch.Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass, from the image's middle."""
    places = torch.arange(image.shape[-1]) - (image.shape[-1] - 1) / 2
    mass = image.sum()
    return float((image.sum(-1) * places).sum() / mass), float((image.sum(-2) * places).sum() / mass)


def bounds(**changed: float) -> ClassifierConfig:
    return ClassifierConfig("", NetworkConfig(image_size=20), **(STILL | changed))  # type: ignore[arg-type]


def augmented(image: torch.Tensor, config: ClassifierConfig, count: int = 200) -> torch.Tensor:
    return augment(image.repeat(count, 1, 1, 1), config, torch.Generator().manual_seed(0))


def test_without_bounds_nothing_changes() -> None:
    images = torch.rand(3, 2, 8, 8)
    torch.testing.assert_close(augment(images, bounds(), torch.Generator()), images)


def test_shifts_reach_their_bound_in_pixels_and_no_further() -> None:
    centres = np.array([centre(image) for image in augmented(spot(10, 10), bounds(max_shift=2.0))])
    assert np.abs(centres).max() < 2.0 + 1e-4
    assert (centres.min(axis=0) < -1.9).all()
    assert (centres.max(axis=0) > 1.9).all()
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.3


def test_rotations_reach_their_bound_in_degrees_and_keep_distances() -> None:
    centres = np.array([centre(image) for image in augmented(spot(10, 18), bounds(max_rotation=10.0))])
    angles = np.degrees(np.arctan2(centres[:, 0], centres[:, 1]))
    assert 9 < angles.max() < 10.5
    assert -10.5 < angles.min() < -9
    np.testing.assert_allclose(np.hypot(*centres.T), 8, atol=0.15)


def test_where_nothing_is_turned_or_scaled_shifts_are_of_whole_pixels_each_as_often() -> None:
    """Then every image is a copy of what it was, blurred nowhere."""
    moved = augmented(spot(10, 10), bounds(max_shift=2.0), 1000)
    torch.testing.assert_close(moved.amax(dim=(1, 2, 3)), torch.ones(1000), atol=1e-4, rtol=0)
    columns = moved.sum(dim=(1, 2)).argmax(dim=1)
    assert torch.bincount(columns, minlength=21)[8:13].min() > 150
    assert torch.bincount(columns)[8:13].sum() == 1000


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mirrored = augmented(image, bounds(flip=True), 400)
    as_it_was = (mirrored - image).abs().amax(dim=(1, 2, 3)) < 1e-4
    as_in_a_mirror = (mirrored - image.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert 150 < as_in_a_mirror.sum() < 250
    assert (as_it_was ^ as_in_a_mirror).all()


def test_scales_reach_their_bound_both_ways() -> None:
    centres = np.array([centre(image) for image in augmented(spot(10, 18), bounds(max_scaling=0.1))])
    assert 8.7 < centres[:, 1].max() < 8.9
    assert 7.1 < centres[:, 1].min() < 7.3
    np.testing.assert_allclose(centres[:, 0], 0, atol=1e-4)


def test_beyond_the_border_lies_the_borders_colour() -> None:
    """Not black, which a photograph does not have there."""
    white = augmented(torch.ones(1, 3, 8, 8), bounds(max_shift=2.0, max_rotation=10.0, max_scaling=0.1))
    torch.testing.assert_close(white, torch.ones_like(white))


# Counting.


def test_agreement_is_counted_by_the_class_that_was_asked_for() -> None:
    asked, read_as = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 2, 1, 0, 2])
    agreement = Agreement.between(asked, read_as, 4)
    assert agreement.confusion.tolist() == [[2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert agreement.by_class == [Proportion(2, 3), Proportion(1, 2), Proportion(1, 1), Proportion(0, 0)]
    assert agreement.overall == Proportion(4, 6)
    lines = agreement.table().splitlines()
    assert lines[1].split()[:4] == ["0", "3", "2", "66.67"]
    assert lines[-1].split()[:4] == ["all", "6", "4", "66.67"]
    json.loads(json.dumps(agreement.to_json(), allow_nan=False))


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (5, 10), (985, 1000), (1, 1)])
def test_wilsons_interval_ends_where_the_score_test_rejects(hits: int, count: int) -> None:
    """Its ends are the rates p with (hits / count - p)² = z² p (1 - p) / count: its definition (Wilson 1927)."""
    z = 1.959963984540054
    low, high = Proportion(hits, count).interval()
    assert 0 <= low <= hits / count <= high <= 1
    for p in (low, high):
        assert (hits / count - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / count, abs=1e-12)
    assert high > low


def test_an_interval_holds_the_rate_about_as_often_as_it_says() -> None:
    rate, draws = 0.97, np.random.default_rng(0).binomial(100, 0.97, 4000)
    held = [low <= rate <= high for low, high in (Proportion(int(hits), 100).interval() for hits in draws)]
    assert 0.92 < np.mean(held) < 0.98


# Its file.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("classifier") / "model.safetensors"
    save_classifier(path, trained(BARS, bars()), BARS, {"dataset_sha256": "bars"})
    return path


def test_it_comes_back_as_it_was(saved: Path) -> None:
    model, config = load_classifier(saved)
    assert config == BARS
    expected, found = read(trained(BARS, bars()), bars().images), read(model, bars().images)
    np.testing.assert_array_equal(found.classes, expected.classes)
    # Its weights lie in memory in another order, in which convolutions round otherwise.
    np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(expected.classes, bars().labels)


def test_features_are_what_the_classes_follow_from(saved: Path) -> None:
    model, _ = load_classifier(saved)
    seen: list[int] = []
    found = read(model, bars(1100).images, seen.append)
    assert (found.features.shape, found.features.dtype) == ((1100, 16), np.float64)
    logits = found.features @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    np.testing.assert_array_equal(logits.argmax(axis=1), found.classes)
    assert seen == [500, 500, 100]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[:-1], "damaged or no safetensors file"),
        (lambda whole: whole.replace(b"classifier/2", b"classifier/9"), "is not a classifier checkpoint"),
        (lambda whole: whole.replace(rb"\"features\": 4", rb"\"features\": 5"), "size mismatch"),
        (lambda whole: whole.replace(rb"\"epochs\"", rb"\"epoch5\""), "not a configuration"),
    ],
    ids=["truncated", "another-format", "another-size", "another-field"],
)
def test_a_damaged_classifier(saved: Path, tmp_path: Path, change, message: str) -> None:
    content = saved.read_bytes()
    assert change(content) != content
    path = tmp_path / "model.safetensors"
    path.write_bytes(change(content))
    with pytest.raises(CheckpointError) as caught:
        load_classifier(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_it_cannot_read_is_found_before_anything_is_computed() -> None:
    with pytest.raises(TrainingError, match=r"reads images of \(1, 8, 8\).*those of bars are \(1, 12, 12\)"):
        check_fits(BARS.network, bars(size=12))
    with pytest.raises(TrainingError, match="knows 2 classes, but bars has 3"):
        check_fits(dataclasses.replace(BARS.network, num_classes=2), bars())


# The command.


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path, dataset = tmp_path / "bars.npz", bars()
    images, labels = dataset.images[:, 0], dataset.labels
    np.savez(path, x_train=images[:48], y_train=labels[:48], x_test=images[48:], y_test=labels[48:])
    return path


def words(own: Path, out: Path, *more: str) -> list[str]:
    fixed = f"--dataset {own} --out {out} --features 4 --batch-size 12 --mixed-precision no"
    return ["classifier", *fixed.split(), *more]


def test_the_command_trains_tests_and_saves(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = words(own, tmp_path / "run", "--epochs", "12")
    assert main(options) == 0
    out, err = capsys.readouterr()
    assert f"{tmp_path}/run/model.safetensors: 100.00 % of 12 test images read rightly" in out
    assert len(out.splitlines()) == 1 + 1 + 3 + 1  # headline, head, classes, all
    assert "step 48 of 48" in err
    assert not (tmp_path / "run" / "state.safetensors").exists()
    model, config = load_classifier(tmp_path / "run" / "model.safetensors")
    assert (config.dataset, config.epochs, config.network.image_shape) == ("bars", 12, (1, 8, 8))
    assert agreement_on(model, bars()).overall.rate > 0.9

    assert main(options) == 2
    assert "model.safetensors exists already; choose another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_was_stopped_is_continued(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By Ctrl-C after a few steps, which are as many as there are from then on."""
    folder, stopping = tmp_path / "run", words(own, tmp_path / "run", "--epochs", "50", "--save-minutes", "0")
    timer = threading.Thread(target=interrupt_when, args=(folder / "state.safetensors",))
    timer.start()
    assert main(stopping) == 130
    timer.join()
    assert re.search(r"interrupted at step \d+ of 200; continue with --resume", capsys.readouterr().err)
    assert not (folder / "model.safetensors").exists()

    assert main(stopping) == 2
    assert f"{folder} holds a run already; continue it with --resume" in capsys.readouterr().err
    assert main([*stopping, "--seed", "1", "--resume"]) == 2
    assert "belongs to another run (seed 0 there and 1 here)" in capsys.readouterr().err
    assert main([*stopping, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"resumed at step [1-9]\d* of 200", err)
    assert "100.00 % of 12 test images" in out


def interrupt_when(file: Path) -> None:
    """Press Ctrl-C once there is a file, which is when the training has begun."""
    while not file.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--features 0", "features 0 must be 1 to 512"),
        ("--epochs 0", "epochs is 0; it must be at least 1"),
        ("--batch-size 0", "batch_size is 0"),
        ("--learning-rate nan", "learning_rate is nan; it must be above 0"),
        ("--seed -1", "seed is -1"),
        ("--seed 18446744073709551616", "below 2^64"),
        ("--save-minutes -1", "--save-minutes is -1.0; it must be 0 or more"),
    ],
)
def test_a_bad_value_is_one_line_and_writes_nothing(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert main(["classifier", "--dataset", str(own), "--out", f"{tmp_path}/run", *options.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()
