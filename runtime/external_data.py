"""Where an ONNX file says that its weights lie, read without the onnx package and before ONNX Runtime sees the file.

A graph names files of its own choosing. So every tensor's external data is found and held against the files that the
bundle's manifest names. Only the few messages that can hold a tensor are walked, to a bounded depth.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import BundleError
from runtime.protobuf import Buffer, Reader

# Field numbers of onnx.proto that lead to a tensor, by message: number -> message.
CHILDREN: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
TENSOR_NAME, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 8, 13, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
MAX_DEPTH = 100  # where protobuf's own parsers stop too
MAX_OFFSET = 2**63 - 1


@dataclass(frozen=True)
class ExternalData:
    """Where one tensor lies; ``length`` is None for all that follows ``offset``."""

    tensor: str
    location: str
    offset: int
    length: int | None


def mapped(path: Path) -> memoryview:
    """A file's bytes without reading it; it is unmapped when nobody looks at them any more.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is empty.
    """
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def check_external_data(model: Buffer, where: str, sizes: Mapping[str, int]) -> None:
    """Hold a graph's external data against the files it may use.

    Args:
        model: the ONNX file.
        where: what messages call it.
        sizes: bytes of each file that the manifest names, by the name the graph must use.

    Raises:
        BundleError: it is no ONNX file, a tensor lies in another file, or beyond the end of its file.
    """
    for found in find_external_data(model, where):
        if found.location not in sizes:
            allowed = f"only in {', '.join(sorted(sizes))}" if sizes else "only in the graph's own file"
            raise BundleError(f"{where}: tensor {found.tensor!r} lies in {found.location!r}; it may lie {allowed}")
        size = sizes[found.location]
        end = found.offset + (found.length or 0)
        if end > size:
            raise BundleError(
                f"{where}: tensor {found.tensor!r} lies at bytes {found.offset} to {end} of {found.location}, "
                f"which has {size}; fetch both again"
            )


def find_external_data(model: Buffer, where: str) -> Iterator[ExternalData]:
    """Every tensor of an ONNX file whose data is elsewhere: initializers, attributes, subgraphs, functions.

    Raises:
        BundleError: the file is no ONNX file, is cut off, nests too deeply, or has external data that is not well said.
    """
    reader = Reader(where)
    pending: list[tuple[str, Buffer, int]] = [("ModelProto", memoryview(model), 1)]
    while pending:
        message, data, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise BundleError(f"{where} nests more than {MAX_DEPTH} levels deep; it is no graph of a network")
        children = CHILDREN[message]
        parts: list[tuple[int, Buffer | int]] = []
        for number, value in reader.fields(data):
            if number in children:
                pending.append((children[number], reader.message(value), depth + 1))
            elif message == "TensorProto" and number in (TENSOR_NAME, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION):
                parts.append((number, value))
        if message == "TensorProto":
            yield from tensor_data(parts, reader)


def tensor_data(parts: list[tuple[int, Buffer | int]], reader: Reader) -> Iterator[ExternalData]:
    """The external data of one tensor, if it has any."""
    where = reader.where
    name = "".join(reader.text(value) for number, value in parts if number == TENSOR_NAME)
    entries: dict[str, str] = {}
    for number, value in parts:
        if number == TENSOR_EXTERNAL_DATA:
            key, said = entry(reader.message(value), reader)
            if key in entries:
                raise BundleError(f"{where}: tensor {name!r} says {key!r} twice")
            entries[key] = said
    elsewhere = any(number == TENSOR_DATA_LOCATION and value for number, value in parts)
    if elsewhere and "location" not in entries:
        raise BundleError(f"{where}: tensor {name!r} lies in another file and does not say in which")
    if entries:
        length = whole_number(entries["length"], name, where) if "length" in entries else None
        offset = whole_number(entries.get("offset", "0"), name, where)
        yield ExternalData(name, entries.get("location", ""), offset, length)


def entry(data: Buffer, reader: Reader) -> tuple[str, str]:
    """Key and value, each said once: protobuf would let the last one win, and readers differ."""
    said = [(number, reader.text(value)) for number, value in reader.fields(data)]
    if sorted(number for number, _ in said) != [ENTRY_KEY, ENTRY_VALUE]:
        raise BundleError(f"{reader.where} has external data that is not one key with one value")
    by_number = dict(said)
    return by_number[ENTRY_KEY], by_number[ENTRY_VALUE]


def whole_number(said: str, tensor: str, where: str) -> int:
    if not (said.isascii() and said.isdigit() and len(said) <= len(str(MAX_OFFSET)) and int(said) <= MAX_OFFSET):
        raise BundleError(f"{where}: tensor {tensor!r} has {said[:40]!r} for an offset or a length")
    return int(said)
