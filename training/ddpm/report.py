"""What one sees of a run: progress bar, TensorBoard and sheets of samples, from the main process only."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training import atomic
from training.ddpm.config import TrainConfig
from training.ddpm.diffusion import Denoiser
from training.ddpm.sampler import guided, sample_ddim

PREVIEW_STEPS = 20
PREVIEW_GUIDANCE = 3.0
PREVIEWS_PER_CLASS = 4


class Reporter:
    """Reports the steps of one run; does nothing unless ``active``, and writes lines for a bar unless ``progress``."""

    def __init__(self, folder: Path, step: int, total_steps: int, active: bool, progress: bool) -> None:
        self.folder, self.step, self.total_steps = folder, step, total_steps
        self.active, self.progress = active, progress
        self.smooth: float | None = None

    def __enter__(self) -> Reporter:
        if self.active:
            self.writer = SummaryWriter(str(self.folder), purge_step=self.step + 1)
            self.bar = tqdm(
                total=self.total_steps, initial=self.step, unit="step", smoothing=0.05, disable=not self.progress
            )
            if self.step:
                self.say(f"resumed at step {self.step} of {self.total_steps}")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.active:
            self.bar.close()
            self.writer.close()

    def report(self, loss: float, norm: float, learning_rate: float) -> None:
        """One more step was taken."""
        self.step += 1
        if not self.active:
            return
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
        for name, value in (("loss", loss), ("gradient_norm", norm), ("learning_rate", learning_rate)):
            self.writer.add_scalar(name, value, self.step)
        self.bar.set_postfix(loss=f"{self.smooth:.4f}", refresh=False)
        self.bar.update()

    def preview(self, network: Denoiser, config: TrainConfig, start: Tensor) -> None:
        """Draw a sheet of samples, for TensorBoard and as ``samples/step-N.png``."""
        if not self.active:
            return
        sheet = preview_sheet(network, config, start)
        self.writer.add_image("samples", sheet, self.step)
        encoded = io.BytesIO()
        Image.fromarray(sheet.permute(1, 2, 0).squeeze(2).numpy()).save(encoded, "PNG")
        atomic.write(self.folder / "samples" / f"step-{self.step:06d}.png", encoded.getvalue())
        if not self.progress:
            self.say(f"step {self.step} of {self.total_steps}, loss {self.smooth:.4f}")

    def say(self, text: str) -> None:
        if self.active:
            self.bar.write(text, file=sys.stderr)


def preview_sheet(network: Denoiser, config: TrainConfig, start: Tensor) -> Tensor:
    """A few images of each class, a row for each: uint8 (C, H rows, W columns).

    Args:
        network: the averaged weights, in evaluation mode.
        config: what they were trained with.
        start: standard normal, (K PREVIEWS_PER_CLASS, C, H, W), on the network's device.
    """
    classes = config.model.num_classes
    labels = torch.arange(classes, device=start.device).repeat_interleave(PREVIEWS_PER_CLASS)
    predict = guided(network, labels, classes, PREVIEW_GUIDANCE)
    last = config.schedule.num_train_timesteps - 1
    timesteps = sorted({round(t) for t in np.linspace(last, 0, min(PREVIEW_STEPS, last + 1))}, reverse=True)
    *_, images = sample_ddim(predict, config.schedule, start, timesteps)
    _, channels, height, width = images.shape
    rows = images.reshape(classes, PREVIEWS_PER_CLASS, channels, height, width)
    sheet = rows.permute(2, 0, 3, 1, 4).reshape(channels, classes * height, PREVIEWS_PER_CLASS * width)
    return ((sheet + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
