"""A program that draws one picture and ends, seen from outside: how long it took, and how much memory it held."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.benchmark.protocol import highest_resident
from runtime.errors import EngineError

FIRST_STEP = "first step"  # what a program may say on standard error, on a line, when its first step begins
LOOK_EVERY = 0.02  # seconds, at the peak of memory
LISTEN_ON = 5  # seconds at most, to what a program that has ended has left behind: another may hold its standard error


@dataclass(frozen=True)
class Run:
    """One process, from its start to its end.

    Attributes:
        first_step_seconds: from the start until it said that its first step began; None where it did not.
        peak_bytes: of resident memory, mapped files included.
    """

    seconds: float
    first_step_seconds: float | None
    peak_bytes: int


class Watch:
    """What is noted of a process while it runs."""

    def __init__(self, process: subprocess.Popen[str], begun: float) -> None:
        self.process, self.begun = process, begun
        self.peak_bytes = 0
        self.first_step_seconds: float | None = None
        self.last_words = ""
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self.listen, self.look)]
        for thread in self.threads:
            thread.start()

    def listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            if line.strip() == FIRST_STEP and self.first_step_seconds is None:
                self.first_step_seconds = time.perf_counter() - self.begun
            self.last_words = line.strip()[:300] or self.last_words

    def look(self) -> None:
        while not self.ended.wait(LOOK_EVERY):
            self.peak_bytes = max(self.peak_bytes, highest_resident(self.process.pid) or 0)

    def end(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(LISTEN_ON)


def run(command: Sequence[str], environment: Mapping[str, str], limit_seconds: float) -> Run:
    """Run a program to its end.

    Args:
        command: its words.
        environment: variables that it has beside this process's own.
        limit_seconds: what takes longer is ended.

    Raises:
        EngineError: it cannot be started, failed, or took too long; the message says no name.
    """
    begun = time.perf_counter()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, ValueError) as error:  # ValueError: a null character in a word
        raise EngineError(f"cannot be started: {getattr(error, 'strerror', None) or error}") from error
    watch = Watch(process, begun)
    overdue = threading.Timer(limit_seconds, process.kill)
    overdue.daemon = True
    overdue.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:  # Ctrl-C too
        overdue.cancel()
        if process.returncode is None:
            process.kill()
            process.wait()
        watch.end()
    if seconds >= limit_seconds and process.returncode < 0:
        raise EngineError(f"took longer than {limit_seconds:g} s and was ended; --limit allows more")
    if process.returncode:
        raise EngineError(how_it_ended(process.returncode, watch.last_words))
    return Run(seconds, watch.first_step_seconds, peak(usage.ru_maxrss, watch.peak_bytes))


def peak(maxrss: int, seen: int) -> int:
    """The peak in bytes, of what the system says at the end and what was seen until shortly before it.

    On Linux the first is at least this process's own peak, as which the other began: only above that does it count.
    """
    said = maxrss if sys.platform == "darwin" else maxrss * 1024
    return said if said > (highest_resident("self") or 0) or not seen else seen


def how_it_ended(status: int, last_words: str) -> str:
    """In words: the signal that killed a program, or its status and its last words."""
    if status < 0:
        memory = ", as happens when there is no memory left" if status == -9 else ""
        return f"was killed by signal {-status}{memory}"
    return f"ended with status {status}{': ' if last_words else ''}{last_words}"
