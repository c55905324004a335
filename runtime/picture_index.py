"""The index of a folder of pictures: what was asked, what came of it, and so what is left to draw.

``index.jsonl`` begins with ``{"format_version": 1, "seed": S}``. Each further line is a ``Record`` of one picture
(``docs/prompts.md``). While pictures are drawn lines are added, each before its picture is moved into place, and of two
with the same number the later one counts. So a process that is killed leaves no picture that the index does not know;
at worst it leaves half a last line, or a line whose picture is not there, and neither is taken for drawn. When a run
begins and when it ends the file is written anew, in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

from runtime.errors import BundleError, RequestError
from runtime.fields import Fields
from runtime.image import check_name, write_file

if sys.platform != "win32":
    import fcntl

INDEX = "index.jsonl"
FORMAT_VERSION = 1
MAX_INDEX_BYTES = 2**30
PICTURE = r"[0-9]{5}(-[a-z0-9-]+)?\.png"
ASIDE = re.compile(rf"\.(index\.jsonl|{PICTURE})\.[0-9a-f]{{8}}")  # what a killed process may leave
# Which machine drew a picture, and how, is not what was asked for.
MACHINE = {"provider", "onnxruntime", "version", "low_memory", "vae_tile"}
ANOTHER = "choose another folder"


@dataclass(frozen=True)
class Record:
    """What became of one picture of a list.

    Attributes:
        number: its place in the list, from 1; the file's name begins with it.
        line: of the list's file.
        asked: what that line says.
        settings: all that makes the picture, as its file's metadata has it.
        file, sha256: of the picture, if it was drawn.
        error: why it was not.
    """

    number: int
    line: int
    asked: dict[str, Any]
    settings: dict[str, Any]
    file: str | None = None
    sha256: str | None = None
    error: str | None = None

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, value: object, where: str) -> Record:
        """Read what ``to_json`` wrote.

        Raises:
            BundleError: something is missing, mistyped or left over, or the file is not one of this folder.
        """
        fields = Fields(value, where)
        facts = fields.count("number"), fields.count("line"), fields.take("asked", dict), fields.take("settings", dict)
        if "error" in fields.left:
            record = cls(*facts, error=fields.take("error", str))
        else:
            record = cls(*facts, file=fields.take("file", str), sha256=fields.take("sha256", str))
            if not re.fullmatch(PICTURE, str(record.file)):
                raise BundleError(f"{where}: file is {record.file!r}, which is no name of a picture here")
        fields.finish()
        return record


@dataclass
class Index:
    """The index of one folder.

    Attributes:
        folder: where it and the pictures lie.
        seed: of the list: a line without a seed takes picture k's from it.
        records: the last of each picture, by number.
    """

    folder: Path
    seed: int
    records: dict[int, Record]

    def keeps(self, wanted: Record, overwrite: bool) -> bool:
        """Whether a picture is there as it is wanted; with ``overwrite``, another one may be replaced.

        What is kept belongs from now on to the line that wants it, which may have moved.

        Args:
            wanted: with the ``file`` that it would be, whose ``sha256`` is not known yet.

        Raises:
            RequestError: a file is in the way: a picture of another request, an altered one, or not one of ours.
        """
        known = self.records.get(wanted.number)
        there = known is not None and known.file is not None and os.path.lexists(self.folder / known.file)
        path = self.folder / str(known.file if known and there else wanted.file)
        if known is None or not there:
            if not os.path.lexists(path):
                return False
            problem = f"{path} exists, and the index does not know it"
        elif difference := first_difference(known.settings, wanted.settings):
            problem = f"line {wanted.line} has changed since {path} was drawn: {difference}"
        elif sha256(path) != known.sha256:
            problem = f"{path} has been altered since it was drawn"
        else:
            self.records[wanted.number] = replace(known, line=wanted.line, asked=wanted.asked)
            return True
        if not overwrite:
            raise RequestError(f"{problem}; add --overwrite to draw it anew, or {ANOTHER}")
        return False

    def add(self, record: Record, data: bytes | None) -> None:
        """Note what became of a picture, and write it; of an older one with another name the file is removed.

        Raises:
            RequestError: one of the two cannot be written; the index is then as it was.
        """
        path, before = self.folder / INDEX, self.records.get(record.number)
        try:
            with path.open("ab", buffering=0) as stream:  # what is buffered would be written in spite of a failure
                end = stream.tell()
                try:
                    write_all(stream, f"{record.to_json()}\n".encode())
                    os.fsync(stream.fileno())
                    if data is not None:
                        write_file(self.folder / str(record.file), data)
                except (OSError, RequestError):  # not Ctrl-C, which may come when the picture is in place already
                    os.truncate(path, end)
                    raise
        except OSError as error:
            raise RequestError(f"{path} cannot be written ({error.strerror})") from error
        self.records[record.number] = record
        if data is not None and before is not None and before.file not in (None, record.file):
            with contextlib.suppress(OSError):
                (self.folder / str(before.file)).unlink()

    def save(self) -> None:
        """Write the whole file anew, in order.

        Raises:
            RequestError: it cannot be written; the old one is still there.
        """
        head = json.dumps({"format_version": FORMAT_VERSION, "seed": self.seed})
        lines = [head, *(self.records[number].to_json() for number in sorted(self.records))]
        write_file(self.folder / INDEX, "".join(f"{line}\n" for line in lines).encode())


def write_all(stream: FileIO, data: bytes) -> None:
    """Write without a buffer, which may take several turns."""
    while data:
        data = data[stream.write(data) :]


def sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); {ANOTHER}") from error


def first_difference(drawn: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What is asked for otherwise than it was, in words; empty if nothing is."""
    now = json.loads(json.dumps(wanted))  # as the index has it: tuples are lists
    for name in sorted((drawn.keys() | now.keys()) - MACHINE):
        if drawn.get(name) != now.get(name):
            return f"{name} was {json.dumps(drawn.get(name)):.60} and is {json.dumps(now.get(name)):.60}"
    return ""


def read_index(folder: Path, seed: int) -> Index:
    """The index of a folder; a new one, with ``seed``, where there is none yet.

    Raises:
        RequestError: it cannot be read, is too large, or is no index.
    """
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INDEX_BYTES + 1)
    except FileNotFoundError:
        return Index(folder, seed, {})
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); {ANOTHER}") from error
    if len(data) > MAX_INDEX_BYTES:
        raise RequestError(f"{path} is too large; an index has at most {MAX_INDEX_BYTES} bytes; {ANOTHER}")
    head, *lines = data.split(b"\n")[:-1] or [b""]  # what has no end of line was being written
    try:
        fields = Fields(json.loads(head), f"{path}, line 1")
        fields.count("format_version", most=FORMAT_VERSION)
        index = Index(folder, fields.count("seed", least=0, most=2**64 - 1), {})
        fields.finish()
        for number, line in enumerate(lines, 2):
            record = Record.from_json(json.loads(line), f"{path}, line {number}")
            index.records[record.number] = record
    except BundleError as error:
        raise RequestError(f"{error}; {ANOTHER}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not an index of pictures, or damaged; {ANOTHER}") from error
    return index


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder if need be and keep other processes from drawing into it, where the system knows such locks.

    Raises:
        RequestError: the folder cannot be made or read, or another process is drawing into it.
    """
    check_name(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.parent.exists():
            raise RequestError(f"the folder {folder.parent} does not exist; make it first") from error
        raise RequestError(f"the folder {folder} cannot be made ({error.strerror}); {ANOTHER}") from error
    if sys.platform == "win32":
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RequestError(f"the folder {folder} cannot be read ({error.strerror}); {ANOTHER}") from error
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RequestError(f"another process is drawing into {folder}; wait for it, or {ANOTHER}") from error
    except OSError:  # a file system without locks
        return


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing; nobody else may be drawing into the folder."""
    for path in folder.iterdir():
        if ASIDE.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()
