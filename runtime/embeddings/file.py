"""A learned word from a file, in any of the layouts in which people pass them on.

diffusers                    learned_embeds.safetensors, .bin: one tensor, called by its token
web interfaces, kohya        .pt: {"string_to_param": {"*": tensor}, "name", "step" ...}; .safetensors: "emb_params"
pictures                     .png whose text "sd-ti-embedding" is the .pt's content, as JSON in base64

A tensor is one vector (D,) or several (n, D).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError, deserialize

from runtime.embeddings.pickle_machine import Module, Tensor, UnreadableError
from runtime.embeddings.torch_file import MAX_DIMENSIONS, as_float32, read_torch
from runtime.errors import RequestError, one_line
from runtime.source_image import reading

Float32 = npt.NDArray[np.float32]

PICTURES = (".png", ".webp")
# Of two files that are called alike, the first.
SUFFIXES = (".safetensors", ".pt", ".bin", *PICTURES)
MAX_BYTES = 16 * 2**20  # of vectors it is a megabyte at most; pictures and leftovers of training are larger
MAX_NAME = 200  # characters
PICTURE_KEY = "sd-ti-embedding"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PARAMETERS = "string_to_param"
NAMELESS = "learned_embeds"  # diffusers calls every file so
NOT_TOKENS = ("emb_params", "*", "clip_l")  # names of a single tensor that nobody types
SDXL = {"clip_l", "clip_g"}


@dataclass(frozen=True, eq=False)
class Embedding:
    """A learned word.

    Attributes:
        name: what it is called in prompts.
        vectors: what the text encoder takes for it in the place of tokens, float32 (n, D).
        sha256: of the file.
        token: another name, which the file gives it, or None.
    """

    name: str
    vectors: Float32
    sha256: str
    token: str | None = None


def read_embedding(path: Path, name: str | None = None) -> Embedding:
    """Read a file; nothing in it is run, and its sizes are checked before they are believed.

    Args:
        path: the file.
        name: what it is to be called alone; without it, by the file's name, and by what the file itself says.

    Raises:
        RequestError: missing, damaged, too large, of an unknown layout, or for another kind of model.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RequestError(f"{path} is no file of an embedding; it must be one of {', '.join(SUFFIXES)}")
    data = read_bytes(path)
    try:
        if suffix in PICTURES:
            token, vectors = picture_content(data, str(path))
        elif suffix == ".safetensors":
            token, vectors = content_of(safetensors_content(data))
        else:
            token, vectors = pickled_content(data)
    except UnreadableError as error:
        raise RequestError(f"{path} cannot be read as an embedding: {error}") from error
    check_vectors(vectors, str(path))
    sha256 = hashlib.sha256(data).hexdigest()
    vectors = np.atleast_2d(vectors)
    vectors.flags.writeable = False  # threads share it
    if token and name is None and path.stem.startswith(NAMELESS):
        name = token
    if name is not None:
        return Embedding(plain(name), vectors, sha256)
    return Embedding(plain(path.stem), vectors, sha256, token and plain(token))


def plain(name: str) -> str:
    """A name as text of one line, with accents as prompts have them: some systems take those of file names apart."""
    text = name.encode("utf-8", "replace").decode()  # a file's name may hold bytes that are no text
    return unicodedata.normalize("NFC", " ".join(text.split()))


def read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise RequestError(f"the embedding {path} does not exist" if not path.exists() else f"{path} is no file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RequestError(f"{path} has {size} bytes; an embedding has at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})") from error


def safetensors_content(data: bytes) -> dict[str, Float32]:
    """The tensors of a file by name; of those that are no floating point, nothing."""
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise UnreadableError(one_line(error)) from error
    floats = {name: entry for name, entry in entries if entry["dtype"] in DTYPES}
    for name, entry in floats.items():
        if len(entry["shape"]) > MAX_DIMENSIONS:
            raise UnreadableError(f"its tensor {plain(name[:20])!r} has {len(entry['shape'])} dimensions")
    return {
        name: as_float32(bytes(entry["data"]), DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in floats.items()
    }


def pickled_content(data: bytes) -> tuple[str | None, Float32]:
    file = read_torch(data)
    if isinstance(file.content, Tensor):
        return None, file.numbers(file.content)
    token, tensor = content_of(file.content)
    if not isinstance(tensor, Tensor):
        raise UnreadableError("it holds no tensor where one belongs")
    return token, file.numbers(tensor)


def picture_content(data: bytes, where: str) -> tuple[str | None, Float32]:
    """What a picture's text says; its pixels are not decoded."""
    text = picture_text(io.BytesIO(data), where)
    if text is None:
        raise UnreadableError(
            f"it has no text {PICTURE_KEY}; one hidden in the pixels is not read, give the .pt it is of"
        )
    try:
        content = json.loads(base64.b64decode(text, validate=True), object_hook=array_or_object)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UnreadableError(f"its text {PICTURE_KEY} is damaged ({one_line(error)})") from error
    _, vectors = content_of(content)
    if not isinstance(vectors, np.ndarray):
        raise UnreadableError("it holds no tensor where one belongs")
    return token_of(content.get("name")), vectors


def picture_text(file: Path | io.BytesIO, where: str) -> str | None:
    """What a picture's text has of an embedding.

    Raises:
        RequestError: it is no picture.
    """
    with reading(where), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a claim of pixels that nobody decodes
        with Image.open(file, formats=("PNG", "WEBP")) as picture:
            text = picture.info.get(PICTURE_KEY)
    return text if isinstance(text, str) else None


def carries_embedding(path: Path) -> bool:
    """Whether a picture's text has an embedding; a broken picture, or one that is too large to be read, has none."""
    try:
        return path.stat().st_size <= MAX_BYTES and picture_text(path, str(path)) is not None
    except (RequestError, OSError):
        return False


def array_or_object(value: dict[str, Any]) -> Any:
    with np.errstate(over="ignore"):
        return np.array(value["TORCHTENSOR"], np.float32) if "TORCHTENSOR" in value else value


def content_of(content: Any) -> tuple[str | None, Any]:
    """The token, if there is one to be typed, and the tensor, by the layout of what holds them.

    A tensor is a claim, an array, or whatever a damaged file has in its place.

    Raises:
        UnreadableError: no layout that is known.
    """
    if not isinstance(content, Mapping):
        raise UnreadableError(f"it holds {type(content).__name__}, and no embedding")
    if content.keys() & SDXL and content.keys() != {"clip_l"}:
        raise UnreadableError("it was learned for Stable Diffusion XL, which has two text encoders (clip_l and clip_g)")
    if PARAMETERS in content:
        held = content[PARAMETERS]
        held = held.state.get("_parameters") if isinstance(held, Module) else held
        if not isinstance(held, Mapping) or len(held) != 1:
            raise UnreadableError(f"its {PARAMETERS} does not hold exactly one tensor")
        return None, *held.values()
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor | np.ndarray)}
    if len(tensors) != 1:
        names = ", ".join(plain(str(name)[:20]) for name in list(content)[:5]) or "it is empty"
        raise UnreadableError(f"it holds {len(tensors)} tensors ({names}), and not one under a token's name")
    ((name, tensor),) = tensors.items()
    return token_of(name), tensor


def token_of(name: object) -> str | None:
    """What a file calls its word, if anybody could type that."""
    return name if isinstance(name, str) and name not in NOT_TOKENS and len(name) <= MAX_NAME else None


def check_vectors(vectors: Float32, where: str) -> None:
    """Refuse what is no vector, or several of them.

    Raises:
        RequestError: another shape, or numbers that are not finite.
    """
    if vectors.ndim not in (1, 2) or not vectors.size:
        raise RequestError(f"{where} holds a tensor of shape {vectors.shape}; an embedding is (D,) or (n, D)")
    if not np.isfinite(vectors).all():
        raise RequestError(f"{where} holds numbers that are not finite; look for another copy of it")
