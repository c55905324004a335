"""Letting a classifier read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from training.arrays import UInt8
from training.classifier.agreement import Agreement, Int64
from training.classifier.config import NetworkConfig
from training.classifier.model import Classifier
from training.data import Dataset
from training.errors import TrainingError

READING_BATCH = 500

# Is called with the number of images that were read since it was called last.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Reading:
    """What a classifier makes of images.

    Attributes:
        classes: the most likely class of each, int64 (N,).
        features: what that was decided from, the network's last values before its logits, float64 (N, 4F).
    """

    classes: Int64
    features: npt.NDArray[np.float64]


@torch.no_grad()
def read(model: Classifier, images: UInt8, progress: Progress = lambda done: None) -> Reading:
    """Read images, in float32 on every processor, so that features are comparable.

    Args:
        model: in evaluation mode.
        images: uint8 (N, C, H, W).
        progress: see above.
    """
    classes, features = [], []
    for begin in range(0, len(images), READING_BATCH):
        batch = torch.from_numpy(np.array(images[begin : begin + READING_BATCH]))
        embedding = model.embed(batch.float() / 127.5 - 1)
        classes.append(model.head(embedding).argmax(dim=1).numpy())
        features.append(embedding.double().numpy())
        progress(len(batch))
    return Reading(np.concatenate(classes), np.concatenate(features))


def check_fits(network: NetworkConfig, dataset: Dataset) -> None:
    """Find out before anything is computed whether a classifier can read a data set.

    Raises:
        TrainingError: images of another shape, or labels that it does not know.
    """
    if dataset.images.shape[1:] != network.image_shape:
        raise TrainingError(
            f"the classifier reads images of {network.image_shape} (channels, height, width), "
            f"but those of {dataset.name} are {dataset.images.shape[1:]}"
        )
    if dataset.num_classes > network.num_classes:
        raise TrainingError(
            f"the classifier knows {network.num_classes} classes, but {dataset.name} has {dataset.num_classes}"
        )


def agreement_on(model: Classifier, dataset: Dataset, progress: Progress = lambda done: None) -> Agreement:
    """How well a classifier reads real images, such as a test set that it was not trained on."""
    read_as = read(model, dataset.images, progress).classes
    return Agreement.between(dataset.labels.astype(np.int64), read_as, model.config.num_classes)
