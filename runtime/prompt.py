"""From a prompt to the ids that a text encoder takes (``docs/bundle.md``, section "Conditioning").

A text encoder reads ``max_length`` ids at once. A longer prompt is read in chunks, as the web interfaces do: a chunk
that is full ends after its last comma, if that is among its last ``COMMA_WITHIN`` tokens.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle, TextConditioning
from runtime.cancel import check_cancelled
from runtime.errors import BundleError, PromptWarning, RequestError
from runtime.prompt_syntax import Piece, parse

Int64 = npt.NDArray[np.int64]

# CLIP's own is 4 MB. A million characters take about two seconds and 200 MB, and no text encoder sees so many.
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_CHARACTERS = 10**6
SHOWN = 60  # characters of a prompt that a message repeats
# Time and memory grow with every chunk, and nobody types so many.
MAX_CHUNKS = 32
COMMA_WITHIN = 20  # tokens

Token = tuple[int, float]  # id and weight


@dataclass(frozen=True)
class Chunk:
    """As much of a prompt as the text encoder reads at once.

    Attributes:
        ids: int64 (1, max_length).
        weights: how many times as much as usual each token counts, float64 (max_length,).
    """

    ids: Int64
    weights: npt.NDArray[np.float64]


class PromptTokenizer:
    """A bundle's tokenizer; threads may share it."""

    def __init__(self, bundle: Bundle, conditioning: TextConditioning) -> None:
        """Read the tokenizer after its hash has been checked.

        Raises:
            BundleError: the file is damaged, too large, or not a tokenizer.
        """
        from tokenizers import Tokenizer  # a fifth of the time of `import runtime`, and classes need none of it

        self.name, self.conditioning = bundle.name, conditioning
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
            RequestError: the prompt is no text, or longer than a million characters.
            BundleError: the tokenizer gives ids that the text encoder does not have.
        """
        check_text(prompt)
        parsed = parse(prompt)
        for note in parsed.notes:
            warnings.warn(note, PromptWarning, stacklevel=2)
        self.warn_of_unknown_words(" ".join(piece.text for section in parsed.sections for piece in section))
        found = [
            chunk for section in parsed.sections for chunk in divided(self._weighted(section), self.room, self._comma)
        ]
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
        return [self._chunk(tokens) for tokens in found[:MAX_CHUNKS]]

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

    def _weighted(self, section: Sequence[Piece]) -> list[Token]:
        return [(token, piece.weight) for piece in section for token in self._tokens(piece.text)]

    def _framed(self, ids: Sequence[int]) -> Int64:
        text = self.conditioning
        padding = [text.pad_token_id] * (self.room - len(ids))
        return np.array([[text.bos_token_id, *ids, text.eos_token_id, *padding]], np.int64)

    def _chunk(self, tokens: Sequence[Token]) -> Chunk:
        weights = np.ones(self.conditioning.max_length)
        weights[1 : 1 + len(tokens)] = [weight for _, weight in tokens]
        return Chunk(self._framed([token for token, _ in tokens]), weights)

    def warn_of_unknown_words(self, prompt: str) -> None:
        if self.conditioning.known_words is None:
            return
        known = set(self.conditioning.known_words)
        unknown = [word for word in dict.fromkeys(re.findall(r"\w+(?:-\w+)*", prompt.lower())) if word not in known]
        if unknown:
            warnings.warn(
                f"{self.name} was not trained with {shortened(', '.join(unknown))!r}; "
                f"it knows: {', '.join(self.conditioning.known_words)}",
                PromptWarning,
                stacklevel=3,
            )


def divided(tokens: Sequence[Token], room: int, comma: int | None) -> list[Sequence[Token]]:
    """A section's tokens in chunks of at most ``room``; one that is empty, if there are none."""
    chunks: list[Sequence[Token]] = []
    begin, last_comma = 0, -1
    for end, (token, _) in enumerate(tokens):
        if token == comma:
            last_comma = end
        if end - begin == room:
            after_comma = token != comma and last_comma >= max(begin, end - COMMA_WITHIN)
            cut = last_comma + 1 if after_comma else end
            chunks.append(tokens[begin:cut])
            begin = cut
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


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
