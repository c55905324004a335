"""What one sees of a run: progress bar, TensorBoard and sheets of samples, from the main process only."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training import atomic


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

    def report(self, loss: float, **values: float) -> None:
        """One more step was taken; ``values`` are what else is worth a curve."""
        self.step += 1
        if not self.active:
            return
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
        for name, value in {"loss": loss, **values}.items():
            self.writer.add_scalar(name, value, self.step)
        self.bar.set_postfix(loss=f"{self.smooth:.4f}", refresh=False)
        self.bar.update()

    def preview(self, sheet: Tensor) -> None:
        """Show a sheet of samples, uint8 (C, H, W), in TensorBoard and as ``samples/step-N.png``."""
        if not self.active:
            return
        self.writer.add_image("samples", sheet, self.step)
        encoded = io.BytesIO()
        Image.fromarray(sheet.permute(1, 2, 0).squeeze(2).numpy()).save(encoded, "PNG")
        atomic.write(self.folder / "samples" / f"step-{self.step:06d}.png", encoded.getvalue())
        self.milestone()

    def milestone(self) -> None:
        """A line about the step, where there is no bar to say it."""
        if not self.progress:
            self.say(f"step {self.step} of {self.total_steps}, loss {self.smooth:.4f}")

    def say(self, text: str) -> None:
        if self.active:
            self.bar.write(text, file=sys.stderr)
