"""Data sets: fetched once, checked, and held in memory as uint8.

A published data set (``training/published.py``) comes as its official files, fetched into a cache by pooch, or read
from a folder that holds them (packed or not) or one ``.npz`` of the same name. Whatever the wrapping, what counts is
what is inside: each array is compared with its published content by SHA-256, so a truncated or altered file is noticed
before a day of training on it. One's own images come as an ``.npz``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.arrays import Array, Expected, UInt8, read_idx, read_npz
from training.cifar import read_cifar
from training.errors import DataError
from training.fetch import DATA_VARIABLE, check_published, none_found
from training.fetch import fetch as fetch_file
from training.published import PUBLISHED, CifarDataset, IdxDataset, IdxFile

__all__ = ["DATASETS", "DATA_VARIABLE", "DataError", "Dataset", "load"]


@dataclass(frozen=True)
class Dataset:
    """Images and what they show.

    Attributes:
        name: of the data set.
        images: uint8 (N, C, H, W).
        labels: uint8 (N,).
        sha256: of both, for the record.
        class_names: in the order of the labels; none where classes have no name but their number.
    """

    name: str
    images: UInt8
    labels: UInt8
    sha256: str
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1


DATASETS = tuple(PUBLISHED)
MOST_LABELS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which every command is told its data set."""
    parser.add_argument(
        "--dataset",
        required=True,
        help=f"{', '.join(DATASETS)}, or the path of an .npz with x_train, y_train, x_test, y_test",
    )
    parser.add_argument(
        "--data", type=Path, help=f"folder with the official files; else ${DATA_VARIABLE}, else they are fetched"
    )


def load(name: str, split: str = "train", folder: Path | None = None) -> Dataset:
    """Load a split of a known data set, or of one's own ``.npz``.

    Args:
        name: one of ``DATASETS``, or the path of an ``.npz`` with ``x_train``, ``y_train`` (and ``x_test``,
            ``y_test``): uint8 images (N, H, W) or (N, H, W, C), and integer labels (N,) from 0.
        split: "train" or "test".
        folder: where the official files lie; without it the folder named by ``$DIFFUSION_ANYWHERE_DATA``, and without
            that they are fetched into the user's cache.

    Raises:
        DataError: with one line that names the file and the cure.
    """
    if name.endswith(".npz"):
        wanted = {f"x_{split}": Expected(), f"y_{split}": Expected(("uint8", "int32", "int64"))}
        images, labels = read_npz(Path(name), wanted)
        return own_dataset(Path(name), images, labels)
    if name not in DATASETS:
        raise DataError(f"data set {name!r} is unknown; choose {', '.join(DATASETS)}, or give the path of an .npz")
    if folder is None and os.environ.get(DATA_VARIABLE):
        folder = Path(os.environ[DATA_VARIABLE])
    dataset = PUBLISHED[name]
    if isinstance(dataset, CifarDataset):
        images, labels = read_cifar(dataset, split, folder)
    else:
        images, labels = (published_array(dataset, f"{axis}_{split}", folder) for axis in "xy")
        images = images[:, None]
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Dataset(name, images, labels, digest, dataset.class_names)


def published_array(dataset: IdxDataset, key: str, folder: Path | None) -> UInt8:
    """One checked array of a published data set, from ``folder`` or fetched."""
    file = dataset.files[key]
    path = fetch(dataset, file) if folder is None else find(dataset, file, folder)
    array = (
        read_npz(path, {key: Expected(shape=file.shape)})[0] if path.suffix == ".npz" else read_idx(path, file.shape)
    )
    check_published(array, file.array_sha256, path, key, dataset.title)
    return array


def find(dataset: IdxDataset, file: IdxFile, folder: Path) -> Path:
    """Where a file, or the archive in its place, lies in a folder.

    The data sets share their file names, so the files of the folder itself are looked at last.
    """
    archive = f"{dataset.name.replace('-', '_')}.npz"
    own = folder / dataset.name
    idx = [f"{file.name}{end}" for end in (".gz", "")]
    candidates = [*(own / name for name in idx), folder / archive, *(folder / name for name in idx)]
    found = [path for path in candidates if os.path.isfile(path)]  # False, too, where one may not look
    if not found:
        raise none_found(folder, f"{file.name}.gz nor {archive}", dataset.title, dataset.megabytes)
    return found[0]


def fetch(dataset: IdxDataset, file: IdxFile) -> Path:
    """Fetch one official file into the user's cache."""
    return fetch_file(dataset.url, f"{file.name}.gz", file.gzip_md5, dataset.name)


def own_dataset(path: Path, images: UInt8, labels: Array) -> Dataset:
    """Check one's own images and labels and bring them to (N, C, H, W) and uint8."""
    if images.ndim not in (3, 4) or labels.shape != images.shape[:1] or not len(images):
        raise DataError(
            f"{path}: images {images.shape} and labels {labels.shape}; expected (N, H, W) or (N, H, W, C), and (N,)"
        )
    if labels.min() < 0 or labels.max() > MOST_LABELS - 1:
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}; they must be 0 to {MOST_LABELS - 1}")
    labels = labels.astype(np.uint8)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    images = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    _, channels, height, width = images.shape
    if height != width or height < 4 or height % 4 or channels not in (1, 3):
        raise DataError(
            f"{path}: images of {height}x{width} with {channels} channels; "
            f"they must be square, the side a multiple of 4, with 1 or 3 channels"
        )
    return Dataset(path.stem, images, labels, digest)
