"""What a terminal shows of work that takes a while."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import TextIO

BAR_WIDTH = 30
PLANS = "runtime.memory_plan"  # who says what is given up
LINE_WIDTH = 70  # of a bar with what stands beside it


class ProgressBar:
    """Rows done, on a terminal; silent elsewhere. As a context it ends its line, whatever ends the work."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begun, self.shown = stream, time.monotonic(), stream.isatty()
        self.unfinished = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.unfinished:
            self.stream.write("\n")
            self.stream.flush()

    def __call__(self, done: int, total: int) -> None:
        if not self.shown:
            return
        filled = BAR_WIDTH * done // total
        left = (time.monotonic() - self.begun) * (total - done) / done
        bar = "█" * filled + "·" * (BAR_WIDTH - filled)
        self.unfinished = done < total
        self.stream.write(f"\r{bar} {done}/{total}  {left:.0f} s left " + ("" if self.unfinished else "\n"))
        self.stream.flush()


@contextlib.contextmanager
def announced(stream: TextIO) -> Iterator[None]:
    """Say what is being loaded, on a terminal; elsewhere only what is given up for a limit on memory."""
    shown = stream.isatty()
    logger, handler = logging.getLogger("runtime" if shown else PLANS), logging.StreamHandler(stream)
    # A terminal's line goes over a bar that is not finished.
    handler.setFormatter(logging.Formatter(f"\r%(message)-{LINE_WIDTH}s" if shown else "%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
