"""What a terminal shows while something is computed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for one part of the work, on a terminal; what it gives is called with how much more of it is done."""
    with tqdm(total=total, desc=name, leave=False, disable=not sys.stderr.isatty()) as bar:

        def advance(done: int) -> None:
            bar.update(done)

        yield advance
