"""Arrays out of files that may be anybody's: IDX and ``.npz``; never unpickled, never unpacked beyond need."""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.checkpoint import one_line
from training.errors import DataError

UInt8 = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Expected:
    """What an array must be: one of these types and, where that is known beforehand, of this shape or this size."""

    dtypes: tuple[str, ...] = ("uint8",)
    shape: tuple[int, ...] | None = None
    most_bytes: float = math.inf


def read_idx(path: Path, shape: tuple[int, ...]) -> UInt8:
    """Read an IDX file of unsigned bytes, gzipped or not, whose shape is known beforehand.

    The format: two zero bytes, 0x08 for unsigned byte, the number of dimensions, each dimension as big-endian uint32,
    the bytes. No more is unpacked than the shape allows, whatever the file claims.

    Raises:
        DataError: truncated, damaged, or of another shape.
    """
    expected = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    count = math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header, body, rest = stream.read(len(expected)), stream.read(count), stream.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({one_line(error)}); delete it and fetch it again") from error
    if header != expected:
        raise DataError(f"{path} is not an IDX file of shape {shape}; delete it and fetch it again")
    if len(body) != count or rest:
        raise DataError(
            f"{path} holds {len(body)} of {count} bytes{' and more' if rest else ''}; delete it and fetch it again"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_npz(path: Path, wanted: dict[str, Expected]) -> list[Array]:
    """Read arrays from an ``.npz``. Types and shapes are looked at before any content is unpacked.

    Raises:
        DataError: missing, truncated, damaged, or not what is wanted.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path} does not exist; give an .npz with {', '.join(wanted)}")
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = sorted(wanted.keys() - held)
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(held)) or 'nothing'}")
            return [read_npy(path, archive, key, expected) for key, expected in wanted.items()]
    # zipfile raises RuntimeError for an encrypted file or an unknown compression, KeyError for a name that is no .npy.
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({one_line(error)})") from error


def read_npy(path: Path, archive: zipfile.ZipFile, key: str, expected: Expected) -> Array:
    """Read one array of an ``.npz`` that is open."""
    with archive.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = header(stream)
        if dtype.name not in expected.dtypes:
            held = "pickled objects" if dtype.hasobject else dtype.name
            raise DataError(f"{path}: {key} holds {held}; it must be {' or '.join(expected.dtypes)}")
        if expected.shape not in (None, shape):
            raise DataError(f"{path}: {key} is of shape {shape}; expected {expected.shape}")
        size = archive.getinfo(f"{key}.npy").file_size - stream.tell()
        if math.prod(shape) * dtype.itemsize != size:
            raise DataError(f"{path}: {key} claims the shape {shape} and {size} bytes")
        if size > expected.most_bytes:
            raise DataError(f"{path}: {key} is of {size} bytes; expected at most {expected.most_bytes}")
        body = stream.read(size)
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran_order else "C")
