"""The classifier that judges."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.arrays import UInt8
from training.classifier.agreement import Agreement
from training.classifier.checkpoint import load_classifier
from training.classifier.config import ClassifierConfig
from training.classifier.model import Classifier
from training.classifier.reading import Progress, Reading, check_fits, read
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate.draw import Bundle


@dataclass(frozen=True)
class Judge:
    """A classifier, with the SHA-256 of its file for the record."""

    file: Path
    sha256: str
    model: Classifier
    config: ClassifierConfig

    def check(self, bundle: Bundle) -> None:
        """Find out before anything is drawn whether this is the judge for it.

        Raises:
            TrainingError: the bundle draws other shapes or classes, or was trained on another data set.
        """
        network = self.config.network
        for what, theirs, mine in (
            ("images of shape", bundle.image_shape, network.image_shape),
            ("a number of classes of", bundle.num_classes, network.num_classes),
            ("the data set", bundle.dataset or self.config.dataset, self.config.dataset),
        ):
            if theirs != mine:
                raise TrainingError(f"{bundle.folder} draws {what} {theirs}, but {self.file} is for {mine}")

    def read(self, images: UInt8, progress: Progress = lambda done: None) -> Reading:
        """What it makes of images, uint8 (N, C, H, W)."""
        return read(self.model, images, progress)

    def to_json(self, tested: Agreement) -> dict[str, Any]:
        """For the record, with how well it reads real images."""
        return {"sha256": self.sha256, "dataset": self.config.dataset, "test": tested.to_json()}


def load_judge(file: Path, dataset: Dataset, named: str) -> Judge:
    """Open a classifier that was trained for ``dataset``, which is ``named`` so on the command line.

    Raises:
        CheckpointError: it cannot be opened.
        TrainingError: it was trained for another data set.
    """
    model, config = load_classifier(file, named)
    if config.dataset != dataset.name:
        raise TrainingError(f"{file} was trained on {config.dataset}; give a classifier for {dataset.name}")
    check_fits(config.network, dataset)
    return Judge(file, hashlib.sha256(file.read_bytes()).hexdigest(), model, config)
