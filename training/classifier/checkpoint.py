"""Checkpoints of classifiers: one ``model.safetensors`` with configuration and test accuracy in its metadata."""

from __future__ import annotations

from pathlib import Path

import torch

from training import checkpoint
from training.classifier.config import ClassifierConfig
from training.classifier.model import Classifier
from training.errors import CheckpointError

CLASSIFIER = checkpoint.Kind(
    format="diffusion-anywhere/classifier/1",
    noun="classifier checkpoint",
    command="python -m training classifier --dataset mnist --out {folder}",
)


def save_classifier(path: Path, model: Classifier, config: ClassifierConfig, facts: dict[str, str]) -> None:
    """Write a classifier; ``facts`` join its configuration in the metadata.

    Raises:
        OutputError: it cannot be written.
    """
    checkpoint.write(path, CLASSIFIER, dict(model.state_dict()), {"config": config.to_json(), **facts})


def load_classifier(path: Path) -> tuple[Classifier, ClassifierConfig]:
    """Open a classifier in evaluation mode, with the configuration it was trained with.

    Raises:
        CheckpointError: not there, damaged, of another kind, or its tensors do not fit its configuration.
    """
    tensors, metadata = checkpoint.read(path, CLASSIFIER)
    try:
        config = ClassifierConfig.from_json(metadata["config"])
        with torch.device("meta"):
            model = Classifier(config.network)
        checkpoint.fill(model, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold the classifier that its configuration describes: {checkpoint.one_line(error)}"
        ) from error
    return model.eval(), config
