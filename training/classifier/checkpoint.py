"""Checkpoints of classifiers: ``model.safetensors`` with configuration and test accuracy in its metadata, and before
there is one ``state.safetensors``, which a run resumes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training import checkpoint
from training.classifier.config import ClassifierConfig
from training.classifier.model import Classifier

CLASSIFIER = checkpoint.Kind(
    format="diffusion-anywhere/classifier/2",
    noun="classifier checkpoint",
    command="python -m training classifier --dataset mnist --out {folder}",
)
STATE = replace(CLASSIFIER, format="diffusion-anywhere/classifier-state/1", noun="state of a classifier's training")


def save_classifier(path: Path, model: Classifier, config: ClassifierConfig, facts: dict[str, str]) -> None:
    """Write a classifier; ``facts`` join its configuration in the metadata.

    Raises:
        OutputError: it cannot be written.
    """
    checkpoint.write(path, CLASSIFIER, dict(model.state_dict()), {"config": config.to_json(), **facts})


def load_classifier(path: Path, dataset: str = "mnist") -> tuple[Classifier, ClassifierConfig]:
    """Open a classifier in evaluation mode, with the configuration it was trained with.

    Args:
        path: the checkpoint.
        dataset: as it is named on command lines; where there is no checkpoint, the message says how to make one of it.

    Raises:
        CheckpointError: not there, damaged, of another kind, or its tensors do not fit its configuration.
    """
    name = dataset.replace("{", "{{").replace("}", "}}")
    kind = replace(CLASSIFIER, command=f"python -m training classifier --dataset {name} --out {{folder}}")
    model, config, _ = checkpoint.open_model(
        path, kind, ClassifierConfig.from_json, lambda config: Classifier(config.network)
    )
    return model, config
