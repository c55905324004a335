"""CLIP's tokenizer as the runtime has it, without a bundle around it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from runtime.bundle import File, TextConditioning
from runtime.prompt import PromptTokenizer
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

MAX_LENGTH, BOS, EOS, VOCAB_SIZE = 77, 49406, 49407, 49408


class Folder:
    """As much of a bundle as a tokenizer needs."""

    name, folder = "clip", TOKENIZER_FILE.parent

    def read(self, file: File) -> bytes:
        return Path(self.folder / file.name).read_bytes()


def clip_tokenizer(known_words: tuple[str, ...] | None = None) -> PromptTokenizer:
    data = TOKENIZER_FILE.read_bytes()
    file = File(TOKENIZER_FILE.name, len(data), hashlib.sha256(data).hexdigest())
    conditioning = TextConditioning(file, MAX_LENGTH, BOS, EOS, EOS, VOCAB_SIZE, 768, 12, 0, known_words)
    return PromptTokenizer(Folder(), conditioning)  # type: ignore[arg-type]
