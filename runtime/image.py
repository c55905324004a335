"""From the network's numbers to pictures in files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runtime.errors import RequestError

UInt8 = npt.NDArray[np.uint8]
METADATA_KEY = "diffusion-anywhere"
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


def to_uint8(sample: npt.NDArray[np.float32]) -> UInt8:
    """Pixels in [-1, 1], (B, C, H, W), as uint8 (B, H, W, C); rounded half to even, not truncated."""
    scaled = np.clip(np.rint((sample.astype(np.float64) + 1) * 127.5), 0, 255)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def to_pil(image: UInt8) -> Image.Image:
    """One image, uint8 (H, W, C), C being 1 or 3."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def make_grid(images: UInt8, columns: int, gap: int = 2) -> UInt8:
    """Images (B, H, W, C) on one sheet, row by row, with a gap of middle grey between them."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 127, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def encode_image(image: UInt8, suffix: str, metadata: Mapping[str, Any] | None = None) -> bytes:
    """An encoded file. PNG carries ``metadata`` as a JSON text chunk."""
    buffer = io.BytesIO()
    info = PngInfo()
    if metadata is not None:
        info.add_text(METADATA_KEY, json.dumps(metadata, sort_keys=True))
    extra = {"pnginfo": info} if FORMATS[suffix] == "PNG" else {"quality": 95}
    to_pil(image).save(buffer, FORMATS[suffix], **extra)
    return buffer.getvalue()


def check_writable(path: Path, overwrite: bool) -> None:
    """Find out before an hour's work, not after it, whether ``path`` can be written.

    Raises:
        RequestError: the folder is missing or unwritable, or the file exists and may not be replaced.
    """
    folder = path.parent
    try:
        if not folder.is_dir():
            raise RequestError(f"the folder {folder} does not exist; make it first")
        if path.is_dir():
            raise RequestError(f"{path} is a folder; give the name of a file in it")
        if path.exists() and not overwrite:
            raise RequestError(f"{path} exists; choose another name or add --overwrite")
        path.with_name(f".{path.name}.{os.getpid()}").exists()  # as long a name as will be written
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(f"{folder} cannot be written to ({error.strerror})") from error


def write_file(path: Path, data: bytes) -> None:
    """Write aside, then move into place: at every moment ``path`` is the old file or the whole new one.

    Raises:
        RequestError: the disk is full or the folder unwritable; nothing is left behind.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except BaseException as error:  # Ctrl-C too leaves nothing behind
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RequestError(f"{path} cannot be written ({error.strerror})") from error
        raise
