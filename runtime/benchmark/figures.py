"""What was measured, kept in a JSON file from the first figure on, so that an interruption costs at most a round."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from runtime.errors import RequestError
from runtime.image import write_file

VERSION = 2  # of the file; 1 had neither a version nor commands
MAX_FILE_BYTES = 2**28
# What a run that goes on must share with the one that was interrupted; else its ratios would be of different things.
SAME = ("version", "kind", "model", "machine", "work", "programs")
HELD = {"records": list, "failures": list, "rounds_done": int}


class Figures:
    """Records of rounds, in memory and, where a file is named, in it.

    Attributes:
        records: one for each life of a program: JSON objects that have ``round`` and ``program``.
        failures: one for each program, or case of one, that is left out: ``program``, ``case`` (or None), ``message``.
        rounds_done: rounds in which every program had its turn.
        summary: what a reader of the file sees without reckoning: rows of the table.
    """

    def __init__(self, head: dict[str, Any], path: Path | None = None, resume: bool = False) -> None:
        """Begin, or go on where the file ends.

        Args:
            head: what is measured, by the names in ``SAME`` and whatever else the file shall say.
            path: the file; without it nothing is kept.
            resume: take over the rounds that are done there, if the file exists.

        Raises:
            RequestError: the file is none of these, or of another run.
        """
        self.head = {"version": VERSION, "begun": time.strftime("%Y-%m-%d %H:%M:%S")} | head
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.rounds_done = 0
        self.summary: list[dict[str, Any]] = []
        if resume and path is not None and path.exists():
            self.take_over(path)

    def take_over(self, path: Path) -> None:
        said = read(path)
        for name in SAME:
            if said.get(name) != json.loads(json.dumps(self.head[name])):
                raise RequestError(
                    f"{path} is of a run with another {name}; repeat its command, or leave out --resume to begin anew"
                )
        self.head["begun"] = said.get("begun")
        self.rounds_done = said["rounds_done"]
        self.records = [each for each in said["records"] if each["round"] < self.rounds_done]
        self.failures = said["failures"]

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.write()

    def fail(self, program: str, case: dict[str, Any] | None, message: str) -> None:
        """Leave a program out from now on, or only one case of it."""
        self.failures.append({"program": program, "case": case, "message": message})
        self.write()

    def left_out(self, program: str, case: dict[str, Any]) -> bool:
        return any(each["program"] == program and each["case"] in (None, case) for each in self.failures)

    def finish_round(self) -> None:
        self.rounds_done += 1
        self.write()

    def whole_rounds(self) -> list[dict[str, Any]]:
        """The records that ratios can be taken of."""
        return [record for record in self.records if record["round"] < self.rounds_done]

    def write(self) -> None:
        if self.path:
            measured = {"rounds_done": self.rounds_done, "rows": self.summary, "failures": self.failures}
            everything = self.head | measured | {"records": self.records}
            write_file(self.path, json.dumps(everything, indent=1).encode() + b"\n")


def read(path: Path) -> dict[str, Any]:
    """A file of figures, by its outer form.

    Raises:
        RequestError: it is none.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        said = json.loads(path.read_bytes())
        if not isinstance(said, dict) or not all(isinstance(said.get(name), kind) for name, kind in HELD.items()):
            raise ValueError("it has no records")
        if not all(isinstance(each, dict) and isinstance(each.get("round"), int) for each in said["records"]):
            raise ValueError("its records have no rounds")
        if not all(isinstance(each, dict) and {"program", "case", "message"} <= {*each} for each in said["failures"]):
            raise ValueError("its failures name no programs")
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{path} holds no figures of a benchmark ({' '.join(str(error).split())[:200]}); choose another file, or "
            "leave out --resume"
        ) from error
    return said
