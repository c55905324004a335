"""What each process of a distributed run sees; started by torchrun from ``test_training_distributed.py``.

Writes into the folder that it is given, for each process: its shares of some batches, the gradient of the first step
and the losses and weights of a short run; and the weights of a run in which all processes are given equal shares.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from training.data import Dataset
from training.ddpm.config import TrainConfig
from training.ddpm.model import UNetConfig
from training.ddpm.train import Trainer
from training.errors import TrainingError
from training.noise_schedule import NoiseSchedule
from training.run import Run

BATCH_SIZE, STEPS = 20, 24
CONFIG = TrainConfig(
    dataset="stripes",
    model=UNetConfig(image_size=8, features=8, num_classes=2),
    schedule=NoiseSchedule(20, 0.01, 0.3),
    epochs=6,
    batch_size=BATCH_SIZE,
    learning_rate=4e-3,
    warmup_steps=4,
    max_grad_norm=1e9,  # so that the gradient is not scaled before it is looked at
)


def stripes() -> Dataset:
    """Eighty images of stripes, across or down, of a random width: easy to learn something about."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, 80).astype(np.uint8)
    wide = draws.integers(1, 4, 80)
    across = np.stack([np.tile((np.arange(8) // width % 2 * 255).astype(np.uint8)[:, None], (1, 8)) for width in wide])
    images = np.where(labels[:, None, None] == 0, across, across.transpose(0, 2, 1))
    return Dataset("stripes", images[:, None], labels, sha256="stripes")


def trainer(folder: Path) -> Trainer:
    return Trainer(CONFIG, stripes(), Run(folder, progress=False))


def batches(run: Trainer) -> dict[str, Tensor]:
    names = ("images", "labels", "timesteps", "noise")
    drawn = {f"{name}.{step}": run.batch(step) for step in (0, 5) for name in names}
    return {key: parts[names.index(key.split(".")[0])].contiguous() for key, parts in drawn.items()}


def parameters(run: Trainer, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.detach().clone() for name, value in run.network.named_parameters()}


def gradients(run: Trainer) -> dict[str, Tensor]:
    found = {name: value.grad for name, value in run.network.named_parameters()}
    return {f"gradient.{name}": gradient.clone() for name, gradient in found.items() if gradient is not None}


def observe(folder: Path) -> None:
    run = trainer(folder / "run")
    rank = run.accelerator.process_index
    found = batches(run)
    losses = [run.train_step()[0]]
    found |= gradients(run)
    losses += [run.train_step()[0] for _ in range(STEPS - 1)]
    found |= parameters(run, "weight") | {"losses": torch.tensor(losses)}

    twins = equal_shares(folder / "twins")
    found |= parameters(twins, "twin")
    save_file({key: value.contiguous() for key, value in found.items()}, folder / f"process-{rank}.safetensors")

    uneven = dataclasses.replace(CONFIG, batch_size=BATCH_SIZE + 1)
    try:
        Trainer(uneven, stripes(), Run(folder / "uneven", progress=False))
    except TrainingError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))
    run.accelerator.end_training()


def equal_shares(folder: Path) -> Trainer:
    """Three steps in which every process is given the first half of the batch."""
    run = trainer(folder)
    run.share = slice(0, BATCH_SIZE // 2)
    for _ in range(3):
        run.train_step()
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    observe(Path(sys.argv[1]))
