"""Drawing lists of prompts by the torch-free runtime, in a process of its own: what people get is what is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training import atomic
from training.arrays import UInt8
from training.errors import TrainingError
from training.stable_diffusion.pocket.config import IMAGE_SIZE

BATCH_SIZE = 8  # pictures at once, which changes none of them


@dataclass(frozen=True)
class Drawer:
    """A bundle and the one setting that it is judged with.

    Attributes:
        bundle: its folder.
        seed: of the first picture of every list; the next has the next.
        options: further words of the runtime's command line, such as ``--steps=20``.
    """

    bundle: Path
    seed: int
    options: tuple[str, ...] = ()

    def draw(self, lines: Sequence[Mapping[str, Any]], folder: Path) -> UInt8:
        """Draw a list into a folder; what an earlier call has drawn there is not drawn again.

        Args:
            lines: each what a line of ``--prompts FILE.jsonl`` may say, and one picture.
            folder: made if need be; holds the list and the pictures afterwards.

        Returns:
            The pictures, uint8 (N, 64, 64, 3).

        Raises:
            TrainingError: the runtime did not draw them all; it has said why.
        """
        atomic.make_folder(folder)
        prompts, pictures = folder / "prompts.jsonl", folder / "pictures"
        sized = [{**line, "width": IMAGE_SIZE, "height": IMAGE_SIZE} for line in lines]
        atomic.write(prompts, "".join(f"{json.dumps(line)}\n" for line in sized).encode())
        words = [f"--model={self.bundle}", f"--prompts={prompts}", f"--output={pictures}", f"--seed={self.seed}"]
        command = [sys.executable, "-m", "runtime", *words, f"--batch-size={BATCH_SIZE}", *self.options]
        status = subprocess.run(command).returncode
        if status:
            raise TrainingError(f"the runtime has not drawn all of {prompts} (exit status {status})")
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in drawn_files(pictures, len(lines))])


def drawn_files(folder: Path, count: int) -> list[Path]:
    """The files of a folder's index, in the order of the list.

    Raises:
        TrainingError: the index has others than these.
    """
    _, *records = map(json.loads, (folder / "index.jsonl").read_text("utf-8").splitlines())
    numbered = {record["number"]: folder / record["file"] for record in records}
    if sorted(numbered) != list(range(1, count + 1)):
        raise TrainingError(f"{folder} holds {len(numbered)} pictures of another list of prompts; remove it")
    return [numbered[number] for number in range(1, count + 1)]
