"""From a prompt to the ids that a text encoder takes (``docs/bundle.md``, section "Conditioning")."""

from __future__ import annotations

import re
import warnings

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle, TextConditioning
from runtime.errors import BundleError, PromptWarning, RequestError

Int64 = npt.NDArray[np.int64]

# CLIP's own is 4 MB. A million characters take about two seconds and 200 MB, and no text encoder sees so many.
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_CHARACTERS = 10**6
SHOWN = 60  # characters of a prompt that a message repeats


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

    def ids(self, prompt: str) -> Int64:
        """The ids of a prompt, int64 (1, max_length): begin, the prompt as far as it fits, end, padding.

        Warns where something did not fit, or where a model of a small world does not know a word.

        Raises:
            RequestError: the prompt is no text, or longer than a million characters.
            BundleError: the tokenizer gives ids that the text encoder does not have.
        """
        text, room = self.conditioning, self.conditioning.max_length - 2
        check_text(prompt)
        encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        if len(encoding.ids) > room:
            rest = shortened(prompt[encoding.offsets[room][0] :])
            warnings.warn(
                f"the prompt has {len(encoding.ids)} tokens, of which {room} fit; cut off is {rest!r}",
                PromptWarning,
                stacklevel=2,
            )
        self.warn_of_unknown_words(prompt)
        kept = encoding.ids[:room]
        if kept and max(kept) >= text.vocab_size:
            raise BundleError(f"the tokenizer of {self.name} gives id {max(kept)}, but vocab_size is {text.vocab_size}")
        padding = [text.pad_token_id] * (room - len(kept))
        return np.array([[text.bos_token_id, *kept, text.eos_token_id, *padding]], np.int64)

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


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
