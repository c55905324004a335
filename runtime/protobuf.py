"""The skeleton of a protobuf message from a stranger: tags and lengths, with nothing copied and an end to the work."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.errors import BundleError

Buffer = bytes | memoryview

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
MAX_FIELDS = 10**6  # a full-size U-Net has about 10^5 on the way to its tensors
MAX_STRING = 4096


class Reader:
    """Reads one file's messages. The number of fields is bounded over all of them, however they are nested."""

    def __init__(self, where: str) -> None:
        """``where`` is what messages call the file."""
        self.where, self.left = where, MAX_FIELDS

    def fields(self, data: Buffer) -> Iterator[tuple[int, Buffer | int]]:
        """Number and value of each field of a message: a view for strings and messages, else an int.

        Raises:
            BundleError: a length goes beyond the end, a number has more than ten bytes, a wire type is unknown, or the
                file has too many fields.
        """
        position, end = 0, len(data)
        while position < end:
            self.left -= 1
            if self.left < 0:
                raise BundleError(f"{self.where} has more than {MAX_FIELDS} fields; it is no graph of a network")
            tag, position = self.varint(data, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == VARINT:
                value, position = self.varint(data, position)
                yield number, value
                continue
            if wire_type == BYTES:
                size, position = self.varint(data, position)
            elif wire_type in FIXED_SIZES:
                size = FIXED_SIZES[wire_type]
            else:
                raise BundleError(f"{self.where} is no ONNX file: field {number} has wire type {wire_type}")
            if size > end - position:
                raise BundleError(
                    f"{self.where} is cut off, or no ONNX file: a field of {size} bytes goes beyond its end"
                )
            yield number, data[position : position + size]
            position += size

    def varint(self, data: Buffer, position: int) -> tuple[int, int]:
        """A number of seven bits a byte, lowest first, and the position behind it."""
        value = 0
        for shift in range(0, 70, 7):
            if position >= len(data):
                raise BundleError(f"{self.where} is cut off, or no ONNX file: it ends inside a number")
            byte = data[position]
            position += 1
            if byte < 0x80:
                return value | byte << shift, position
            value |= (byte & 0x7F) << shift
        raise BundleError(f"{self.where} is no ONNX file, or damaged: a number has more than ten bytes")

    def message(self, value: Buffer | int) -> Buffer:
        """A field's value as a message, which a number is not."""
        if isinstance(value, int):
            raise BundleError(f"{self.where} has a number where ONNX has a message; it is no ONNX file, or damaged")
        return value

    def text(self, value: Buffer | int) -> str:
        data = self.message(value)
        if len(data) > MAX_STRING:
            raise BundleError(f"{self.where} has a name of {len(data)} bytes; at most {MAX_STRING} are read")
        try:
            return bytes(data).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{self.where} has a name that is not UTF-8; it is no ONNX file, or damaged") from error
