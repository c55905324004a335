"""Ctrl-C that is not lost."""

from __future__ import annotations

import _thread
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

PAUSE = 0.1  # seconds, ample for a hook and a callback to end


def interrupt_later() -> None:
    time.sleep(PAUSE)
    _thread.interrupt_main()


@contextlib.contextmanager
def insistent() -> Iterator[None]:
    """Raise a ``KeyboardInterrupt`` again where Python dropped it.

    Whatever is raised in a finaliser or in the callback of a weak reference, Python prints and forgets. Tracing runs
    a great many of those, so that now and then a Ctrl-C falls into one and the export would go on to its end.
    """
    before = sys.unraisablehook

    def hook(dropped: UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # Later, from a thread: raised at once, it would be raised in here and be dropped as well. A Thread's
            # start would wait for it to run.
            _thread.start_new_thread(interrupt_later, ())
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
