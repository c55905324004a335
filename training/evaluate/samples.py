"""Drawn images and the labels they were asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.arrays import Expected, UInt8, read_npz
from training.classifier.agreement import Int64
from training.classifier.config import NetworkConfig
from training.errors import DataError


@dataclass(frozen=True)
class Samples:
    """Images uint8 (N, C, H, W) and the labels they were asked for, int64 (N,)."""

    images: UInt8
    labels: Int64

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def read_samples(path: Path, network: NetworkConfig) -> Samples:
    """Read what the runtime wrote: ``images`` uint8 (N, H, W, C) and ``labels`` (N,).

    Args:
        path: an ``.npz``.
        network: of the classifier that is to read them.

    Raises:
        DataError: missing, damaged, or not what the classifier reads.
    """
    wanted = {"images": Expected(), "labels": Expected(("uint8", "int32", "int64"))}
    images, labels = read_npz(path, wanted)
    channels, height, width = network.image_shape
    if images.shape[1:] != (height, width, channels) or labels.shape != images.shape[:1] or not len(images):
        raise DataError(
            f"{path}: images {images.shape} and labels {labels.shape}; "
            f"the classifier reads (N, {height}, {width}, {channels}), and (N,)"
        )
    if labels.min() < 0 or labels.max() >= network.num_classes:
        raise DataError(
            f"{path}: labels from {labels.min()} to {labels.max()}; the classifier reads 0 to {network.num_classes - 1}"
        )
    return Samples(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64))
