"""A program under test, seen from outside: started, given orders, ended."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from runtime.benchmark.process import how_it_ended
from runtime.errors import EngineError


@dataclass(frozen=True)
class Answer:
    """What a program says of one order; see ``protocol.py``."""

    seconds: float
    peak_bytes: int
    probe: tuple[float, ...]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Answer:
        """Of what was said in JSON.

        Raises:
            KeyError, TypeError, ValueError: it is no answer.
        """
        answer = cls(float(said["seconds"]), int(said["peak_bytes"]), tuple(map(float, said.get("probe", ()))))
        if not (0 < answer.seconds < math.inf and answer.peak_bytes > 0):
            raise ValueError("time or memory is not above 0")
        return answer


class Program:
    """One process that speaks the protocol.

    Attributes:
        ready: what the program says it is, once it can take orders.
        ready_seconds: from the start of its process until then.
    """

    ready: str
    ready_seconds: float

    def __init__(self, name: str, command: list[str], limit_seconds: float) -> None:
        """Name a program; it is started by ``with``.

        Args:
            name: how the tables call it.
            command: its words.
            limit_seconds: what takes longer is ended, be it loading or one order.
        """
        self.name, self.command, self.limit_seconds = name, command, limit_seconds

    def __enter__(self) -> Program:
        begun = time.perf_counter()
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                encoding="utf-8",
                errors="replace",  # what is no text is no JSON either, and is shown as it is
            )
        except (OSError, ValueError) as error:  # ValueError: a null character in a word
            self.errors.close()
            raise EngineError(f"{self} cannot be started: {getattr(error, 'strerror', None) or error}") from error
        try:
            self.ready = str(self.read("ready")["ready"])
        except BaseException:
            self.end()
            raise
        self.ready_seconds = time.perf_counter() - begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def __str__(self) -> str:
        command = " ".join(shlex.join(self.command).split())
        return f"{self.name} ({command if len(command) <= 300 else command[:297] + '...'})"

    def order(self, **order: Any) -> Answer:
        """Give one order and wait for its answer.

        Raises:
            EngineError: the program ended, took too long, answered something else, or computed what is no number.
        """
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended; what it said last is read below
        said = self.read("seconds")
        try:
            answer = Answer.of(said)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self.speaks_otherwise(json.dumps(said)) from error
        if not all(map(math.isfinite, answer.probe)):
            raise EngineError(f"{self} computed numbers that are not finite")
        return answer

    def read(self, key: str) -> dict[str, Any]:
        """The next line, an object that has ``key``."""
        assert self.process.stdout
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            self.process.kill()

        timer = threading.Timer(self.limit_seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:  # Ctrl-C too: a timer that goes on would keep this process, and later kill another
            timer.cancel()
        if overdue.is_set():
            raise EngineError(f"{self} took longer than {self.limit_seconds:g} s and was ended; --limit allows more")
        if not line:
            raise EngineError(f"{self} {self.how_it_ended()}")
        try:
            said = json.loads(line)
        except ValueError as error:
            raise self.speaks_otherwise(line) from error
        if not isinstance(said, dict) or key not in said:
            raise self.speaks_otherwise(line)
        return said

    def speaks_otherwise(self, line: str) -> EngineError:
        return EngineError(f"{self} said {line.strip()[:100]!r}, which is not what docs/benchmark.md asks for")

    def how_it_ended(self) -> str:
        """In words: its status and its last words, or the signal that killed it."""
        status = self.process.wait()
        self.errors.seek(0)
        words = [line.strip() for line in self.errors if line.strip()]
        return how_it_ended(status, words[-1][:300] if words else "")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()
