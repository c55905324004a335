"""Captions to token ids, by CLIP's tokenizer and padded as the pipeline pads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.stable_diffusion.pocket.captions import known_words
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

MAX_LENGTH = 77
END = 49407  # also what fills up


@cache
def tokenizer() -> Tokenizer:
    loaded = Tokenizer.from_file(str(TOKENIZER_FILE))
    loaded.enable_padding(pad_id=END, length=MAX_LENGTH)
    return loaded


def encode(texts: Sequence[str]) -> Tensor:
    """int64 (B, 77): begin, the text, end, and ends up to the full length."""
    return torch.tensor([encoding.ids for encoding in tokenizer().encode_batch(list(texts))])


def known_token_ids() -> Tensor:
    """The tokens of all words that captions have, of their comma, and begin and end; int64, sorted."""
    ids: Tensor = encode([*known_words(), ","]).unique()
    return ids
