"""Where an ONNX file says that its weights lie, read without the onnx package and before ONNX Runtime sees the file.

A graph names files of its own choosing. So every tensor's external data is found and held against the files that the
bundle's manifest names. Only the skeleton of the protobuf is walked: tags and lengths, and the few messages that can
hold a tensor. Nothing is copied, and nesting and the number of fields are bounded.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import BundleError

Buffer = bytes | memoryview

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
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
# protobuf's own parsers stop at a hundred levels. A full-size U-Net has about 10^5 fields on the way to its tensors.
MAX_DEPTH = 100
MAX_FIELDS = 10**6
MAX_STRING = 4096
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
    budget = MAX_FIELDS
    pending: list[tuple[str, Buffer, int]] = [("ModelProto", memoryview(model), 1)]
    while pending:
        message, data, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise BundleError(f"{where} nests more than {MAX_DEPTH} levels deep; it is no graph of a network")
        children = CHILDREN[message]
        parts: list[tuple[int, Buffer | int]] = []
        for number, value in fields(data, where):
            budget -= 1
            if budget < 0:
                raise BundleError(f"{where} has more than {MAX_FIELDS} fields; it is no graph of a network")
            if number in children:
                pending.append((children[number], as_message(value, where), depth + 1))
            elif message == "TensorProto" and number in (TENSOR_NAME, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION):
                parts.append((number, value))
        if message == "TensorProto":
            yield from tensor_data(parts, where)


def tensor_data(parts: list[tuple[int, Buffer | int]], where: str) -> Iterator[ExternalData]:
    """The external data of one tensor, if it has any."""
    name = "".join(text(value, where) for number, value in parts if number == TENSOR_NAME)
    entries: dict[str, str] = {}
    for number, value in parts:
        if number == TENSOR_EXTERNAL_DATA:
            key, said = entry(as_message(value, where), where)
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


def entry(data: Buffer, where: str) -> tuple[str, str]:
    """Key and value, each said once: protobuf would let the last one win, and readers differ."""
    said = [(number, text(value, where)) for number, value in fields(data, where)]
    if sorted(number for number, _ in said) != [ENTRY_KEY, ENTRY_VALUE]:
        raise BundleError(f"{where} has external data that is not one key with one value")
    by_number = dict(said)
    return by_number[ENTRY_KEY], by_number[ENTRY_VALUE]


def whole_number(said: str, tensor: str, where: str) -> int:
    if not (said.isascii() and said.isdigit() and len(said) <= len(str(MAX_OFFSET)) and int(said) <= MAX_OFFSET):
        raise BundleError(f"{where}: tensor {tensor!r} has {said[:40]!r} for an offset or a length")
    return int(said)


def text(value: Buffer | int, where: str) -> str:
    data = as_message(value, where)
    if len(data) > MAX_STRING:
        raise BundleError(f"{where} has a name of {len(data)} bytes; at most {MAX_STRING} are read")
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{where} has a name that is not UTF-8; it is no ONNX file, or damaged") from error


def as_message(value: Buffer | int, where: str) -> Buffer:
    if isinstance(value, int):
        raise BundleError(f"{where} has a number where ONNX has a message; it is no ONNX file, or damaged")
    return value


def fields(data: Buffer, where: str) -> Iterator[tuple[int, Buffer | int]]:
    """Number and value of each field of a protobuf message: a view for strings and messages, else an int.

    Raises:
        BundleError: a length goes beyond the end, a number has more than ten bytes, or a wire type is unknown.
    """
    position, end = 0, len(data)
    while position < end:
        tag, position = varint(data, position, where)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, position = varint(data, position, where)
            yield number, value
            continue
        if wire_type == BYTES:
            size, position = varint(data, position, where)
        elif wire_type in FIXED_SIZES:
            size = FIXED_SIZES[wire_type]
        else:
            raise BundleError(f"{where} is no ONNX file: field {number} has wire type {wire_type}")
        if size > end - position:
            raise BundleError(f"{where} is cut off, or no ONNX file: a field of {size} bytes goes beyond its end")
        yield number, data[position : position + size]
        position += size


def varint(data: Buffer, position: int, where: str) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise BundleError(f"{where} is cut off, or no ONNX file: it ends inside a number")
        byte = data[position]
        position += 1
        if byte < 0x80:
            return value | byte << shift, position
        value |= (byte & 0x7F) << shift
    raise BundleError(f"{where} is no ONNX file, or damaged: a number has more than ten bytes")
