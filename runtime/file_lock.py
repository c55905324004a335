"""A lock between processes that ends with whoever holds it, however it ends."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.cancel import check_cancelled

LOOK_EVERY = 0.1  # seconds, at whether it is free, and at whether to stop

if sys.platform == "win32":
    import msvcrt

    HELD = (errno.EACCES, errno.EDEADLOCK)

    def take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    HELD = (errno.EWOULDBLOCK, errno.EACCES)

    def take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def file_lock(path: Path, patience: float) -> Iterator[bool]:
    """Hold a file's lock during the block; threads of one process exclude each other too.

    Args:
        path: an empty file, which is made and stays.
        patience: seconds to wait for whoever holds it.

    Yields:
        Whether it is held: not if someone else kept it for so long.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
        Cancelled: while waiting, see ``runtime.cancel``.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        yield taken(descriptor, patience)
    finally:
        os.close(descriptor)  # which also gives the lock back


def taken(descriptor: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            take(descriptor)
            return True
        except OSError as error:
            if error.errno not in HELD:
                raise
        if time.monotonic() >= end:
            return False
        check_cancelled()
        time.sleep(LOOK_EVERY)
