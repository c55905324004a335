"""Where this machine keeps optimised graphs: a folder of bounded size, which may be removed at any time.

An entry is a folder, named by its key, with an optimised graph, its weights as external data, and ``entry.json``: what
the graph was made from and by, and size and SHA-256 of both files. It is made aside and moved into place as a whole.
Nothing in it is believed: an entry that is not exactly what its JSON says, or whose JSON does not say exactly what is
looked for, is no entry. A hash is computed once and remembered for as long as the file stays what it was
(``runtime.verified``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.cancel import check_cancelled
from runtime.errors import BundleError, RequestError, printable
from runtime.external_data import check_external_data
from runtime.file_lock import file_lock
from runtime.verified import CACHE_VARIABLE, cache_folder, hash_file, is_ours, remember_moved, sha256

FOLDER = "graphs"
KEY = re.compile("[0-9a-f]{32}")
ENTRY, MODEL, WEIGHTS = "entry.json", "model.onnx", "weights.data"
LIMIT_VARIABLE = "DIFFUSION_ANYWHERE_CACHE_GB"
DEFAULT_LIMIT_GB = 12.0  # a full-size Stable Diffusion, twice
MAX_LIMIT_GB = 1e6
DISK_SHARE = 0.5  # of what is free, and of what the cache holds already
MAX_ENTRY_BYTES = 2**16
MAX_GRAPH_BYTES = 2**28  # of an optimised graph without its weights
# Whoever waits longer has nearly loaded the graph without the cache.
PATIENCE = 30.0  # seconds
# Smaller graphs load fast enough as they are. The smallest network of Stable Diffusion 1.5 has 137 MB.
LEAST_BYTES = 64 * 10**6

Facts = Mapping[str, Any]


class Stale(Exception):  # noqa: N818 - nobody but the cache sees it
    """An entry that is not to be used, and why."""


@dataclass(frozen=True)
class Entry:
    """A checked entry: its folder, and its graph, byte for byte what was checked."""

    folder: Path
    model: bytes


@dataclass(frozen=True)
class Listed:
    """An entry as a list shows it.

    Attributes:
        key: its name.
        size: in bytes.
        used: seconds since the epoch, when it was used last.
        title: what it is of, in words; empty where that cannot be read.
    """

    key: str
    size: int
    used: float
    title: str


def default_cache() -> GraphCache | None:
    """The cache that networks are loaded with; None where it is switched off, or there is no home folder.

    Raises:
        RequestError: $DIFFUSION_ANYWHERE_CACHE_GB is no size.
    """
    limit, folder = limit_bytes(), own_folder()
    return GraphCache(folder, limit) if limit and folder else None


def user_cache() -> GraphCache:
    """The cache of this user, switched off or not.

    Raises:
        RequestError: $DIFFUSION_ANYWHERE_CACHE_GB is no size, or there is nowhere to keep anything.
    """
    folder = own_folder()
    if folder is None:
        raise RequestError(f"there is no home folder that could hold a cache; let {CACHE_VARIABLE} name a folder")
    return GraphCache(folder, limit_bytes())


def own_folder() -> Path | None:
    try:
        return cache_folder() / FOLDER
    except RuntimeError:  # there is no home folder
        return None


def limit_bytes() -> int:
    said = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GB)
    try:
        limit = float(said)
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= MAX_LIMIT_GB:
        raise RequestError(f"{LIMIT_VARIABLE} is {said!r}; it must be a number of gigabytes, or 0 for no cache")
    return int(limit * 1e9)


def key_of(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class GraphCache:
    """The folder and its bounds.

    Attributes:
        folder: made when something is put there.
        limit: bytes of all entries together; never more than half of the disk that they could have.
        least: bytes of a graph with its weights, from which on it is kept.
        patience: seconds to wait for another process that makes the same entry.
    """

    folder: Path
    limit: int
    least: int = LEAST_BYTES
    patience: float = PATIENCE

    def find(self, facts: Facts) -> Entry | None:
        """The entry that was made of exactly this; None where there is none.

        Raises:
            Stale: there is one, but it is not to be believed.
        """
        folder = self.folder / key_of(facts)
        try:
            if not os.path.lexists(folder):
                return None
            entry = Entry(folder, checked_entry(folder, facts))
        except OSError as error:
            raise Stale(f"it cannot be read ({error.strerror or error})") from error
        with contextlib.suppress(OSError):
            os.utime(folder / ENTRY)  # when it was used last
        return entry

    @contextlib.contextmanager
    def locked(self, facts: Facts) -> Iterator[bool]:
        """Make an entry alone; False if another process made it for too long.

        Raises:
            OSError: the folder cannot be written to.
            Cancelled: while waiting.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(self.lock_path(key_of(facts)), self.patience) as held:
            yield held

    def lock_path(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    @contextlib.contextmanager
    def aside(self, facts: Facts) -> Iterator[Path]:
        """A folder in which an entry is made, whose lock is held; it is gone after the block, unless it was added."""
        key = key_of(facts)
        for left in self.folder.glob(f".{key}.*"):  # by a process that was killed
            discard(left)
        folder = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, facts: Facts, aside: Path, title: str) -> None:
        """Put what was made in ``aside``, a graph and its weights, in the place of an entry, and keep to the limit.

        Raises:
            OSError: it cannot be written, or is larger than the whole cache may be.
            BundleError: the graph is not whole.
            Cancelled: while its hashes were computed.
        """
        sizes = {name: (aside / name).stat().st_size for name in (MODEL, WEIGHTS)}
        if sizes[MODEL] > MAX_GRAPH_BYTES:
            raise OSError(f"the graph alone has {sizes[MODEL]} bytes")
        check_graph((aside / MODEL).read_bytes(), sizes[WEIGHTS])
        if sum(sizes.values()) > self.allowed():
            raise OSError(f"it takes {sum(sizes.values()) / 1e9:.1f} GB of {self.allowed() / 1e9:.1f} that may be used")
        files, before = {}, {}
        for name, size in sizes.items():
            (aside / name).chmod(0o600)
            sync(aside / name)
            before[name] = (aside / name).stat()
            files[name] = {"size": size, "sha256": hash_file(aside / name)}
        (aside / ENTRY).write_text(json.dumps({"title": title, "facts": facts, "files": files}, indent=1))
        (aside / ENTRY).chmod(0o600)
        sync(aside / ENTRY)
        check_cancelled()
        place = self.folder / key_of(facts)
        if os.path.lexists(place):
            self.remove(place.name)
        os.rename(aside, place)
        for name, status in before.items():
            remember_moved(place / name, status, str(files[name]["sha256"]))
        self.make_room(0, keep=place.name)

    def make_room(self, needed: int, keep: str = "") -> None:
        """Remove entries, those that were not used for longest first, until so many bytes more may be used."""
        self.sweep()
        held, allowed = self.held(), self.allowed()
        for entry in self.entries():
            if held + needed <= allowed:
                return
            if entry.key != keep:
                self.remove(entry.key)
                held -= entry.size

    def held(self) -> int:
        return sum(entry.size for entry in self.entries())

    def allowed(self) -> int:
        """Bytes that all entries together may have."""
        return min(self.limit, int(DISK_SHARE * (shutil.disk_usage(self.folder).free + self.held())))

    def entries(self) -> list[Listed]:
        """All entries, good or not; what was not used for longest comes first."""
        with contextlib.suppress(OSError):
            names = [each.name for each in self.folder.iterdir() if KEY.fullmatch(each.name)]
            return sorted((listed(self.folder / name) for name in names), key=lambda entry: (entry.used, entry.key))
        return []

    def remove(self, key: str) -> None:
        """Remove an entry: first out of its place, so that nobody finds half of one."""
        out = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.folder))
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(self.folder / key, out / key)
        discard(out)

    def sweep(self) -> None:
        """Remove what processes left behind that were killed: folders aside whose lock nobody holds, and locks."""
        left_behind = (re.fullmatch(r"\.?([0-9a-f]{32})\..+", each.name) for each in self.folder.iterdir())
        for key in {found[1] for found in left_behind if found}:
            with file_lock(self.lock_path(key), patience=0) as held:
                if not held:
                    continue
                for left in self.folder.glob(f".{key}.*"):
                    discard(left)
                with contextlib.suppress(OSError):  # Windows removes no file that is open
                    self.lock_path(key).unlink()

    def clear(self) -> list[Listed]:
        """Remove every entry; returns them. What another process is making just now stays.

        Raises:
            OSError: one cannot be removed.
        """
        found = self.entries()
        for entry in found:
            self.remove(entry.key)
        if self.folder.exists():
            self.sweep()
        return found


def checked_entry(folder: Path, facts: Facts) -> bytes:
    """The graph of an entry, after all of the entry has been checked.

    Raises:
        Stale: it is not what it should be.
        OSError: a file cannot be read.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or not owned(status):
        raise Stale("it is no folder of this user's own")
    files = recorded_files(folder, facts)
    for name in (MODEL, WEIGHTS):
        status = plain(folder / name)
        if status.st_size != files[name]["size"]:
            raise Stale(f"{name} has {status.st_size} bytes, not {files[name]['size']}")
    if files[MODEL]["size"] > MAX_GRAPH_BYTES:
        raise Stale(f"{MODEL} is too large")
    model = (folder / MODEL).read_bytes()
    hashes = {MODEL: hashlib.sha256(model).hexdigest(), WEIGHTS: sha256(folder / WEIGHTS)}
    for name, found in hashes.items():
        if found != files[name]["sha256"]:
            raise Stale(f"{name} was altered or damaged")
    try:
        check_graph(model, files[WEIGHTS]["size"])
    except BundleError as error:
        raise Stale(str(error)) from error
    return model


def check_graph(model: bytes, weights: int) -> None:
    """See that all weights of an optimised graph lie in the one file beside it.

    Raises:
        BundleError: one lies elsewhere, or beyond the end of the file.
    """
    check_external_data(model, MODEL, {WEIGHTS: weights})


def recorded_files(folder: Path, facts: Facts) -> dict[str, Any]:
    """What ``entry.json`` says of the two files.

    Raises:
        Stale: it is not for these facts, or no such JSON.
        OSError: it cannot be read.
    """
    if plain(folder / ENTRY).st_size > MAX_ENTRY_BYTES:
        raise Stale(f"{ENTRY} is too large")
    try:
        value = json.loads((folder / ENTRY).read_bytes())
        if value["facts"] != facts:
            raise Stale("it was made of another graph, or elsewhere")
        files: dict[str, Any] = {name: dict(value["files"][name]) for name in (MODEL, WEIGHTS)}
        good = all(type(file["size"]) is int and isinstance(file["sha256"], str) for file in files.values())
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Stale(f"{ENTRY} is damaged") from error
    if not good:
        raise Stale(f"{ENTRY} is damaged")
    return files


def plain(path: Path) -> os.stat_result:
    """The status of a plain file of this user.

    Raises:
        Stale: it is a symbolic link, no file, or others may write to it.
        OSError: it is not there.
    """
    status = path.lstat()
    if not is_ours(status):
        raise Stale(f"{path.name} is no plain file of this user's own")
    return status


def owned(status: os.stat_result) -> bool:
    return os.name != "posix" or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def listed(folder: Path) -> Listed:
    """An entry for a list; what of it cannot be read is left out."""
    size, used, title = 0, 0.0, ""
    with contextlib.suppress(OSError):
        size = sum(each.lstat().st_size for each in folder.iterdir())
    with contextlib.suppress(OSError, Stale, ValueError, TypeError, KeyError, RecursionError):
        status = plain(folder / ENTRY)
        used = status.st_mtime
        if status.st_size <= MAX_ENTRY_BYTES:
            title = printable(str(json.loads((folder / ENTRY).read_bytes())["title"]))[:100]
    return Listed(folder.name, size, used, title)


def discard(path: Path) -> None:
    """Remove a folder, or what lies in the place of one; a symbolic link itself, not what it leads to.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def sync(path: Path) -> None:
    """Have a file on the disk before it is said to be there."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
