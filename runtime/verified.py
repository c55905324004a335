"""SHA-256 of large files, computed once and remembered for as long as the file stays what it was.

Hashing 3.4 GB takes longer than loading them. So what has been hashed is kept in a small JSON file in the user's cache
folder, by path, size, times of change and inode. That file is a convenience: one that is broken, too large, someone
else's or not writable is ignored, and then every load hashes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runtime.cancel import check_cancelled
from runtime.errors import BundleError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "DIFFUSION_ANYWHERE_CACHE"
CACHE_FILE = "verified.json"
CACHE_FORMAT = 1
MAX_CACHE_BYTES = 2**20
MAX_ENTRIES = 1000
CHUNK_BYTES = 2**24
SAID_ABOVE = 2**28  # bytes that take long enough to say so
SAID_EVERY = 2**30
# Times of files advance in ticks of up to 10 ms: what was written a moment ago could be written again unnoticed.
SETTLED_NS = 20 * 10**6


def check_sha256(path: Path, expected: str) -> None:
    """See that a file has a hash, or remember that it had when it last was looked at.

    Raises:
        BundleError: another hash, or the file cannot be read.
    """
    try:
        actual = sha256(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error})") from error
    compare_sha256(path, actual, expected)


def compare_sha256(path: Path, actual: str, expected: str) -> None:
    if actual != expected:
        raise BundleError(
            f"{path} does not have the SHA-256 of the manifest; it was altered or damaged: fetch it again"
        )


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits; from memory where the file has not changed since.

    Raises:
        OSError: the file cannot be read.
    """
    key = str(path.resolve())
    status = path.stat()
    before = identity(status)
    known = read_cache().get(key)
    if isinstance(known, dict) and known.get("identity") == before and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    settled = is_settled(status)
    digest = hash_file(path)
    if settled and identity(path.stat()) == before:  # else it was written to meanwhile
        remember(key, {"identity": before, "sha256": digest})
    return digest


def remember_moved(path: Path, status: os.stat_result, digest: str) -> None:
    """Remember the hash of a file that was hashed under another name, with ``status`` before, and moved to ``path``.

    Raises:
        OSError: the file cannot be looked at.
    """
    if is_settled(status) and identity(path.stat()) == identity(status):
        remember(str(path.resolve()), {"identity": identity(status), "sha256": digest})


def is_settled(status: os.stat_result) -> bool:
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS


def identity(status: os.stat_result) -> list[int]:
    """What changes when a file does. The time of the inode's change cannot be set back as that of the contents can."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    done, said = 0, 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size >= SAID_ABOVE:
            logger.info("checking the SHA-256 of %s (%.1f GB); the result is remembered", path.name, size / 1e9)
        while chunk := file.read(CHUNK_BYTES):
            check_cancelled()
            digest.update(chunk)
            done += len(chunk)
            if done // SAID_EVERY > said:
                said = done // SAID_EVERY
                logger.info("checking %s: %d of %.1f GB", path.name, done // 10**9, size / 1e9)
    return digest.hexdigest()


def cache_folder() -> Path:
    """$DIFFUSION_ANYWHERE_CACHE, or where this platform keeps caches."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "diffusion-anywhere"


def read_cache() -> dict[str, Any]:
    """What is remembered; empty where the file is missing, broken, or could have been written by someone else."""
    try:
        path = cache_folder() / CACHE_FILE
        if not is_ours(path.stat()):
            return {}
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_CACHE_BYTES))
    except (OSError, ValueError, RecursionError, RuntimeError):  # RuntimeError: there is no home folder
        return {}
    if not isinstance(value, dict) or value.get("format") != CACHE_FORMAT or not isinstance(value.get("files"), dict):
        return {}
    files: dict[str, Any] = value["files"]
    return files


def is_ours(status: os.stat_result) -> bool:
    """A plain file of this user that nobody else may write to."""
    if not stat.S_ISREG(status.st_mode):
        return False
    return os.name != "posix" or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def remember(key: str, entry: dict[str, Any]) -> None:
    """Add an entry, the oldest going first; where that cannot be done nothing happens."""
    files = read_cache()
    files.pop(key, None)
    kept = dict(list(files.items())[-(MAX_ENTRIES - 1) :])
    text = json.dumps({"format": CACHE_FORMAT, "files": {**kept, key: entry}}, indent=1)
    aside = None
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=f".{CACHE_FILE}.", dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(aside, folder / CACHE_FILE)
    except (OSError, RuntimeError) as error:
        logger.debug("the SHA-256 is not remembered (%s)", error)
        if aside is not None:
            with contextlib.suppress(OSError):
                os.unlink(aside)
