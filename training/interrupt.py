"""Ending a long loop between two steps, when somebody asks."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Notes the first SIGINT (Ctrl-C) or SIGTERM, for a loop to look at between two steps; a second one acts as it
    would have without.

    >>> with StopRequest() as stop:
    ...     while not stop.requested:
    ...         step()
    """

    def __init__(self) -> None:
        self.requested = False
        self.previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals can be neither caught nor changed
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.note) or signal.SIG_DFL
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.restore()

    def restore(self) -> None:
        while self.previous:
            signal.signal(*self.previous.popitem())
