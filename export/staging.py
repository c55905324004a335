"""Replacing a folder so that whoever looks, at whatever moment, finds the old one or the new one, whole.

Everything is written into a hidden folder beside the target and takes the target's place in one step:

- Where there is no target yet, that step is ``rename``.
- Where there is one, ``rename`` cannot do it: it takes no folder that holds files. Moving the old one aside and then
  the new one in leaves a moment with neither, and a process killed in that moment leaves nobody to put it right. So
  the two are *exchanged*, which Linux (``renameat2``) and macOS (``renamex_np``) do in one atomic step, and the old
  one is deleted under the hidden name.
- Where the system or the file system cannot exchange, an existing bundle is refused rather than risked; who wants to
  replace it deletes it first.

What a killed export leaves is the hidden folder alone. The next export to the same target deletes it, under a lock,
so that it cannot be the work of an export that still runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from export.errors import ExportError
from runtime.bundle import CONFORMANCE, MANIFEST

AT_FDCWD = -100  # Linux: paths are relative to the working directory
RENAME_EXCHANGE = 2  # Linux
RENAME_SWAP = 2  # macOS


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield an empty folder for a bundle, which takes the place of ``target`` if the block ends without an error.

    Args:
        target: a bundle to replace, an empty folder, or nothing yet. A symbolic link stays, and what it leads to is
            replaced.

    Raises:
        ExportError: the target is something else, cannot be written to, or is being written to by another export.
            Nothing is changed.
    """
    target = target.resolve()
    with ExitStack() as stack:
        try:
            check_replaceable(target)
            stack.enter_context(made_folders(target.parent))
            lock = target.with_name(f".{target.name}.lock")
            stack.enter_context(FileLock(lock, timeout=0))
            stack.callback(lock.unlink, missing_ok=True)  # while it is still held
            staging = target.with_name(f".{target.name}.exporting")
            delete(staging)
            staging.mkdir()
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            if target.exists():
                check_exchange(staging, target)
            yield staging
            flush(staging)
            check_replaceable(target)
            put_in_place(staging, target)
        except Timeout as error:
            raise ExportError(f"another export is writing to {target}; wait for it, or choose another --out") from error
        except OSError as error:
            raise ExportError(f"{target} cannot be written ({reason(error, target.parent)})") from error


def reason(error: OSError, folder: Path) -> str:
    """Why something cannot be written. NumPy, which writes the weights, says only how far it came."""
    if error.strerror:
        return error.strerror
    return f"{error}; the disk may be full: {shutil.disk_usage(folder).free:,} bytes are free on it"


@contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those that were missing go again if the block ends with an error."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def check_replaceable(target: Path) -> None:
    """See that replacing ``target`` deletes nothing but a bundle.

    Raises:
        ExportError: it is a file, or a folder with anything in it that its manifest does not name.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{target} is a file; --out takes the name of a folder")
    present = {path.name for path in target.iterdir()}
    strangers = sorted(present - bundle_files(target))
    if strangers:
        raise ExportError(
            f"{target} holds {', '.join(strangers[:3])}{', …' if strangers[3:] else ''}, which is no part of a bundle "
            f"and would be lost; move it away, or choose another --out"
        )


def bundle_files(folder: Path) -> set[str]:
    """Names of the files that the manifest in ``folder`` names; none where there is no legible manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = [
            file
            for role in manifest["graphs"].values()
            for graph in role.values()
            for file in (graph, *graph["external_data"])
        ]
        if "tokenizer" in manifest.get("conditioning", {}):
            files.append(manifest["conditioning"]["tokenizer"])
        return {MANIFEST, CONFORMANCE, *(file["file"] for file in files)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def check_exchange(staging: Path, target: Path) -> None:
    """Try on two empty folders, before the work and not after it, whether folders can be exchanged here."""
    pair = [staging / "one", staging / "other"]
    for folder in pair:
        folder.mkdir()
    try:
        exchange(*pair)
    except OSError as error:
        raise ExportError(
            f"{target} exists, and this system cannot exchange two folders in one step ({error.strerror}); "
            f"delete it first, or choose another --out"
        ) from error
    for folder in pair:
        folder.rmdir()


def flush(folder: Path) -> None:
    """Have everything on the disk before it gets its name, so that a loss of power too leaves the old or the new."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_place(staging: Path, target: Path) -> None:
    """Give ``staging`` the name ``target``; what was there before, if anything, gets the name ``staging``."""
    if target.exists():
        exchange(staging, target)
    else:
        staging.rename(target)


def exchange(one: Path, other: Path) -> None:
    """Exchange two folders of one file system in one atomic step.

    Raises:
        OSError: the system or the file system cannot.
    """
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(*paths, RENAME_SWAP)
        else:
            failed = library.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE)
    except AttributeError as error:
        raise OSError(None, "the C library has no such call") from error
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def delete(folder: Path) -> None:
    """Delete a folder and what is in it, if it is there."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
