"""A checkpoint's folder in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

from training.stable_diffusion.tokenizer import TOKENIZER_FILE


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer of a checkpoint's folder, or CLIP's own, as which its is meant."""
    for name in ("tokenizer.json", "tokenizer/tokenizer.json"):
        if (folder / name).is_file():
            return folder / name
    return TOKENIZER_FILE
