"""Stopping what runs: by whoever asks for it, after a time, or by Ctrl-C.

What is in force holds for all that is computed below it, however deep, without being handed down: a context variable
has it, which every thread and every generator of ``runtime.steps`` has for itself. ONNX Runtime looks before each
operator whether its run is to end, so a run stops within one operator. What does not run in ONNX Runtime asks by
``check_cancelled`` now and then.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from runtime.errors import Cancelled, RequestError, TimedOut
from runtime.limits import is_finite_number


class CancelToken:
    """Given to a call (``cancel=``), stops it from another thread: ``pipeline("a cat", cancel=token)``.

    A token stays cancelled; the next call takes a new one. One token may be given to many calls.
    """

    def __init__(self, error: Callable[[], BaseException] | None = None) -> None:
        """``error`` makes what the call raises instead of ``Cancelled``."""
        self._error = error or (lambda: Cancelled("it was cancelled before it was finished"))
        self._cancelled = False
        self._running: set[Callable[[], None]] = set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Stop every call that has this token. From any thread, as often as one likes; returns at once."""
        # No lock, which a signal handler might find held by the very thread that it interrupts. Whoever begins to run
        # is added first and then looks at the flag, and here the flag comes first: one of the two sees the other.
        self._cancelled = True
        for stop in tuple(self._running):
            stop()

    def check(self) -> None:
        """Raise if it is cancelled.

        Raises:
            Cancelled: it is.
        """
        if self._cancelled:
            raise self._error()

    def add(self, stop: Callable[[], None]) -> None:
        """Have ``cancel`` call ``stop``, until it is removed."""
        self._running.add(stop)

    def remove(self, stop: Callable[[], None]) -> None:
        self._running.discard(stop)


Tokens = tuple[CancelToken, ...]
in_force: ContextVar[Tokens] = ContextVar("in_force", default=())


def check_cancelled() -> None:
    """Stop here if what runs is to stop.

    Raises:
        Cancelled: it is.
    """
    for token in in_force.get():
        token.check()


@contextlib.contextmanager
def stopped_by(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, have it stopped by ``stop`` when it is to stop; it must fail soon then.

    Raises:
        Cancelled: it was stopped, or was to stop before it began.
    """
    tokens = in_force.get()
    for token in tokens:
        token.add(stop)
    try:
        check_cancelled()
        yield
    except Exception:
        check_cancelled()
        raise
    finally:
        for token in tokens:
            token.remove(stop)


@contextlib.contextmanager
def stoppable(cancel: CancelToken | None = None, timeout: float | None = None) -> Iterator[None]:
    """Have what the block computes stopped by a token, and after a time.

    Args:
        cancel: whose ``cancel`` stops it.
        timeout: seconds for the whole block.

    Raises:
        RequestError: one of them is none.
        Cancelled: it was cancelled; TimedOut, which is one, if the time is over.
    """
    with limited(cancel, timeout) as tokens:
        before = in_force.set(tokens)
        try:
            yield
        finally:
            in_force.reset(before)


@contextlib.contextmanager
def limited(cancel: CancelToken | None, timeout: float | None) -> Iterator[Tokens]:
    """The tokens of a block with those that are in force already; when it ends, its time is no longer counted."""
    check_limits(cancel, timeout)
    tokens = (*in_force.get(), *([] if cancel is None else [cancel]))
    if timeout is None:
        yield tokens
        return
    said = f"it took longer than the timeout of {timeout:g} s; allow more, or ask for less"
    clock = CancelToken(lambda: TimedOut(said))
    timer = threading.Timer(timeout, clock.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield (*tokens, clock)
    finally:
        timer.cancel()


def check_limits(cancel: object, timeout: object) -> None:
    """Refuse what stops nothing.

    Raises:
        RequestError: no token, or no time.
    """
    if cancel is not None and not isinstance(cancel, CancelToken):
        raise RequestError(f"cancel is {cancel!r}; it must be a CancelToken")
    if timeout is None:
        return
    if not is_finite_number(timeout) or not 0 < timeout <= threading.TIMEOUT_MAX:  # type: ignore[operator]
        raise RequestError(f"timeout is {timeout!r}; it must be a number of seconds above 0")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have Ctrl-C stop also what runs in ONNX Runtime.

    Python acts on a signal when the main thread is back from whatever it has called, which for a network may be a
    minute later. But at once it writes the signal's number to a socket, and a thread here reads that. Outside the main
    thread, where no signal arrives, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    token = CancelToken(KeyboardInterrupt)
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def watch() -> None:
        while number := reading.recv(1):
            if number[0] == signal.SIGINT:
                token.cancel()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        with stoppable(token):
            yield
    finally:
        signal.set_wakeup_fd(before)
        writing.close()
        watcher.join()
        reading.close()
