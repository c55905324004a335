"""Paths from people, which may be none."""

from __future__ import annotations

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
