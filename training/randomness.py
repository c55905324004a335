"""Randomness that can be found again: a generator of its own for everything that is drawn."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, kind: str, index: int) -> torch.Generator:
    """A CPU generator of its own for each (seed, kind, index): hashed, so that neighbours share nothing."""
    digest = hashlib.sha256(f"{seed}/{kind}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
