"""The tokenizer of a bundle: a single-file checkpoint brings none, a folder may bring its own.

What counts is what a tokenizer does. One that gives CLIP's ids, however its file is written, becomes the file that this
project ships; so bundles of the same model are the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from export.errors import ExportError
from training.checkpoint import one_line
from training.stable_diffusion.config import TextEncoderConfig
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

Int64 = npt.NDArray[np.int64]

TOKENIZER = "tokenizer.json"
LARGEST_FILE = 64 * 2**20
# Two tokenizers with the same vocabulary may still split otherwise; these hold what CLIP's has rules for.
PROBES = (
    "",
    "a photograph of an astronaut riding a horse",
    "An UPPER-case Title, (with) [brackets]: 1234567890",
    "it's   they're\twe've\nI'll don't",
    "naïve café – 東京タワー, Ελληνικά",
    "🐈‍⬛ a cat 😀",
    "supercalifragilisticexpialidocious_under-score",
    "<|startoftext|> inside <|endoftext|>!",
    "rock&roll...!!! ??? #hashtag @name",
)


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and what the manifest says of it.

    Attributes:
        data: the file, in the format of the tokenizers library.
        bos_token_id, eos_token_id: what begins and ends a text.
        pad_token_id: what fills it up.
    """

    data: bytes
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def encode(self, prompt: str, max_length: int) -> Int64:
        """The ids of a prompt as ``docs/bundle.md`` asks for them, int64 (max_length,)."""
        ids = Tokenizer.from_buffer(self.data).encode(prompt, add_special_tokens=False).ids[: max_length - 2]
        whole = [self.bos_token_id, *ids, self.eos_token_id]
        return np.array([*whole, *[self.pad_token_id] * (max_length - len(whole))], np.int64)


def find_tokenizer(checkpoint: Path | None, given: Path | None, text: TextEncoderConfig) -> TextTokenizer:
    """Choose the tokenizer of a checkpoint.

    Args:
        checkpoint: a folder that may hold one in its ``tokenizer``; None where the checkpoint is a file.
        given: a ``tokenizer.json`` that the caller knows better, or None.
        text: sizes of the text encoder that it feeds.

    Raises:
        ExportError: a file is damaged or no tokenizer, or has tokens that the text encoder does not know.
    """
    folder = checkpoint / "tokenizer" if checkpoint else None
    pad: str | None = None
    where: object = "CLIP's tokenizer"
    if given is not None:
        tokenizer, where = parse(read(given), given), given
    elif folder and folder.is_dir():
        tokenizer, where = own_tokenizer(folder), folder
        pad = pad_token(folder)
    else:
        tokenizer = shipped()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try_out(tokenizer, where)
    data = TOKENIZER_FILE.read_bytes() if does_as(tokenizer, shipped()) else tokenizer.to_str(pretty=True).encode()
    ids = tokenizer.encode("").ids
    if len(ids) != 2:
        raise ExportError(f"{where} makes {len(ids)} tokens of the empty text; a begin and an end are needed")
    largest = max(*tokenizer.get_vocab().values(), *ids)  # ids may have gaps, so that counting tokens would not do
    if largest >= text.vocab_size:
        raise ExportError(
            f"{where} has ids up to {largest:,}, but the text encoder knows {text.vocab_size:,} tokens; "
            "give the tokenizer that belongs to it"
        )
    begin, end = ids
    padding = end if pad is None else tokenizer.token_to_id(pad)
    if padding is None:
        raise ExportError(f"{where}: its padding token {pad!r} is not in its vocabulary")
    return TextTokenizer(data, begin, end, padding)


def shipped() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER_FILE))


def does_as(one: Tokenizer, other: Tokenizer) -> bool:
    """The same vocabulary, and the same ids for whatever the rules of CLIP's tokenizer are about."""
    return one.get_vocab() == other.get_vocab() and all(one.encode(p).ids == other.encode(p).ids for p in PROBES)


def own_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder of transformers: one file, or CLIP's vocabulary and merges in two.

    Raises:
        ExportError: they are missing or damaged.
    """
    path = folder / TOKENIZER
    if path.is_file():
        return parse(read(path), path)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    settings = json.loads(TOKENIZER_FILE.read_bytes())
    settings["model"] |= {"vocab": read_json(vocabulary), "merges": read_merges(merges)}
    settings["added_tokens"] = [
        token | {"id": settings["model"]["vocab"].get(token["content"], token["id"])}
        for token in settings["added_tokens"]
    ]
    begin, end = settings["added_tokens"]
    settings["post_processor"] |= {"cls": [begin["content"], begin["id"]], "sep": [end["content"], end["id"]]}
    return parse(json.dumps(settings).encode(), vocabulary)


def read_merges(path: Path) -> list[list[str]]:
    """The pairs in a ``merges.txt``, whose first line may be a comment.

    Raises:
        ExportError: a line is no pair.
    """
    lines = read(path).decode("utf-8", "replace").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise ExportError(f"{path} holds {' '.join(wrong)[:40]!r}, which is no pair of tokens")
    return pairs


def pad_token(folder: Path) -> str | None:
    """What the folder's settings call the padding token; None where they do not say."""
    path = folder / "tokenizer_config.json"
    token = read_json(path).get("pad_token") if path.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def read(path: Path) -> bytes:
    """A file that is small enough to be a tokenizer's.

    Raises:
        ExportError: it is not there, or too large.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ExportError(f"{path} has {path.stat().st_size:,} bytes; a tokenizer has at most {LARGEST_FILE:,}")
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror})") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object")
    return value


def parse(data: bytes, path: Path) -> Tokenizer:
    """A tokenizer of the tokenizers library.

    Raises:
        ExportError: it is none.
    """
    with refusing(path):
        return Tokenizer.from_buffer(data)


def try_out(tokenizer: Tokenizer, where: object) -> None:
    """Encode once what a tokenizer must be able to: one may load and yet not know what to do with an unknown word.

    Raises:
        ExportError: it fails.
    """
    with refusing(where):
        for probe in PROBES:
            tokenizer.encode(probe)


@contextmanager
def refusing(where: object) -> Iterator[None]:
    """Whatever the tokenizers library raises becomes an ExportError of one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in the library's Rust is no Exception
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{where} is no tokenizer of the tokenizers library ({reason})") from error
