"""The real pictures that scenes are made of, sorted by what they show."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import data
from training.arrays import UInt8
from training.data import Dataset
from training.errors import DataError
from training.stable_diffusion.pocket.world import DIGITS, GARMENTS, KINDS, Split


@dataclass(frozen=True)
class Sources:
    """Grey pictures by kind of thing.

    Attributes:
        images: kind -> uint8 (N, 28, 28), things bright on black.
        sha256: of both data sets, for the record.
    """

    images: dict[str, UInt8]
    sha256: str

    @classmethod
    def from_datasets(cls, garments: Dataset, digits: Dataset) -> Sources:
        """Sort two data sets by kind.

        Raises:
            DataError: a kind has no picture.
        """
        images = {}
        for dataset, kinds in ((garments, GARMENTS), (digits, DIGITS)):
            for kind, label in kinds.items():
                images[kind] = dataset.images[dataset.labels == label, 0]
                if not len(images[kind]):
                    raise DataError(f"{dataset.name} holds no picture with label {label}, a {kind}")
        digest = hashlib.sha256(f"{garments.sha256} {digits.sha256}".encode()).hexdigest()
        return cls(images, digest)

    @classmethod
    def load(cls, split: Split, folder: Path | None = None) -> Sources:
        """Load Fashion-MNIST and MNIST, from ``folder`` or wherever ``training.data.load`` finds them."""
        return cls.from_datasets(data.load("fashion-mnist", split, folder), data.load("mnist", split, folder))

    def draw(self, kind: str, draws: np.random.Generator) -> UInt8:
        """A picture of this kind, uint8 (28, 28)."""
        images = self.images[kind]
        image: UInt8 = images[draws.integers(len(images))]
        return image

    @property
    def count(self) -> int:
        return sum(len(self.images[kind]) for kind in KINDS)
