"""Randomness that can be found again: a generator of its own for everything that is drawn.

Names are hashed, so that neighbours share nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def generator(seed: int, kind: str, index: int) -> torch.Generator:
    """A CPU generator of its own for each (seed, kind, index)."""
    return torch.Generator().manual_seed(int.from_bytes(digest(seed, kind, index)[:8], "big", signed=True))


def array_generator(seed: int, kind: str, index: int) -> np.random.Generator:
    """NumPy's, of its own for each (seed, kind, index)."""
    return np.random.default_rng(int.from_bytes(digest(seed, kind, index), "big"))


def digest(seed: int, kind: str, index: int) -> bytes:
    return hashlib.sha256(f"{seed}/{kind}/{index}".encode()).digest()
