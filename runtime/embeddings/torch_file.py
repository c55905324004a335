"""Files that ``torch.save`` wrote, without torch: its zip archives, and what it wrote before version 1.6.

zip      folder/data.pkl, a pickle; folder/data/KEY, the numbers of each storage; folder/byteorder
before   five pickles one after the other: a magic number, the version, facts of the machine, the content, and the keys
         of the storages; then for each key how many numbers follow, int64, and they
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.embeddings.pickle_machine import Machine, Storage, Tensor, UnreadableError, is_count

Float32 = npt.NDArray[np.float32]

ARCHIVE = b"PK\x03\x04"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files from before
MAX_NUMBERS = 2**22  # 75 vectors of 2048 are a twentieth of it
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class TorchFile:
    """A file's content, in which tensors are claims that ``numbers`` looks into."""

    content: Any
    storage: Callable[[Storage], bytes]

    def numbers(self, tensor: Tensor) -> Float32:
        """A tensor's numbers.

        Raises:
            UnreadableError: they are not in the file, too many, or of a kind that has no place among vectors.
        """
        dtype = tensor.storage.dtype
        if dtype not in ("float64", "float32", "float16", "bfloat16"):
            raise UnreadableError(f"its numbers are {dtype}, and vectors are of floating point")
        places = places_of(tensor)
        data = self.storage(tensor.storage)
        if len(data) != tensor.storage.count * item_size(dtype):
            raise UnreadableError(f"storage {tensor.storage.key[:20]!r} claims {tensor.storage.count} numbers")
        return as_float32(data, dtype)[places]


def places_of(tensor: Tensor) -> npt.NDArray[np.int64]:
    """Where in its storage each of a tensor's numbers lies, int64 (*size).

    Raises:
        UnreadableError: it claims too many, or some that lie outside of the storage.
    """
    size, stride = tensor.size, tensor.stride
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise UnreadableError("a tensor has no shape")
    if len(size) > MAX_DIMENSIONS or not all(map(is_count, (tensor.offset, *size, *stride))):
        raise UnreadableError("a tensor has a shape that is none")
    if math.prod(size) > MAX_NUMBERS:
        raise UnreadableError(f"a tensor claims {math.prod(size)} numbers; at most {MAX_NUMBERS} are read")
    last = tensor.offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if 0 in size or last >= tensor.storage.count:
        raise UnreadableError(f"a tensor is empty, or reaches beyond the {tensor.storage.count} numbers of its storage")
    places = np.full((1,) * len(size), tensor.offset, np.int64)
    for axis, (count, step) in enumerate(zip(size, stride, strict=True)):
        along = np.arange(count, dtype=np.int64) * (step if count > 1 else 0)
        places = places + along.reshape([-1 if k == axis else 1 for k in range(len(size))])
    return places


def item_size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def as_float32(data: bytes, dtype: str) -> Float32:
    """Little-endian numbers, (N,); a bfloat16 is the upper half of a float32."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # of float64; what is then infinite is refused as such
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(np.float32)


def read_torch(data: bytes) -> TorchFile:
    """Read a file's bytes; numbers are looked at when they are asked for.

    Raises:
        UnreadableError: damaged, not written by torch.save, or with anything but tensors in it.
    """
    return read_archive(data) if data.startswith(ARCHIVE) else read_before(data)


def read_archive(data: bytes) -> TorchFile:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise UnreadableError("it is a damaged archive, or cut short") from error
    # The entries of a crafted archive may all be the same bytes, so that together they are far more than the file.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise UnreadableError("it has compressed entries, which torch.save never writes")
    programs = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise UnreadableError("it is no archive of torch.save")
    folder = programs[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and entry_of(archive, f"{folder}byteorder") != b"little":
        raise UnreadableError("its numbers are not little-endian")
    content = Machine().run(io.BytesIO(entry_of(archive, programs[0])))
    return TorchFile(content, lambda storage: entry_of(archive, f"{folder}data/{storage.key}"))


def entry_of(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    # zipfile raises RuntimeError for an encrypted entry, KeyError for one that is missing.
    except (KeyError, RuntimeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UnreadableError(f"its entry {name[:60]!r} is missing or damaged") from error


def read_before(data: bytes) -> TorchFile:
    stream, machine = io.BytesIO(data), Machine()
    if Machine().run(stream) != MAGIC or Machine().run(stream) != VERSION:
        raise UnreadableError("torch.save did not write it")
    facts = Machine().run(stream)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise UnreadableError("its numbers are not little-endian")
    content, keys = machine.run(stream), Machine().run(stream)
    begins = begins_of(data, stream.tell(), keys, machine.storages)

    def storage(wanted: Storage) -> bytes:
        begin = begins.get(wanted.key, len(data))
        return data[begin : begin + wanted.count * item_size(wanted.dtype)]

    return TorchFile(content, storage)


def begins_of(data: bytes, begin: int, keys: Any, storages: Mapping[str, Storage]) -> dict[str, int]:
    """Where each storage's numbers begin in the file.

    Raises:
        UnreadableError: they are not those that the content mentions, or the file ends before them.
    """
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise UnreadableError("its storages are not those that its pickle mentions")
    begins = {}
    for key in keys:
        count = int.from_bytes(data[begin : begin + 8], "little")
        if count != storages[key].count:
            raise UnreadableError(f"storage {key[:20]!r} holds {count} numbers, not {storages[key].count}")
        begins[key] = begin + 8
        begin += 8 + count * item_size(storages[key].dtype)
    if begin > len(data):
        raise UnreadableError("it is cut short")
    return begins
