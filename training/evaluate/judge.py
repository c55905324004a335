"""The classifier that judges, and what it finds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.classifier.agreement import Agreement, Int64
from training.classifier.checkpoint import load_classifier
from training.classifier.config import ClassifierConfig
from training.classifier.model import Classifier
from training.classifier.train import agreement_on, check_fits, read
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate.draw import Bundle
from training.evaluate.samples import Samples


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

    def read(self, samples: Samples) -> Int64:
        """What it takes each image for, int64 (N,)."""
        return read(self.model, samples.images)


@dataclass(frozen=True)
class Verdict:
    """What a judge found, of the samples and of itself."""

    judge: Judge
    samples: Samples
    read_as: Int64
    tested: Agreement

    @property
    def agreement(self) -> Agreement:
        return Agreement.between(self.samples.labels, self.read_as, self.judge.config.network.num_classes)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": {"count": len(self.samples.images), "sha256": self.samples.sha256},
            "agreement": self.agreement.to_json(),
            "classifier": {
                "sha256": self.judge.sha256,
                "dataset": self.judge.config.dataset,
                "test": self.tested.to_json(),
            },
        }


def load_judge(file: Path, dataset: Dataset) -> Judge:
    """Open a classifier that was trained for ``dataset``.

    Raises:
        CheckpointError: it cannot be opened.
        TrainingError: it was trained for another data set.
    """
    model, config = load_classifier(file)
    if config.dataset != dataset.name:
        raise TrainingError(f"{file} was trained on {config.dataset}; give a classifier for {dataset.name}")
    check_fits(config.network, dataset)
    return Judge(file, hashlib.sha256(file.read_bytes()).hexdigest(), model, config)


def judge_samples(judge: Judge, samples: Samples, real_test: Dataset) -> Verdict:
    """Let the judge read the samples, and real images, so that one knows how far to trust it."""
    return Verdict(judge, samples, judge.read(samples), agreement_on(judge.model, real_test))
