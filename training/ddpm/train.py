"""Training the class-conditional DDPM: interruptible, resumable, and repeatable from one seed.

All randomness of step k (which images, which timesteps, which noise, which labels are dropped) comes from generators
seeded with (seed, epoch) and (seed, k). Hence no random state has to be saved, a resumed run sees exactly what an
uninterrupted one would have seen, and every process of a distributed run can draw the whole batch's numbers and keep
its own share: the result does not depend on how many there are, but for batch normalisation, whose statistics are each
process's own.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from training import atomic
from training.averaging import ema_update
from training.checkpoint import load_optimizer_tensors, one_line, optimizer_tensors
from training.data import Dataset
from training.ddpm import checkpoint
from training.ddpm.config import TrainConfig
from training.ddpm.diffusion import training_loss
from training.ddpm.model import ClassConditionalUNet
from training.ddpm.preview import PREVIEWS_PER_CLASS, preview_sheet
from training.errors import CheckpointError, TrainingError
from training.interrupt import StopRequest
from training.randomness import generator
from training.report import Reporter
from training.run import Run, load_prefixed, prefixed, refuse_another


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017, without restarts)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """One training run; ``run()`` ends it, or stops at Ctrl-C with everything saved.

    Raises:
        OutputError: the run's folder cannot be written to, or holds a run and ``resume`` was not asked for.
        CheckpointError: the state to resume from is damaged, or of a run with another configuration or data set.
        TrainingError: the batch size fits neither the data set nor the number of processes.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, run: Run) -> None:
        self.config, self.run_options = config, run
        self.accelerator = start_accelerator(config.mixed_precision)
        run.refuse_to_overwrite()
        self.share = self.share_of_batch(len(dataset.images))
        atomic.make_folder(run.folder)
        self.images = torch.from_numpy(np.array(dataset.images))  # copied, since torch wants arrays it may write to
        self.labels = torch.from_numpy(np.array(dataset.labels)).long()
        self.dataset_sha256, self.class_names = dataset.sha256, dataset.class_names
        self.steps_per_epoch = len(self.images) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.step = 0

        torch.manual_seed(config.seed)
        self.network = channels_last(ClassConditionalUNet(config.model))
        self.names = [name for name, _ in self.network.named_parameters()]
        optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.optimizer = optimizer
        self.average = AveragedModel(self.network, multi_avg_fn=ema_update(config.ema_decay), use_buffers=True)
        if run.resume and self.state_file.exists():
            self.load_state()
        self.average.to(self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(self.network, optimizer)

    def share_of_batch(self, images: int) -> slice:
        """Which part of each batch is this process's."""
        batch_size, processes = self.config.batch_size, self.accelerator.num_processes
        if batch_size > images:
            raise TrainingError(
                f"batch_size {batch_size} exceeds the {images} images of the data set; choose a smaller one"
            )
        if batch_size % processes:
            raise TrainingError(
                f"batch_size {batch_size} cannot be shared equally by {processes} processes; choose a multiple"
            )
        share = batch_size // processes
        return slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)

    @property
    def state_file(self) -> Path:
        return self.run_options.state_file

    @property
    def model_file(self) -> Path:
        return self.run_options.model_file

    def metadata(self) -> dict[str, str]:
        return {
            "config": self.config.to_json(),
            "dataset_sha256": self.dataset_sha256,
            "class_names": json.dumps(self.class_names),
            "step": str(self.step),
            "total_steps": str(self.total_steps),
        }

    def save(self) -> None:
        """Write the state to resume from, and the averaged model as it stands."""
        if not self.accelerator.is_main_process:
            return
        networks = prefixed("network.", self.network) | prefixed("average.", self.average)
        optimizer = optimizer_tensors(self.optimizer, self.names)
        checkpoint.write(self.model_file, dict(self.average.module.state_dict()), self.metadata())
        checkpoint.write(self.state_file, networks | optimizer, self.metadata())

    def load_state(self) -> None:
        """Continue from the run's own state.

        Raises:
            CheckpointError: the state is damaged, or of a run with another configuration or data set.
        """
        tensors, metadata = checkpoint.read(self.state_file)
        try:
            refuse_another(self.state_file, metadata, self.config, self.dataset_sha256)
            load_prefixed("network.", self.network, tensors)
            load_prefixed("average.", self.average, tensors)
            load_optimizer_tensors(self.optimizer, self.names, tensors)
            self.step = int(metadata["step"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.state_file} is not the state of a run: {one_line(error)}") from error

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This process's share of step ``step``: images in [-1, 1], labels (some dropped), timesteps and noise."""
        config, device = self.config, self.accelerator.device
        epoch, position = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(self.images), generator=generator(config.seed, "epoch", epoch))
        chosen = order[position * config.batch_size :][: config.batch_size]
        draws = generator(config.seed, "step", step)
        original = self.images[chosen].float() / 127.5 - 1
        timesteps = torch.randint(config.schedule.num_train_timesteps, (len(chosen),), generator=draws)
        noise = torch.randn(original.shape, generator=draws)
        dropped = torch.rand(len(chosen), generator=draws) < config.label_dropout
        labels = torch.where(dropped, config.model.num_classes, self.labels[chosen])
        mine = [tensor[self.share].to(device) for tensor in (original, labels, timesteps, noise)]
        return mine[0], mine[1], mine[2], mine[3]

    def train_step(self) -> tuple[float, float]:
        """One step; returns the loss (mean over processes) and the norm of the gradient."""
        original, labels, timesteps, noise = self.batch(self.step)
        factor = learning_rate_factor(self.step, self.config.warmup_steps, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        self.model.train()
        with self.accelerator.autocast():
            loss = training_loss(self.model, self.config.schedule, original, labels, timesteps, noise)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        if not math.isfinite(norm):  # nor would the weights be, from here on; the gradient is the same in every process
            raise TrainingError(
                f"the gradient is {norm} at step {self.step}, loss {loss.item()}; choose a lower --learning-rate"
            )
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return float(self.accelerator.reduce(loss.detach(), "mean")), norm

    def run(self) -> bool:
        """Train to the end: True; or until asked to stop: False. Either way the last whole step is saved."""
        run, last_save = self.run_options, time.monotonic()
        main = self.accelerator.is_main_process
        with StopRequest() as stop, Reporter(run.folder, self.step, self.total_steps, main, run.progress) as reporter:
            while self.step < self.total_steps:
                loss, norm = self.train_step()
                rate = self.optimizer.param_groups[0]["lr"]
                reporter.report(loss, gradient_norm=norm, learning_rate=rate)
                if self.step % self.steps_per_epoch == 0:
                    self.preview(reporter)
                if self.requested_anywhere(stop):
                    break
                if time.monotonic() - last_save > run.save_every:
                    self.save()
                    last_save = time.monotonic()
            self.save()
            if self.step < self.total_steps:
                reporter.say(f"interrupted at step {self.step} of {self.total_steps}; continue with --resume")
        return self.step == self.total_steps

    def requested_anywhere(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop: all must leave at the same step, or the rest wait for one forever."""
        asked = torch.tensor(float(stop.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum") > 0)

    def preview(self, reporter: Reporter) -> None:
        """Let the averaged weights draw, from the same start every time."""
        if not reporter.active:
            return
        model = self.config.model
        shape = (model.num_classes * PREVIEWS_PER_CLASS, model.in_channels, model.image_size, model.image_size)
        start = torch.randn(shape, generator=generator(self.config.seed, "preview", 0)).to(self.accelerator.device)
        reporter.preview(preview_sheet(self.average.module.eval(), self.config, start))


def start_accelerator(mixed_precision: str) -> Accelerator:
    """The engine for as many processes as were started.

    Raises:
        TrainingError: it does not join them, and each would train, and write, on its own.
    """
    # Unless told that it is to be the CPU, it takes no notice of torchrun where there is no GPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed_precision)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise TrainingError(
            f"{started} processes were started, but cannot be joined on {accelerator.device}; start one"
        )
    return accelerator


def channels_last(network: ClassConditionalUNet) -> ClassConditionalUNet:
    """The layout in which convolutions are fastest, on processors and on GPUs."""
    moved: ClassConditionalUNet = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    return moved
