"""Learned words by name: which there are, and where a prompt names them.

The web interfaces compare the tokens of a name with those of a prompt, so that case and spaces do not matter, and of
several names that begin at a place they take the longest. Here words and signs are compared, which comes to the same,
but that a name is found beside any sign: of "<cat-toy>," CLIP's tokenizer makes one token of the last two signs.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.embeddings.file import Embedding, read_embedding
from runtime.errors import RequestError
from runtime.prompt_syntax import parse

WORD = re.compile(r"\w+|[^\w\s]")
PREFIX = ["embedding", ":"]  # as ComfyUI writes it
# What cannot but name a learned word. "<lora:x:1>" is another matter, and "<3" is text.
ABSENT = re.compile(r"<\w[^<>\s:]*>\w*|\bembedding:\s*[^\s,()\[\]]+", re.IGNORECASE)
KINDS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL"}

Words = tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """What an embedding must be, for a model.

    Attributes:
        model: its name.
        embedding_dim: D of its text encoder.
        room: vectors that fit into a chunk of a prompt.
    """

    model: str
    embedding_dim: int
    room: int

    def check(self, embedding: Embedding) -> Embedding:
        """The embedding, if it fits.

        Raises:
            RequestError: its vectors are of another width, or too many.
        """
        count, width = embedding.vectors.shape
        if width != self.embedding_dim:
            kind = f", as those of {KINDS[width]} have" if width in KINDS else ""
            raise RequestError(
                f"the embedding {embedding.name!r} has vectors of {width} numbers{kind}; "
                f"{self.model} takes {self.embedding_dim}, so it was learned for another model"
            )
        if count > self.room:
            raise RequestError(f"the embedding {embedding.name!r} has {count} vectors; {self.model} reads {self.room}")
        return embedding


class Embeddings:
    """Learned words that prompts may name. Nothing of it changes, so threads may share it.

    A folder's files are read when a prompt first names them, and kept.
    """

    def __init__(self, fit: Fit, given: Iterable[Embedding] = (), files: Iterable[Path] = ()) -> None:
        """Put names in order.

        Args:
            fit: what each must be.
            given: each is called by its name and its token.
            files: each is called by its name without suffix, where nothing before it is called so.

        Raises:
            RequestError: one of ``given`` does not fit, has no name that could be typed, or the name of another.
        """
        self.fit, self._lock = fit, threading.Lock()
        self._named: dict[Words, Embedding | Path] = {}
        for embedding in map(fit.check, given):
            for name in dict.fromkeys((embedding.name, embedding.token or embedding.name)):
                words = words_of(name)
                if not words or words in self._named:
                    why = "has no letter that could be typed" if not words else "is given to two embeddings"
                    raise RequestError(f"the name {name!r} {why}; give another one: NAME=FILE")
                self._named[words] = embedding
        for path in files:
            words = words_of(path.stem)
            if words:
                self._named.setdefault(words, path)
        self._lengths: dict[str, list[int]] = {}  # by a name's first word, the longest first
        for length in sorted({len(words) for words in self._named}, reverse=True):
            for first in {words[0] for words in self._named if len(words) == length}:
                self._lengths.setdefault(first, []).append(length)

    def __bool__(self) -> bool:
        return bool(self._named)

    def described(self, prompts: Iterable[str]) -> list[dict[str, Any]]:
        """Those that prompts name, as JSON: name, file's hash, number of vectors.

        Raises:
            RequestError: as ``named_in``.
        """
        found = dict.fromkeys(each for prompt in prompts for each in self.named_in(prompt))
        return [{"name": each.name, "sha256": each.sha256, "vectors": len(each.vectors)} for each in found]

    def named_in(self, prompt: str) -> list[Embedding]:
        """Those that a prompt names, in its order, each once.

        Raises:
            RequestError: one is a file of a folder that cannot be read, or does not fit.
        """
        if not self:
            return []
        pieces = (piece.text for section in parse(prompt).sections for piece in section)
        found = (part for text in pieces for part in self.split(text) if isinstance(part, Embedding))
        return list(dict.fromkeys(found))

    def split(self, text: str) -> list[str | Embedding]:
        """A text without any syntax as what it names, and what stands before, between and behind.

        Raises:
            RequestError: as ``named_in``.
        """
        if not self:
            return [text]
        text = unicodedata.normalize("NFC", text)  # as names are, and as CLIP's tokenizer has it
        places = [found.span() for found in WORD.finditer(text)]
        words = [text[begin:end].lower() for begin, end in places]
        parts: list[str | Embedding] = []
        i = free = behind = 0  # the word that is looked at; the first word, and sign of the text, that no name has
        while i < len(words):
            name = self._name_at(text, places, words, i)
            if name is None:
                i += 1
                continue
            embedding = self._embedding(name)
            first, end = i, behind_vectors(words, i + len(name), name, len(embedding.vectors))
            if first > free and words[first - 1] == "<" and words[end : end + 1] == [">"]:
                first, end = first - 1, end + 1
            if first - len(PREFIX) >= free and words[first - len(PREFIX) : first] == PREFIX:
                first -= len(PREFIX)
            parts += [text[behind : places[first][0]], embedding]
            i = free = end
            behind = places[end - 1][1]
        return [part for part in (*parts, text[behind:]) if part]

    def _name_at(self, text: str, places: Sequence[tuple[int, int]], words: Sequence[str], i: int) -> Words | None:
        """The longest name that begins at word i. ``<token>_1`` is another than ``<token>``."""
        for length in self._lengths.get(words[i], ()):
            name = tuple(words[i : i + length])
            if name in self._named:
                end = places[i + len(name) - 1][1]
                if not re.match(r"_\d", text[end : end + 2]):
                    return name
        return None

    def _embedding(self, name: Words) -> Embedding:
        with self._lock:
            found = self._named[name]
            if isinstance(found, Path):
                found = self._named[name] = self.fit.check(read_embedding(found))
            return found


def words_of(name: str) -> Words:
    """A name as it is compared; empty if it has no letter and no digit."""
    words = tuple(word.lower() for word in WORD.findall(unicodedata.normalize("NFC", name)))
    return words if any(re.match(r"\w", word) for word in words) else ()


def behind_vectors(words: Sequence[str], i: int, name: Words, count: int) -> int:
    """Where a name ends that ends at word i by itself, counting "name_1 name_2 ..." behind it if all are there.

    So diffusers writes a word of several vectors, each by its own name.
    """
    end = i
    for k in range(1, count):
        spelt = (*name[:-1], f"{name[-1]}_{k}") if re.match(r"\w", name[-1]) else (*name, f"_{k}")
        if tuple(words[end : end + len(spelt)]) != spelt:
            return i
        end += len(spelt)
    return end


def absent_names(text: str) -> list[str]:
    """What a text without any syntax, and without the names that are known, still calls a learned word."""
    return list(dict.fromkeys(ABSENT.findall(text)))
