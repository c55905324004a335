"""Whether a checkpoint's files stay as they are while they are exported.

Weights are mapped into memory and read when they are needed, and the hash is taken of the file as it lies there then.
Of a file that is replaced or rewritten meanwhile, the manifest would state the hash of other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.errors import ExportError
from training.paths import exists
from training.stable_diffusion.checkpoint.tensor_files import ENDINGS

Fingerprint = tuple[int, ...]
READ = (*ENDINGS, ".json")


def fingerprint(path: Path) -> Fingerprint:
    """What changes when a file is replaced or rewritten; empty where there is none."""
    if not exists(path):
        return ()
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def fingerprints(*sources: Path) -> dict[Path, Fingerprint]:
    """Fingerprints of files, and of what is read in folders and the folders in them, by path.

    Raises:
        CheckpointError: a name is none that a file can have.
    """
    found: dict[Path, Fingerprint] = {}
    for source in sources:
        inside = [*source.glob("*"), *source.glob("*/*")] if exists(source) and source.is_dir() else [source]
        found |= {path: fingerprint(path) for path in inside if path == source or path.suffix in READ}
    return found


def check_unchanged(before: Mapping[Path, Fingerprint]) -> None:
    """See that files are what they were when ``fingerprints`` was asked.

    Raises:
        ExportError: one is not.
    """
    for path, known in before.items():
        if fingerprint(path) != known:
            raise ExportError(
                f"{path} was changed while it was exported, as a training run does every few minutes; try again, or "
                "export a copy"
            )
