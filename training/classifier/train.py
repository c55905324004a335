"""Training the classifier: interruptible, resumable, and repeatable from one seed.

All randomness comes from generators that are seeded with (seed, epoch) and (seed, step), so a resumed run sees exactly
what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training import checkpoint
from training.checkpoint import load_optimizer_tensors, one_line, optimizer_tensors
from training.classifier.augment import augment
from training.classifier.checkpoint import STATE
from training.classifier.config import ClassifierConfig
from training.classifier.model import Classifier
from training.data import Dataset
from training.errors import CheckpointError, TrainingError
from training.interrupt import StopRequest
from training.precision import autocast
from training.randomness import generator
from training.report import Reporter
from training.run import Run, load_prefixed, prefixed, refuse_another

WARM_SHARE, FIRST_FACTOR, LAST_FACTOR = 0.3, 1 / 25, 1 / 25e4  # of the one-cycle schedule


def one_cycle_factor(step: int, total_steps: int) -> float:
    """The rate's share of its peak: up along half a cosine for 30 % of the steps and down along another.

    Smith & Topin 2018, "Super-convergence", in the form of torch's ``OneCycleLR``, whose state need not be saved so.
    """
    peak, last = WARM_SHARE * total_steps - 1, total_steps - 1
    if step <= peak:
        begin, end, share = FIRST_FACTOR, 1.0, step / peak if peak else 1.0
    else:
        begin, end, share = 1.0, LAST_FACTOR, (step - peak) / (last - peak)
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


class Trainer:
    """A classifier in training, and its steps.

    Args:
        config: what fixes the result.
        dataset: the training set.
    """

    def __init__(self, config: ClassifierConfig, dataset: Dataset) -> None:
        self.config, self.dataset_sha256 = config, dataset.sha256
        self.images = torch.from_numpy(np.array(dataset.images))
        self.labels = torch.from_numpy(np.array(dataset.labels)).long()
        self.steps_per_epoch = -(-len(self.images) // config.batch_size)
        self.total_steps, self.step = config.epochs * self.steps_per_epoch, 0
        torch.manual_seed(config.seed)
        model = Classifier(config.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
        self.model: Classifier = model
        self.names = [name for name, _ in self.model.named_parameters()]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next step's images in [-1, 1], float32 (B, C, H, W), and labels, (B,)."""
        config = self.config
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self.images), generator=generator(config.seed, "epoch", epoch))
        chosen = order[position * config.batch_size :][: config.batch_size]
        images = augment(self.images[chosen].float(), config, generator(config.seed, "augment", self.step))
        return images / 127.5 - 1, self.labels[chosen]

    def train_step(self) -> tuple[float, float]:
        """One step; returns the loss and the learning rate.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        config = self.config
        rate = config.learning_rate * one_cycle_factor(self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        images, labels = self.batch()
        with autocast(images.device, config.mixed_precision):
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {self.step}; choose a lower --learning-rate")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.item(), rate

    def save(self, run: Run) -> None:
        """Write the state to resume from.

        Raises:
            OutputError: it cannot be written.
        """
        tensors = prefixed("network.", self.model) | optimizer_tensors(self.optimizer, self.names)
        facts = {"config": self.config.to_json(), "dataset_sha256": self.dataset_sha256, "step": str(self.step)}
        checkpoint.write(run.state_file, STATE, tensors, facts)

    def load(self, run: Run) -> None:
        """Continue from a run's state.

        Raises:
            CheckpointError: the state is damaged, or of a run with another configuration or data set.
        """
        tensors, metadata = checkpoint.read(run.state_file, STATE)
        try:
            refuse_another(run.state_file, metadata, self.config, self.dataset_sha256)
            load_prefixed("network.", self.model, tensors)
            load_optimizer_tensors(self.optimizer, self.names, tensors)
            self.step = int(metadata["step"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{run.state_file} is not the state of a run: {one_line(error)}") from error


def train(trainer: Trainer, run: Run) -> bool:
    """Train to the end: True; or until asked to stop: False. Either way the last whole step is saved."""
    last_save = time.monotonic()
    with StopRequest() as stop, Reporter(run.folder, trainer.step, trainer.total_steps, True, run.progress) as reporter:
        while trainer.step < trainer.total_steps and not stop.requested:
            loss, rate = trainer.train_step()
            reporter.report(loss, learning_rate=rate)
            if trainer.step % trainer.steps_per_epoch == 0:
                reporter.milestone()
            if time.monotonic() - last_save > run.save_every:
                trainer.save(run)
                last_save = time.monotonic()
        trainer.save(run)
        if trainer.step < trainer.total_steps:
            reporter.say(f"interrupted at step {trainer.step} of {trainer.total_steps}; continue with --resume")
    return trainer.step == trainer.total_steps
