"""Training the class-conditional DDPM: interruptible, resumable, and repeatable from one seed.

All randomness of step k (which images, which timesteps, which noise, which labels are dropped) comes from generators seeded with
(seed, epoch) and (seed, k). Hence no random state has to be saved, a resumed run sees exactly what an uninterrupted one would
have seen, and every process of a distributed run can draw the whole batch's numbers and keep its own share: the result does not depend on
how many there are, but for batch normalisation, whose statistics are each process's own.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.ddpm import checkpoint
from training.ddpm.config import TrainConfig
from training.ddpm.data import Dataset
from training.ddpm.diffusion import training_loss
from training.ddpm.model import ClassConditionalUNet
from training.ddpm.sampler import guided, sample_ddim

PREVIEW_STEPS = 20
PREVIEW_GUIDANCE = 3.0
PREVIEWS_PER_CLASS = 4


@dataclass(frozen=True)
class Run:
    """Where and how a run keeps its files.

    Attributes:
        folder: gets ``state.safetensors``, ``model.safetensors``, ``samples/`` and TensorBoard's events.
        resume: continue from ``state.safetensors`` if there is one.
        save_every: seconds between two saves of the state.
        progress: draw a progress bar.
        stop_after: end (with the state saved) after so many steps in this process; for tests and for limits on time.
    """

    folder: Path
    resume: bool = False
    save_every: float = 180.0
    progress: bool = True
    stop_after: int | None = None


def generator(seed: int, kind: str, index: int) -> torch.Generator:
    """A CPU generator of its own for each (seed, kind, index): hashed, so that neighbours share nothing."""
    digest = hashlib.sha256(f"{seed}/{kind}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017, without restarts)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def ema_update(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Exponential moving average whose decay grows from 0.1, so that the random start is forgotten in a short run."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], num_averaged: Tensor | int) -> None:
        seen = float(num_averaged)
        weight = 1 - min(decay, (1 + seen) / (10 + seen))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average), weight)
            else:  # batch normalisation's count of batches
                average.copy_(value)

    return update


class Trainer:
    """One training run; ``run()`` ends it, or stops at Ctrl-C with everything saved."""

    def __init__(self, config: TrainConfig, dataset: Dataset, run: Run) -> None:
        self.config, self.run_options = config, run
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision)
        self.share = slice(
            self.accelerator.process_index * config.batch_size // self.accelerator.num_processes,
            (self.accelerator.process_index + 1) * config.batch_size // self.accelerator.num_processes,
        )
        self.images = torch.from_numpy(np.array(dataset.images))
        self.labels = torch.from_numpy(np.array(dataset.labels)).long()
        self.dataset_sha256 = dataset.sha256
        self.steps_per_epoch = max(1, len(self.images) // config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.step = 0

        torch.manual_seed(config.seed)
        network = ClassConditionalUNet(config.model).to(memory_format=torch.channels_last)
        self.names = [name for name, _ in network.named_parameters()]
        optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        self.average = AveragedModel(network, multi_avg_fn=ema_update(config.ema_decay), use_buffers=True)
        self.network = network
        self.optimizer = optimizer
        if run.resume and self.state_file.exists():
            self.load_state()
        self.average.to(self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)

    @property
    def state_file(self) -> Path:
        return self.run_options.folder / "state.safetensors"

    @property
    def model_file(self) -> Path:
        return self.run_options.folder / "model.safetensors"

    def metadata(self) -> dict[str, str]:
        return {
            "config": self.config.to_json(),
            "dataset_sha256": self.dataset_sha256,
            "step": str(self.step),
            "total_steps": str(self.total_steps),
        }

    def save(self) -> None:
        """Write the state to resume from, and the averaged model as it stands."""
        if not self.accelerator.is_main_process:
            return
        network = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        average = {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        optimizer = checkpoint.optimizer_tensors(self.optimizer, self.names)
        checkpoint.write(self.model_file, dict(self.average.module.state_dict()), self.metadata())
        checkpoint.write(self.state_file, network | average | optimizer, self.metadata())

    def load_state(self) -> None:
        """Continue from the run's own state.

        Raises:
            CheckpointError: the state is damaged, or of a run with another configuration or data set.
        """
        tensors, metadata = checkpoint.read(self.state_file)
        for key, mine in (("config", self.config.to_json()), ("dataset_sha256", self.dataset_sha256)):
            if metadata.get(key) != mine:
                raise checkpoint.CheckpointError(
                    f"{self.state_file} belongs to a run with another {key.split('_')[0]}; "
                    f"resume with the same options, or begin anew with another --out"
                )
        for prefix, module in (("network.", self.network), ("average.", self.average)):
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)
        checkpoint.load_optimizer_tensors(self.optimizer, self.names, tensors)
        self.step = int(metadata["step"])

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
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return float(self.accelerator.reduce(loss.detach(), "mean")), float(norm)

    def run(self) -> bool:
        """Train to the end; True when it was reached, False when stopped before."""
        last_save, begun_at = time.monotonic(), self.step
        with Reporter(self) as reporter:
            try:
                while self.step < self.total_steps:
                    loss, norm = self.train_step()
                    reporter.report(loss, norm)
                    if self.step % self.steps_per_epoch == 0:
                        reporter.preview()
                    if time.monotonic() - last_save > self.run_options.save_every:
                        self.save()
                        last_save = time.monotonic()
                    if self.run_options.stop_after and self.step - begun_at >= self.run_options.stop_after:
                        break
            except KeyboardInterrupt:
                # A half-taken step is lost with the process; the state on disk is always that between two steps.
                reporter.say(f"interrupted at step {self.step} of {self.total_steps}; continue with --resume")
                return False
            self.save()
        return self.step == self.total_steps

    def preview(self) -> Tensor:
        """A few images of each class drawn by the averaged weights, uint8 (C, H rows, W columns), a row for each class."""
        config = self.config
        labels = torch.arange(config.model.num_classes, device=self.accelerator.device).repeat_interleave(PREVIEWS_PER_CLASS)
        shape = (len(labels), config.model.in_channels, config.model.image_size, config.model.image_size)
        start = torch.randn(shape, generator=generator(config.seed, "preview", 0)).to(self.accelerator.device)
        network = self.average.module.eval()
        predict = guided(network, labels, config.model.num_classes, PREVIEW_GUIDANCE)
        train_steps = config.schedule.num_train_timesteps
        timesteps = sorted({round(t) for t in np.linspace(train_steps - 1, 0, min(PREVIEW_STEPS, train_steps))}, reverse=True)
        *_, images = sample_ddim(predict, config.schedule, start, timesteps)
        rows = images.unflatten(0, (config.model.num_classes, PREVIEWS_PER_CLASS))
        sheet = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        return ((sheet + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


class Reporter:
    """Progress bar, TensorBoard and sample sheets of one run, on the main process only."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.active = trainer.accelerator.is_main_process
        self.smooth: float | None = None

    def __enter__(self) -> Reporter:
        trainer = self.trainer
        if self.active:
            self.writer = SummaryWriter(str(trainer.run_options.folder), purge_step=trainer.step)
            hidden = not trainer.run_options.progress
            self.bar = tqdm(total=trainer.total_steps, initial=trainer.step, unit="step", smoothing=0.05, disable=hidden)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.active:
            self.bar.close()
            self.writer.close()

    def report(self, loss: float, norm: float) -> None:
        if not self.active:
            return
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
        step, rate = self.trainer.step, self.trainer.optimizer.param_groups[0]["lr"]
        for name, value in (("loss", loss), ("gradient_norm", norm), ("learning_rate", rate)):
            self.writer.add_scalar(name, value, step)
        self.bar.set_postfix(loss=f"{self.smooth:.4f}", refresh=False)
        self.bar.update()

    def preview(self) -> None:
        if not self.active:
            return
        sheet = self.trainer.preview()
        self.writer.add_image("samples", sheet, self.trainer.step)
        folder = self.trainer.run_options.folder / "samples"
        folder.mkdir(exist_ok=True)
        pixels = sheet.permute(1, 2, 0).squeeze(2).numpy()
        Image.fromarray(pixels).save(folder / f"step-{self.trainer.step:06d}.png")

    def say(self, text: str) -> None:
        if self.active:
            self.bar.write(text)

