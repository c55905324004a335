"""Paths from people, which may be none, and the hashes of what lies there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from training.errors import CheckpointError


def exists(path: Path) -> bool:
    """Whether there is a file or a folder.

    Raises:
        CheckpointError: that cannot be found out: the name is too long, or a folder on the way is closed.
    """
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{str(path)[:100]!r} is no path to a checkpoint ({reason})") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, without holding the file in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
