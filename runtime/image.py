"""From the network's numbers to pictures in files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runtime.errors import RequestError

UInt8 = npt.NDArray[np.uint8]
METADATA_KEY = "diffusion-anywhere"
PARAMETERS_KEY = "parameters"  # where the web interfaces look, see ``runtime.parameters``
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAX_PIXELS = 2**28  # of a picture or a sheet; most programs open no larger one
IMAGE_DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286  # of EXIF
UTF_16 = b"UNICODE\0"  # begins a user comment in it
MAX_JPEG_EXIF = 65533  # bytes, since a segment says its length in 16 bits
MAX_SIDES = {"PNG": 2**31 - 1, "WEBP": 2**14 - 1, "JPEG": 65500}  # of libpng, libwebp and libjpeg
GAP = 2  # pixels between the images of a sheet
AT_ONCE = 256  # images whose numbers are rounded together


def to_uint8(sample: npt.NDArray[np.float32]) -> UInt8:
    """Pixels in [-1, 1], (B, C, H, W), as uint8 (B, H, W, C); rounded half to even, not truncated."""
    count, channels, height, width = sample.shape
    images = np.empty((count, height, width, channels), np.uint8)
    for begin in range(0, count, AT_ONCE):  # in float64 a million digits would be many gigabytes
        some = slice(begin, begin + AT_ONCE)
        scaled = np.clip(np.rint((sample[some].astype(np.float64) + 1) * 127.5), 0, 255)
        images[some] = scaled.astype(np.uint8).transpose(0, 2, 3, 1)
    return images


def to_pil(image: UInt8) -> Image.Image:
    """One image, uint8 (H, W, C), C being 1 or 3."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def grid_size(count: int, width: int, height: int, columns: int) -> tuple[int, int]:
    """Width and height of the sheet that ``make_grid`` makes."""
    rows = -(-count // columns)
    return columns * (width + GAP) - GAP, rows * (height + GAP) - GAP


def make_grid(images: UInt8, columns: int) -> UInt8:
    """Images (B, H, W, C) on one sheet, row by row, with a gap of middle grey between them."""
    count, height, width, channels = images.shape
    sheet_width, sheet_height = grid_size(count, width, height, columns)
    sheet = np.full((sheet_height, sheet_width, channels), 127, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def check_size(suffix: str, width: int, height: int) -> None:
    """Find out before an hour's work, not after it, whether a format holds a picture of a size.

    Raises:
        RequestError: it is too wide or too high, or has too many pixels for any.
    """
    name = FORMATS[suffix]
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"a picture of {width}x{height} pixels is too large; at most {MAX_PIXELS}: write fewer images on a sheet"
        )
    if max(width, height) > MAX_SIDES[name]:
        raise RequestError(
            f"a picture of {width}x{height} pixels is too large for {name}, which has at most {MAX_SIDES[name]} a side;"
            " write .png, or fewer images on a sheet"
        )


def encode_image(
    image: UInt8, suffix: str, metadata: Mapping[str, Any] | None = None, words: str | None = None
) -> bytes:
    """An encoded file that carries ``metadata`` as JSON, and ``words`` where other programs look for them.

    A JPEG holds no more than 64 KB of such; a longer description is left out, with a warning.

    Raises:
        RequestError: the format cannot hold the picture.
    """
    check_size(suffix, image.shape[1], image.shape[0])
    made, name = None if metadata is None else json.dumps(metadata, sort_keys=True), FORMATS[suffix]
    extra: dict[str, Any]
    if name == "PNG":
        extra = {"pnginfo": text_chunks(made, words)}
    else:
        extra = {"quality": 95, "exif": exif(made, words).tobytes()}
    if name == "JPEG" and len(extra["exif"]) > MAX_JPEG_EXIF:
        warnings.warn(f"what made the picture is too long for a {suffix} and is left out; .png has it", stacklevel=2)
        del extra["exif"]
    buffer = io.BytesIO()
    try:
        to_pil(image).save(buffer, name, **extra)
    except (OSError, ValueError) as error:
        raise RequestError(f"the picture cannot be written as {name} ({error})") from error
    return buffer.getvalue()


def text_chunks(made: str | None, words: str | None) -> PngInfo:
    """What a PNG carries: JSON in one chunk, and in another what other programs read."""
    info = PngInfo()
    if made is not None:
        info.add_text(METADATA_KEY, made)
    if words:
        info.add_text(PARAMETERS_KEY, words)
    return info


def exif(made: str | None, words: str | None = None) -> Image.Exif:
    """What a WebP or JPEG carries: JSON as its description, and as the user's comment what other programs read."""
    tags = Image.Exif()
    if made is not None:
        tags[IMAGE_DESCRIPTION] = f"{METADATA_KEY}: {made}"
    if words:
        tags.get_ifd(EXIF_IFD)[USER_COMMENT] = UTF_16 + words.encode("utf-16-be")
    return tags


def carried_by(picture: Image.Image) -> str | None:
    """The JSON that ``encode_image`` put into a picture, or None."""
    if picture.format == "PNG":
        made = picture.info.get(METADATA_KEY)
        return made if isinstance(made, str) else None
    _, ours, made = str(picture.getexif().get(IMAGE_DESCRIPTION, "")).partition(f"{METADATA_KEY}: ")
    return made if ours else None


def check_writable(paths: Path | Sequence[Path], overwrite: bool) -> None:
    """Find out before an hour's work, not after it, whether a file can be written, or several of one folder.

    Raises:
        RequestError: the folder is missing or unwritable, or a file exists and may not be replaced.
    """
    files = [paths] if isinstance(paths, Path) else paths
    folder = files[0].parent
    check_name(files[0])
    try:
        if not folder.is_dir():
            raise RequestError(f"the folder {folder} does not exist; make it first")
        for path in files:
            if path.is_dir():
                raise RequestError(f"{path} is a folder; give the name of a file in it")
            if os.path.lexists(path) and not overwrite:  # a link that leads nowhere is somebody's too
                raise RequestError(f"{path} exists; choose another name or add --overwrite")
        aside_name(files[-1]).exists()  # as long a name as will be written
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(f"{folder} cannot be written to ({error.strerror})") from error


def check_name(path: Path) -> None:
    """Refuse what no system takes as a name; it raises another error for it than for whatever else is wrong.

    Raises:
        RequestError: there is a null character in it.
    """
    if "\0" in str(path):
        raise RequestError(f"{path} is no name of a file, since it holds a null character")


def aside_name(path: Path) -> Path:
    """A name in the same folder that nobody can foresee, and that two threads do not share."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def write_file(path: Path, data: bytes) -> None:
    """Write aside, then move into place: at every moment ``path`` is the old file or the whole new one.

    A file or link that somebody else has put where this writes aside is neither followed nor touched.

    Raises:
        RequestError: the disk is full or the folder unwritable; nothing is left behind.
    """
    aside = aside_name(path)
    try:
        stream = aside.open("xb")  # O_EXCL: a file of its own, and no link is followed
        with removed_on_failure(aside):
            with stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Whatever ends the work, Ctrl-C too, leaves no file behind."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
