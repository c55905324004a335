"""Files that are either the old ones or the new ones, whole, whenever the process ends."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from training.errors import OutputError


def write(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and move it into place; the folder is made if need be.

    The file aside has one name, so that what a killed process left is overwritten by the next one and never piles up.

    Raises:
        OutputError: the folder cannot be made or written to, or the disk is full; ``path`` is as it was.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from error


def make_folder(folder: Path) -> None:
    """Make ``folder`` and find out before an hour's work, not after it, whether files can be made there.

    Raises:
        OutputError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of another name in each process of a distributed run
            pass
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to ({error.strerror or error}); choose another --out") from error
