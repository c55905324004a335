"""Proves the training loop: that it learns, repeats from one seed bit for bit, also when it was stopped and resumed,
and refuses to go on from anything but its own state."""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from training.averaging import ema_update
from training.checkpoint import CheckpointError
from training.data import Dataset
from training.ddpm import checkpoint
from training.ddpm.config import PRESETS, TrainConfig
from training.ddpm.model import UNetConfig
from training.ddpm.preview import PREVIEWS_PER_CLASS
from training.ddpm.train import Trainer, learning_rate_factor
from training.errors import OutputError, TrainingError
from training.interrupt import StopRequest
from training.noise_schedule import NoiseSchedule
from training.randomness import generator
from training.run import Run

CLASSES, SIZE = 3, 8
# Two epochs of four steps.
CONFIG = TrainConfig(
    dataset="specks",
    model=UNetConfig(image_size=SIZE, features=8, num_classes=CLASSES),
    schedule=NoiseSchedule(20, 0.01, 0.3),
    epochs=2,
    batch_size=10,
    warmup_steps=4,
)
TOTAL_STEPS = 8


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (43, 1, SIZE, SIZE), np.uint8)
    return Dataset("specks", images, np.arange(43, dtype=np.uint8) % CLASSES, sha256="of these specks")


def trainer(folder: Path, dataset: Dataset, config: TrainConfig = CONFIG, resume: bool = False) -> Trainer:
    return Trainer(config, dataset, Run(folder, resume=resume, progress=False))


def trained(folder: Path, dataset: Dataset, config: TrainConfig = CONFIG) -> Path:
    run = trainer(folder, dataset, config)
    assert run.run()
    return run.model_file


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("whole"), dataset).parent


def copy_of(run: Path, folder: Path) -> Path:
    """A run's files, to be spoilt."""
    return shutil.copytree(run, folder / "copy")


class Stopped(Trainer):
    """A run that is sent a signal while it takes a step, as Ctrl-C would."""

    number, at_step = signal.SIGINT, 5

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if step == self.at_step - 1:
            signal.raise_signal(self.number)
        return super().batch(step)


# What it learns.


def test_the_loss_falls_on_real_digits(mnist_sample: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Guessing nothing costs 1; these digits, at half resolution, soon cost less than half of it."""
    padded = np.pad(mnist_sample["x_train"].astype(np.float64), ((0, 0), (2, 2), (2, 2)))
    halved = padded.reshape(400, 16, 2, 16, 2).mean(axis=(2, 4)).round().astype(np.uint8)
    digits = Dataset("digits", halved[:, None], mnist_sample["y_train"], sha256="")
    model = UNetConfig(image_size=16, features=8, num_classes=10)
    config = dataclasses.replace(CONFIG, model=model, schedule=NoiseSchedule(400), batch_size=20, learning_rate=4e-3)
    run = trainer(tmp_path, digits, config)
    losses = [run.train_step()[0] for _ in range(40)]
    assert np.mean(losses[:3]) > 0.9
    assert np.mean(losses[-10:]) < 0.5


def test_the_exported_weights_are_the_averaged_ones(dataset: Dataset, whole: Path, tmp_path: Path) -> None:
    run = trainer(copy_of(whole, tmp_path), dataset, resume=True)
    exported, config, metadata = checkpoint.load_model(whole / "model.safetensors")
    assert config == CONFIG
    assert metadata["dataset_sha256"] == "of these specks"
    assert (metadata["step"], metadata["total_steps"]) == ("8", "8")
    for name, tensor in exported.state_dict().items():
        assert torch.equal(tensor, run.average.module.state_dict()[name])
    last = dict(run.network.named_parameters())
    assert any(not torch.equal(parameter, last[name]) for name, parameter in exported.named_parameters())


def test_the_average_follows_its_formula() -> None:
    """a ← d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)), by hand; counts are copied."""
    update, average, count = ema_update(0.9), torch.tensor([5.0]), torch.tensor([0])
    expected = 5.0
    for n in range(1, 200):
        weight = math.sin(n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
        update([average], [torch.tensor([weight])], n)
        update([count], [torch.tensor([n])], n)
    assert float(average) == pytest.approx(expected, rel=1e-5)
    assert int(count) == 199


@pytest.mark.parametrize(
    ("dataset", "epochs", "train_steps"), [("mnist", 10, 400), ("fashion-mnist", 10, 400), ("cifar10", 20, 1000)]
)
def test_the_papers_run_of_each_data_set(dataset: str, epochs: int, train_steps: int) -> None:
    config = PRESETS["paper"](dataset, UNetConfig())
    schedule = config.schedule
    assert (config.epochs, config.batch_size, schedule.num_train_timesteps) == (epochs, 256, train_steps)
    assert (schedule.beta_start, schedule.beta_end, schedule.beta_schedule) == (1e-4, 0.02, "linear")
    assert config.model.features >= 64


def test_the_learning_rate_rises_evenly_and_falls_along_half_a_cosine() -> None:
    factors = [learning_rate_factor(step, 4, 12) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])
    assert learning_rate_factor(12, 4, 12) == pytest.approx(0)


# What a step is made from.


def test_an_epoch_shows_every_image_once_and_in_another_order_than_the_next(dataset: Dataset, tmp_path: Path) -> None:
    run = trainer(tmp_path, dataset)
    assert (run.steps_per_epoch, run.total_steps) == (4, TOTAL_STEPS)
    epochs = [torch.cat([run.batch(step)[0] for step in range(first, first + 4)]) for first in (0, 4)]
    whole = {image.tobytes() for image in dataset.images}
    for epoch in epochs:
        shown = {image.numpy().tobytes() for image in ((epoch + 1) * 127.5).round().to(torch.uint8)}
        assert len(shown) == 40
        assert shown < whole
    assert not torch.equal(epochs[0], epochs[1])


def test_images_keep_their_labels_and_a_tenth_is_dropped(mnist_sample: dict[str, np.ndarray], tmp_path: Path) -> None:
    images, labels = mnist_sample["x_train"][:, None], mnist_sample["y_train"]
    label_of = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    config = dataclasses.replace(CONFIG, model=UNetConfig(features=8), batch_size=400, epochs=10)
    run = trainer(tmp_path, Dataset("digits", images, labels, ""), config)
    dropped, times = 0, []
    for step in range(10):
        original, given, timesteps, noise = run.batch(step)
        assert (float(original.min()), float(original.max())) == (-1, 1)
        shown = ((original + 1) * 127.5).round().to(torch.uint8).numpy()
        kept = [
            (label_of[image.tobytes()], int(label)) for image, label in zip(shown, given, strict=True) if label < 10
        ]
        assert all(true == label for true, label in kept)
        dropped += len(given) - len(kept)
        times.append(timesteps)
        assert noise.shape == original.shape
        assert abs(float(noise.mean())) < 0.01
        assert abs(float(noise.std()) - 1) < 0.01
    assert abs(dropped - 400) < 4 * math.sqrt(4000 * 0.1 * 0.9)
    counts = torch.bincount(torch.cat(times), minlength=20)
    assert len(counts) == 20
    assert float((counts - 200).abs().max()) < 4.5 * math.sqrt(200)


def test_a_step_draws_from_its_own_stream() -> None:
    """The random numbers of a run are part of what a seed means; these are the first of some."""
    streams = [(0, "step", 0), (0, "step", 1), (1, "step", 0), (0, "epoch", 0)]
    drawn = [tuple(torch.randint(2**31, (4,), generator=generator(*stream)).tolist()) for stream in streams]
    assert len(set(drawn)) == 4
    assert drawn[0] == tuple(torch.randint(2**31, (4,), generator=generator(0, "step", 0)).tolist())


# One seed, one result.


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    dataset: Dataset, whole: Path, tmp_path: Path
) -> None:
    again = trained(tmp_path / "again", dataset)
    other = trained(tmp_path / "other", dataset, dataclasses.replace(CONFIG, seed=1))
    assert again.read_bytes() == (whole / "model.safetensors").read_bytes()
    mine, others = (checkpoint.read(path)[0]["conv_in.conv1.0.weight"] for path in (again, other))
    assert not torch.allclose(mine, others, atol=0.01)


@pytest.mark.parametrize(
    ("number", "at_step"), [(signal.SIGINT, 1), (signal.SIGINT, 3), (signal.SIGTERM, 4)], ids=["first", "within", "end"]
)
def test_stopped_and_resumed_gives_the_same_bytes(
    dataset: Dataset,
    whole: Path,
    tmp_path: Path,
    number: signal.Signals,
    at_step: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """At the first step, within an epoch, and at the end of one; the state is that of the step which is named."""
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run = Stopped(CONFIG, dataset, Run(tmp_path, progress=False))
    run.number, run.at_step = number, at_step
    assert not run.run()
    assert f"interrupted at step {at_step} of 8; continue with --resume" in capfd.readouterr().err
    _, metadata = checkpoint.read(run.state_file)
    assert metadata["step"] == str(at_step)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers

    resumed = trainer(tmp_path, dataset, resume=True)
    assert resumed.step == at_step
    assert resumed.run()
    assert f"resumed at step {at_step} of 8" in capfd.readouterr().err
    assert resumed.model_file.read_bytes() == (whole / "model.safetensors").read_bytes()
    assert resumed.state_file.read_bytes() == (whole / "state.safetensors").read_bytes()


def test_a_second_interruption_acts_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_resuming_a_finished_run_changes_nothing(dataset: Dataset, whole: Path, tmp_path: Path) -> None:
    again = trainer(copy_of(whole, tmp_path), dataset, resume=True)
    assert again.run()
    assert again.model_file.read_bytes() == (whole / "model.safetensors").read_bytes()


def test_resume_without_a_state_begins(dataset: Dataset, tmp_path: Path) -> None:
    assert trainer(tmp_path, dataset, resume=True).step == 0


# What one sees of it.


def test_curves_and_sheets_of_samples(dataset: Dataset, tmp_path: Path) -> None:
    """Of a run that was stopped in the middle: every step once, in order, and a sheet for each epoch."""
    run = Stopped(CONFIG, dataset, Run(tmp_path, progress=False))
    run.run()
    trainer(tmp_path, dataset, resume=True).run()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [scalar.step for scalar in events.Scalars(name)] == list(range(1, TOTAL_STEPS + 1))
    expected = [CONFIG.learning_rate * learning_rate_factor(step, 4, TOTAL_STEPS) for step in range(TOTAL_STEPS)]
    assert [scalar.value for scalar in events.Scalars("learning_rate")] == pytest.approx(expected)
    sheets = sorted((tmp_path / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-000004.png", "step-000008.png"]
    with Image.open(sheets[-1]) as picture:
        assert picture.size == (PREVIEWS_PER_CLASS * SIZE, CLASSES * SIZE)


# What it refuses.


def refused(error: type[TrainingError], *parts: object, **arguments: object) -> None:
    with pytest.raises(error) as caught:
        trainer(**arguments)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def test_a_run_is_not_overwritten(dataset: Dataset, whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    refused(OutputError, folder, "holds a run already", "--resume", "--out", folder=folder, dataset=dataset)
    (folder / "state.safetensors").unlink()  # somebody kept the model alone
    refused(OutputError, "holds a run already", folder=folder, dataset=dataset)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_state_of_another_run_is_refused(dataset: Dataset, whole: Path, tmp_path: Path) -> None:
    state = copy_of(whole, tmp_path) / "state.safetensors"
    other_model = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, features=16), epochs=5)
    other_data = dataclasses.replace(dataset, sha256="of others")
    arguments = {"folder": state.parent, "dataset": dataset, "resume": True}
    message = "belongs to another run (features 8 there and 16 here, epochs 2 there and 5 here)"
    refused(CheckpointError, state, message, **arguments, config=other_model)
    refused(CheckpointError, state, "(other images or labels)", **(arguments | {"dataset": other_data}))
    assert state.read_bytes() == (whole / "state.safetensors").read_bytes()


def test_a_damaged_state_is_refused(dataset: Dataset, whole: Path, tmp_path: Path) -> None:
    state = copy_of(whole, tmp_path) / "state.safetensors"
    tensors, metadata = checkpoint.read(state)
    content = state.read_bytes()
    arguments = {"folder": state.parent, "dataset": dataset, "resume": True}

    state.write_bytes(content[: len(content) // 2])
    refused(CheckpointError, state, "damaged", **arguments)
    for name in ("network.conv_in.conv1.0.weight", "average.n_averaged", "optimizer.exp_avg.conv_in.conv1.0.weight"):
        checkpoint.write(state, {key: value for key, value in tensors.items() if key != name}, metadata)
        refused(CheckpointError, state, "is not the state of a run", **arguments)
    checkpoint.write(state, tensors, {key: value for key, value in metadata.items() if key != "step"})
    refused(CheckpointError, state, "is not the state of a run", **arguments)


def test_a_batch_larger_than_the_data_set_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, batch_size=44)
    refused(TrainingError, "batch_size 44 exceeds the 43 images", folder=tmp_path, dataset=dataset, config=config)


def test_a_folder_that_cannot_be_written_to_is_found_before_training(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(OutputError, "cannot be written to", "--out", folder=tmp_path / "file" / "run", dataset=dataset)


def test_divergence_ends_the_run_and_keeps_its_last_state(dataset: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=1e30, warmup_steps=0)
    run = trainer(tmp_path, dataset, config)
    run.train_step()
    run.save()
    before = run.state_file.read_bytes()
    with pytest.raises(TrainingError, match=r"the gradient is \S+ at step \d+, .*; choose a lower --learning-rate"):
        run.run()
    assert run.state_file.read_bytes() == before
