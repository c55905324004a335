"""From a prompt to the ids that a text encoder takes (``docs/bundle.md``, section "Conditioning").

A text encoder reads ``max_length`` ids at once. A longer prompt is read in chunks, as the web interfaces do: a chunk
that is full ends after its last comma, if that is among its last ``COMMA_WITHIN`` tokens.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle, TextConditioning
from runtime.cancel import check_cancelled
from runtime.embeddings import Embedding, Embeddings, absent_names
from runtime.errors import BundleError, PromptWarning, RequestError
from runtime.prompt_syntax import Piece, Prompt, parse, shortened

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

# CLIP's own is 4 MB. A million characters take about two seconds and 200 MB, and no text encoder sees so many.
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_CHARACTERS = 10**6
# Time and memory grow with every chunk, and nobody types so many.
MAX_CHUNKS = 32
COMMA_WITHIN = 20  # tokens
MAX_NOTES = 4  # things that a warning names

Token = tuple[int, float]  # id and weight


@dataclass(frozen=True)
class Chunk:
    """As much of a prompt as the text encoder reads at once.

    Attributes:
        ids: int64 (1, max_length).
        weights: how many times as much as usual each token counts, float64 (max_length,).
        extra_embeddings: vectors of the words that the prompt names and others learned, float32 (K, embedding_dim), K
            at least 1, chosen by ids from the vocabulary's size on. Zeros where it names none.
    """

    ids: Int64
    weights: npt.NDArray[np.float64]
    extra_embeddings: Float32


class LearnedWords:
    """The rows of ``extra_embeddings`` for one prompt, in the order in which it names them."""

    def __init__(self, conditioning: TextConditioning) -> None:
        self.conditioning = conditioning
        self.ids: dict[Embedding, range] = {}

    def add(self, embedding: Embedding) -> range:
        """The ids of its vectors."""
        if embedding not in self.ids:
            first = self.conditioning.vocab_size + sum(map(len, self.ids.values()))
            self.ids[embedding] = range(first, first + len(embedding.vectors))
        return self.ids[embedding]

    def rows(self) -> Float32:
        if not self.ids:
            return np.zeros((1, self.conditioning.embedding_dim), np.float32)
        return np.concatenate([embedding.vectors for embedding in self.ids])

    def lengths(self) -> dict[int, int]:
        """How many ids belong together, by the first of them."""
        return {ids[0]: len(ids) for ids in self.ids.values()}


class PromptTokenizer:
    """A bundle's tokenizer; threads may share it."""

    def __init__(self, bundle: Bundle, conditioning: TextConditioning, embeddings: Embeddings | None = None) -> None:
        """Read the tokenizer after its hash has been checked.

        Args:
            bundle: where it comes from.
            conditioning: what the bundle says of texts.
            embeddings: words that prompts may name beside the vocabulary's.

        Raises:
            BundleError: the file is damaged, too large, or not a tokenizer.
        """
        from tokenizers import Tokenizer  # a fifth of the time of `import runtime`, and classes need none of it

        self.name, self.conditioning, self.embeddings = bundle.name, conditioning, embeddings
        path = bundle.folder / conditioning.tokenizer.name
        if conditioning.tokenizer.size > MAX_TOKENIZER_BYTES:
            raise BundleError(f"{path} is too large; a tokenizer has at most {MAX_TOKENIZER_BYTES} bytes")
        data = bundle.read(conditioning.tokenizer)
        try:
            self._tokenizer = Tokenizer.from_buffer(data)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic in the library's Rust is no Exception
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{path} is not a tokenizer of the tokenizers library ({reason})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def ids(self, text: str) -> Int64:
        """The ids of a text without any syntax, int64 (1, max_length): begin, as much as fits, end, padding.

        Raises:
            RequestError: it is no text, or longer than a million characters.
            BundleError: the tokenizer gives ids that the text encoder does not have.
        """
        check_text(text)
        return self._framed(self._tokens(text)[: self.room])

    @property
    def room(self) -> int:
        """Tokens that fit between begin and end."""
        return self.conditioning.max_length - 2

    def chunks(self, prompt: str) -> list[Chunk]:
        """What the text encoder reads of a prompt, at least one chunk.

        Warns where something is not read, or is not done here, or where a model of a small world does not know a word.

        Raises:
            RequestError: the prompt is no text, longer than a million characters, or names a file of an embedding that
                cannot be read or does not fit the model.
            BundleError: the tokenizer gives ids that the text encoder does not have.
        """
        check_text(prompt)
        parsed = parse(prompt)
        sections = [
            [(part, piece.weight) for piece in section for part in self._parts(piece)] for section in parsed.sections
        ]
        self._warn(parsed, [part for section in sections for part, _ in section if isinstance(part, str)])
        learned = LearnedWords(self.conditioning)
        weighted = [self._weighted(section, learned) for section in sections]
        lengths = learned.lengths()
        found = [chunk for tokens in weighted for chunk in divided(tokens, self.room, self._comma, lengths)]
        if len(found) > MAX_CHUNKS:
            count, read = sum(map(len, found)), sum(map(len, found[:MAX_CHUNKS]))
            # CLIP's tokenizer marks ends of words, and its file names no decoder that would put spaces there.
            rest = self._tokenizer.decode([token for token, _ in found[MAX_CHUNKS]]).replace("</w>", " ").strip()
            warnings.warn(
                f"the prompt has {count} tokens in {len(found)} chunks, of which {read} in {MAX_CHUNKS} are read; "
                f"cut off is {shortened(rest)!r}",
                PromptWarning,
                stacklevel=2,
            )
        extra_embeddings = learned.rows()
        return [self._chunk(tokens, extra_embeddings) for tokens in found[:MAX_CHUNKS]]

    def _parts(self, piece: Piece) -> Sequence[str | Embedding]:
        return [piece.text] if self.embeddings is None else self.embeddings.split(piece.text)

    def _warn(self, parsed: Prompt, texts: Sequence[str]) -> None:
        """Say in one warning what is not done here, and in others what is read as words, and not known as such."""
        absent = [
            f"{shortened(name)} is read as text: no embedding is called so"
            for each in texts
            for name in absent_names(each)
        ]
        notes = list(dict.fromkeys([*parsed.notes, *absent]))
        if notes:
            more = f"; and {len(notes) - MAX_NOTES} more such things" if len(notes) > MAX_NOTES else ""
            warnings.warn("; ".join(notes[:MAX_NOTES]) + more, PromptWarning, stacklevel=3)
        self.warn_of_unknown_words(" ".join(texts))

    @cached_property
    def _comma(self) -> int | None:
        """The id of a comma, if it is a token of its own."""
        ids = self._tokens(",")
        return ids[0] if len(ids) == 1 else None

    def _tokens(self, text: str) -> list[int]:
        check_cancelled()
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if ids and max(ids) >= self.conditioning.vocab_size:
            raise BundleError(
                f"the tokenizer of {self.name} gives id {max(ids)}, but vocab_size is {self.conditioning.vocab_size}"
            )
        return ids

    def _weighted(self, section: Sequence[tuple[str | Embedding, float]], learned: LearnedWords) -> list[Token]:
        """The tokens of parts of a prompt with their weights; a learned word's vectors all have that of the word."""
        return [
            (token, weight)
            for part, weight in section
            for token in (self._tokens(part) if isinstance(part, str) else learned.add(part))
        ]

    def _framed(self, ids: Sequence[int]) -> Int64:
        text = self.conditioning
        padding = [text.pad_token_id] * (self.room - len(ids))
        return np.array([[text.bos_token_id, *ids, text.eos_token_id, *padding]], np.int64)

    def _chunk(self, tokens: Sequence[Token], extra_embeddings: Float32) -> Chunk:
        weights = np.ones(self.conditioning.max_length)
        weights[1 : 1 + len(tokens)] = [weight for _, weight in tokens]
        return Chunk(self._framed([token for token, _ in tokens]), weights, extra_embeddings)

    def warn_of_unknown_words(self, prompt: str) -> None:
        if self.conditioning.known_words is None:
            return
        known = set(self.conditioning.known_words)
        unknown = [word for word in dict.fromkeys(re.findall(r"\w+(?:-\w+)*", prompt.lower())) if word not in known]
        if unknown:
            warnings.warn(
                f"{shortened(', '.join(map(repr, unknown)))} {'is' if len(unknown) == 1 else 'are'} "
                f"not in this model's world; it knows: {', '.join(self.conditioning.known_words)}",
                PromptWarning,
                stacklevel=4,
            )


def divided(
    tokens: Sequence[Token], room: int, comma: int | None, lengths: Mapping[int, int] = MappingProxyType({})
) -> list[Sequence[Token]]:
    """A section's tokens in chunks of at most ``room``; one that is empty, if there are none.

    ``lengths`` says how many tokens stay together, by the first of them. Where so many do not fit any more, the chunk
    ends before them, and not at a comma: so the web interfaces have it.
    """
    chunks: list[Sequence[Token]] = []
    begin, last_comma, end = 0, -1, 0
    while end < len(tokens):
        token, length = tokens[end][0], lengths.get(tokens[end][0], 1)
        if token == comma:
            last_comma = end
        if end - begin == room:
            after_comma = token != comma and last_comma >= max(begin, end - COMMA_WITHIN)
            cut = last_comma + 1 if after_comma else end
            chunks.append(tokens[begin:cut])
            begin = cut
        if end + length - begin > room:
            chunks.append(tokens[begin:end])
            begin = end
        end += length
    return [*chunks, tokens[begin:]]


def check_text(prompt: object) -> None:
    """Refuse what cannot be a prompt.

    Raises:
        RequestError: no string, too long, or with halves of surrogate pairs, which stand for bytes that are no UTF-8.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"a prompt must be a string, not {type(prompt).__name__}")
    if len(prompt) > MAX_CHARACTERS:
        raise RequestError(f"the prompt has {len(prompt)} characters; at most {MAX_CHARACTERS} are read")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt is not text: character {error.start + 1} is {prompt[error.start]!a}, "
            "half a surrogate pair; give it in UTF-8"
        ) from error


def texts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or several as a list.

    Raises:
        RequestError: one is no text, or longer than a million characters.
    """
    found = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str | bytes) else [prompt]
    for each in found:
        check_text(each)
    return found
