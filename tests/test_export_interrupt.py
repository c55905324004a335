"""Proves that a Ctrl-C that falls where Python drops exceptions still ends an export."""

from __future__ import annotations

import signal
import sys
import time
import weakref

import pytest

from export.interrupt import insistent


class Traced:
    pass


def drop_interrupt_and_go_on() -> None:
    """Have a Ctrl-C fall into the callback of a weak reference, and do something else for ten seconds."""
    traced = Traced()
    reference = weakref.ref(traced, lambda gone: signal.raise_signal(signal.SIGINT))
    del traced
    assert reference() is None
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.01)


def test_a_dropped_interrupt_is_raised_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), insistent():
        drop_interrupt_and_go_on()
    assert capsys.readouterr().err == ""


def test_what_else_is_dropped_goes_to_the_hook_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: seen.append(dropped.exc_type))

    def fail(gone: object) -> None:
        raise ValueError

    with insistent():
        traced = Traced()
        reference = weakref.ref(traced, fail)
        del traced
    assert reference() is None
    assert seen == [ValueError]
