"""CIFAR-10 in the wrappings it may come in: its authors' binary archive, that unpacked, or an ``.npz`` of WebP strips.

The binary version is 10,000 records in each of six files, a record being a label and then 32 x 32 pixels of red, of
green and of blue. (The authors' other versions are pickles and MATLAB files, and are not read.) The ``.npz`` holds the
same pixels in half the space: ``webp_train`` is lossless WebP pictures end to end, 100 images below each other in
each, which ``offsets_train`` cuts apart; ``y_train`` are the labels; likewise for ``test``.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from training.arrays import Array, Expected, UInt8, read_npz
from training.checkpoint import one_line
from training.errors import DataError
from training.fetch import check_published, fetch, none_found
from training.published import CifarDataset

FOLDER, ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
BATCHES = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
BATCH_IMAGES = 10_000
BATCH_BYTES = BATCH_IMAGES * (1 + PIXELS)
STRIP_IMAGES = 100


def read_cifar(dataset: CifarDataset, split: str, folder: Path | None) -> tuple[UInt8, UInt8]:
    """One checked split, from ``folder`` or fetched.

    Returns:
        Images uint8 (N, 3, 32, 32) and labels uint8 (N,).

    Raises:
        DataError: with one line that names the file and the cure.
    """
    if folder is None:
        path = fetch(dataset.url, ARCHIVE, dataset.archive_md5, dataset.name)
    else:
        path = find(dataset, split, folder)
    if path.suffix == ".npz":
        images, labels = read_strips(path, split)
    else:
        contents = read_archive(path, dataset, split) if path.name == ARCHIVE else read_batches(path, split)
        records = np.frombuffer(contents, np.uint8).reshape(-1, 1 + PIXELS)
        images, labels = np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPE), records[:, 0].copy()
    for key, array in ((f"x_{split}", images), (f"y_{split}", labels)):
        check_published(array, dataset.sha256[key], path, key, dataset.title)
    return images, labels


def find(dataset: CifarDataset, split: str, folder: Path) -> Path:
    """Where the archive, a folder with its files, or the ``.npz`` lies in a folder."""
    own, npz = folder / dataset.name, f"{dataset.name}.npz"
    unpacked = [own / FOLDER, own, folder / FOLDER, folder]
    found = [place for place in unpacked if all(os.path.isfile(place / name) for name in BATCHES[split])]
    found += [path for path in (own / ARCHIVE, folder / ARCHIVE, folder / npz) if os.path.isfile(path)]
    if not found:
        raise none_found(folder, f"{FOLDER}, {ARCHIVE} nor {npz}", dataset.title, dataset.megabytes)
    return found[0]


def read_batches(folder: Path, split: str) -> bytes:
    """The records of a split out of the unpacked files."""
    contents = []
    for name in BATCHES[split]:
        try:
            with (folder / name).open("rb") as file:
                content = file.read(BATCH_BYTES + 1)
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read ({error.strerror})") from error
        if len(content) != BATCH_BYTES:
            held = len(content) if len(content) < BATCH_BYTES else "more"
            raise DataError(f"{folder / name} holds {held} of {BATCH_BYTES} bytes; delete it and fetch it again")
        contents.append(content)
    return b"".join(contents)


def read_archive(path: Path, dataset: CifarDataset, split: str) -> bytes:
    """The records of a split out of the archive, which is not unpacked unless it is the published one."""
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != dataset.archive_md5:
                raise DataError(
                    f"{path} is not the published {dataset.title} (its MD5 differs); delete it and fetch it again"
                )
        wanted, contents = {f"{FOLDER}/{name}": name for name in BATCHES[split]}, {}
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name in wanted and member.isfile() else None
                if stream:
                    contents[wanted[member.name]] = stream.read(BATCH_BYTES)
        return b"".join(contents[name] for name in BATCHES[split])
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({one_line(error)}); delete it and fetch it again") from error


def read_strips(path: Path, split: str) -> tuple[UInt8, UInt8]:
    """A split out of the ``.npz``; images (N, 3, 32, 32) and labels (N,)."""
    count = BATCH_IMAGES * len(BATCHES[split])
    strips = count // STRIP_IMAGES
    wanted = {
        f"webp_{split}": Expected(most_bytes=count * PIXELS),
        f"offsets_{split}": Expected(("int64",), (strips + 1,)),
        f"y_{split}": Expected(shape=(count,)),
    }
    webp, offsets, labels = read_npz(path, wanted)
    if webp.ndim != 1 or offsets[0] < 0 or (np.diff(offsets) < 0).any() or offsets[-1] > len(webp):
        raise DataError(f"{path}: offsets_{split} does not cut webp_{split} apart; fetch the file again")
    pixels = [decode(path, webp[begin:end]) for begin, end in itertools.pairwise(offsets)]
    images = np.concatenate(pixels).reshape(count, 32, 32, 3).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), labels


def decode(path: Path, strip: Array) -> UInt8:
    """The pixels of one strip, uint8 (3200, 32, 3); its size is looked at before it is decoded."""
    size = (32, 32 * STRIP_IMAGES)
    try:
        with Image.open(io.BytesIO(strip.tobytes()), formats=["WEBP"]) as picture:
            if picture.size != size or picture.mode != "RGB":
                raise DataError(f"{path}: a strip is {picture.mode} of {picture.size}; expected RGB of {size}")
            return np.asarray(picture)
    # What Pillow raises for pictures that are none, and for those that would fill the memory.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: a strip of images is no WebP picture ({one_line(error)})") from error
