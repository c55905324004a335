"""Data sets: fetched once, checked, and held in memory as uint8.

A published data set (``training/published.py``) comes as its four official IDX files, fetched into a cache by pooch, or
read from a folder that holds them (gzipped or not) or one ``.npz`` of the same name. Whatever the wrapping, what counts
is what is inside: each array is compared with its published content by SHA-256, so a truncated or altered file is
noticed before a day of training on it. One's own images come as an ``.npz``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch

from training.arrays import Array, Expected, UInt8, read_idx, read_npz
from training.checkpoint import one_line
from training.errors import DataError
from training.published import PUBLISHED, IdxDataset, IdxFile

__all__ = ["DATASETS", "DATA_VARIABLE", "DataError", "Dataset", "load"]

DATA_VARIABLE = "DIFFUSION_ANYWHERE_DATA"


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, C, H, W) and labels uint8 (N,), with a name and the SHA-256 of both for the record."""

    name: str
    images: UInt8
    labels: UInt8
    sha256: str

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
    images, labels = (published_array(PUBLISHED[name], f"{axis}_{split}", folder) for axis in "xy")
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Dataset(name, images[:, None], labels, digest)


def published_array(dataset: IdxDataset, key: str, folder: Path | None) -> UInt8:
    """One checked array of a published data set, from ``folder`` or fetched."""
    file = dataset.files[key]
    path = fetch(dataset, file) if folder is None else find(dataset, file, folder)
    array = (
        read_npz(path, {key: Expected(shape=file.shape)})[0] if path.suffix == ".npz" else read_idx(path, file.shape)
    )
    if hashlib.sha256(array.tobytes()).hexdigest() != file.array_sha256:
        raise DataError(
            f"{path}: {key} is not the published {dataset.title} (its SHA-256 differs); delete the file and fetch it "
            f"again"
        )
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
        raise DataError(
            f"{folder} holds neither {file.name}.gz nor {archive}; give another folder with --data, or none there and "
            f"none in ${DATA_VARIABLE} to fetch {dataset.title} ({dataset.megabytes} MB)"
        )
    return found[0]


def fetch(dataset: IdxDataset, file: IdxFile) -> Path:
    """Fetch one official file into the user's cache; pooch checks its MD5 and writes it aside first."""
    url = f"{dataset.url}{file.name}.gz"
    try:
        folder = pooch.os_cache("diffusion-anywhere") / dataset.name
        return Path(pooch.retrieve(url, f"md5:{file.gzip_md5}", fname=f"{file.name}.gz", path=folder))
    except (OSError, ValueError) as error:
        raise DataError(
            f"could not fetch {url} ({one_line(error)}); give a folder that holds it with --data or ${DATA_VARIABLE}"
        ) from error


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
