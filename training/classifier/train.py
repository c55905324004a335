"""Training the classifier and letting it read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.arrays import UInt8
from training.classifier.agreement import Agreement, Int64
from training.classifier.augment import augment
from training.classifier.config import ClassifierConfig, NetworkConfig
from training.classifier.model import Classifier
from training.data import Dataset
from training.errors import TrainingError

READING_BATCH = 500

# Called after every step with the step, how many there are, and the loss.
Progress = Callable[[int, int, float], None]


def train(config: ClassifierConfig, dataset: Dataset, progress: Progress) -> Classifier:
    """Train a classifier; the same configuration and images give the same weights.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    torch.manual_seed(config.seed)
    model = Classifier(config.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
    draws = torch.Generator().manual_seed(config.seed)
    images, labels = torch.from_numpy(np.array(dataset.images)), torch.from_numpy(np.array(dataset.labels)).long()
    total = config.epochs * -(-len(images) // config.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=max(2, total))
    model.train()
    step = 0
    for _ in range(config.epochs):
        for chosen in torch.randperm(len(images), generator=draws).split(config.batch_size):
            sample = augment(images[chosen].float(), config, draws) / 127.5 - 1
            loss = F.cross_entropy(model(sample), labels[chosen])
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is {loss.item()} at step {step}; choose a lower --learning-rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            progress(step, total, loss.item())
    trained: Classifier = model.eval()
    return trained


@torch.no_grad()
def read(model: Classifier, images: UInt8) -> Int64:
    """The most likely class of each image.

    Args:
        model: in evaluation mode.
        images: uint8 (N, C, H, W).

    Returns:
        int64 (N,).
    """
    classes: list[Tensor] = []
    for batch in torch.from_numpy(np.array(images)).split(READING_BATCH):
        classes.append(model(batch.float() / 127.5 - 1).argmax(dim=1))
    return torch.cat(classes).numpy()


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


def agreement_on(model: Classifier, dataset: Dataset) -> Agreement:
    """How well a classifier reads real images, such as a test set that it was not trained on."""
    return Agreement.between(dataset.labels.astype(np.int64), read(model, dataset.images), model.config.num_classes)
