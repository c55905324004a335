"""Whole pictures: from the start of a program's process to its PNG on the disk."""

from __future__ import annotations

import math
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from runtime.benchmark import process
from runtime.benchmark.figures import Figures
from runtime.benchmark.report import OURS, in_digits, ratio_in_words, table
from runtime.errors import EngineError, RequestError
from runtime.verified import CACHE_VARIABLE

UInt8 = npt.NDArray[np.uint8]

FIRST, SECOND = "first", "second"
HEAD = (
    *("program", "steps", "first start, s", "second start, s", "time ÷ runtime's (min to max)"),
    *("until the first step: first start, s", "second start, s", "a step, s", "peak memory, GB"),
    *("memory ÷ runtime's (min to max)", "picture against the runtime's"),
)


@dataclass(frozen=True)
class Request:
    """What every program is asked for.

    Attributes:
        steps: numbers of steps, each a picture of its own; the difference of two gives the time of a step.
    """

    prompt: str
    seed: int
    width: int
    height: int
    guidance_scale: float
    steps: tuple[int, ...]

    def words(self, steps: int, output: Path) -> list[str]:
        """What is appended to a program's command."""
        named = {
            "--seed": self.seed,
            "--steps": steps,
            "--size": f"{self.width}x{self.height}",
            "--guidance-scale": self.guidance_scale,
            "-o": output,
        }
        return [self.prompt, *(str(word) for pair in named.items() for word in pair)]


@dataclass(frozen=True)
class Drawn:
    """One picture.

    Attributes:
        start: "first" where what a program keeps for its next start was not there yet, else "second".
        first_step_seconds: from the start of the process until the first step; None where the program does not say.
        difference: of its pixels from those of the runtime's picture, the root mean square in 256 levels; None where
            there is none to compare with.
    """

    round: int
    program: str
    steps: int
    start: str
    seconds: float
    first_step_seconds: float | None
    peak_bytes: int
    difference: float | None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Drawn:
        """Of a file's record.

        Raises:
            RequestError: it is no picture's.
        """
        try:
            made = cls(**record)
            if min(float(made.seconds), int(made.steps), int(made.peak_bytes)) <= 0:
                raise ValueError("a figure is not above 0")
            return made
        except (TypeError, ValueError) as error:
            raise RequestError(f"a record of the figures is no picture's ({error}); leave out --resume") from error


@dataclass(frozen=True)
class Row:
    """Medians over the rounds of pictures by one program in one number of steps; ratios are those of second starts.

    Attributes:
        step_seconds: in each round the time of the most steps less that of the fewest, by the steps between them.
    """

    program: str
    steps: int
    first_seconds: float | None
    seconds: float
    time_ratios: list[float]
    first_step_first: float | None
    first_step_second: float | None
    step_seconds: list[float]
    peak_bytes: int
    memory_ratios: list[float]
    difference: float | None


def measure(
    commands: Mapping[str, list[str]], request: Request, rounds: int, limit_seconds: float, figures: Figures
) -> None:
    """Let every program draw in every round; what fails is said so and left out from then on.

    Raises:
        EngineError: the runtime failed.
    """
    names = list(commands)
    reference: dict[int, UInt8] = {}
    for number in range(figures.rounds_done, rounds):
        begin = number % len(names)
        for name in names[begin:] + names[:begin]:
            if figures.left_out(name, {}):
                continue
            try:
                draw_all(name, commands[name], request, number, rounds, limit_seconds, figures, reference)
            except EngineError as error:
                command = " ".join(shlex.join(commands[name]).split())[:300]  # on one line
                message = f"{name} ({command}) {error}"
                if name == OURS:
                    raise EngineError(message) from error
                figures.fail(name, None, message)
                print(f"round {number + 1} of {rounds}: {message}", file=sys.stderr, flush=True)
        figures.finish_round()


def draw_all(
    name: str,
    command: list[str],
    request: Request,
    number: int,
    rounds: int,
    limit_seconds: float,
    figures: Figures,
    reference: dict[int, UInt8],
) -> None:
    """One program's pictures of a round, in an empty cache: its first start, its second, and those of more steps."""
    with tempfile.TemporaryDirectory(prefix="diffusion-anywhere-benchmark-") as folder:
        kept = {CACHE_VARIABLE: str(Path(folder) / "cache")}
        for k, steps in enumerate((request.steps[0], *request.steps)):
            output = Path(folder) / f"{k}.png"
            run = process.run([*command, *request.words(steps, output)], kept, limit_seconds)
            pixels = read_picture(output, request.width, request.height)
            if name == OURS:
                reference[steps] = pixels
            difference = root_mean_square(pixels, reference[steps]) if steps in reference else None
            start = SECOND if k else FIRST
            drawn = Drawn(number, name, steps, start, run.seconds, run.first_step_seconds, run.peak_bytes, difference)
            figures.add(asdict(drawn))
            print(f"round {number + 1} of {rounds}: {in_words(drawn)}", file=sys.stderr, flush=True)


def read_picture(path: Path, width: int, height: int) -> UInt8:
    """The PNG that a program was to write, uint8 (H, W, 3).

    Raises:
        EngineError: there is none, or of another size; the message says no name.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.size != (width, height):
                raise EngineError(f"drew {picture.width}x{picture.height} where {width}x{height} was asked for")
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise EngineError("ended well but wrote no PNG where it was to") from error


def root_mean_square(ours: UInt8, theirs: UInt8) -> float:
    return math.sqrt(float(np.square(ours.astype(np.float64) - theirs).mean()))


def in_words(drawn: Drawn) -> str:
    begun = (
        "" if drawn.first_step_seconds is None else f", the first begun after {in_digits(drawn.first_step_seconds)} s"
    )
    return (
        f"{drawn.program}, {drawn.start} start: {drawn.steps} steps in {in_digits(drawn.seconds)} s{begun}; "
        f"{in_digits(drawn.peak_bytes / 1e9)} GB"
    )


def summary(figures: Figures) -> tuple[list[Row], list[str]]:
    """The programs that drew in every whole round, and one line for each that did not."""
    drawn = [Drawn.from_record(record) for record in figures.whole_rounds()]
    rows = []
    for program, steps in dict.fromkeys((each.program, each.steps) for each in drawn):
        if not figures.left_out(program, {}):
            rows.append(row_of([each for each in drawn if each.program == program], steps, drawn))
    return rows, [each["message"] for each in figures.failures]


def row_of(own: Sequence[Drawn], steps: int, everyone: Sequence[Drawn]) -> Row:
    firsts = [each for each in own if each.steps == steps and each.start == FIRST]
    seconds = [each for each in own if each.steps == steps and each.start == SECOND]
    ours = {each.round: each for each in everyone if (each.program, each.steps, each.start) == (OURS, steps, SECOND)}
    return Row(
        own[0].program,
        steps,
        median(each.seconds for each in firsts),
        statistics.median(each.seconds for each in seconds),
        [each.seconds / ours[each.round].seconds for each in seconds],
        median(each.first_step_seconds for each in firsts),
        median(each.first_step_seconds for each in seconds),
        step_seconds(own),
        max(each.peak_bytes for each in (*firsts, *seconds)),
        [each.peak_bytes / ours[each.round].peak_bytes for each in seconds],
        next((each.difference for each in seconds if each.difference is not None), None),
    )


def median(values: Any) -> float | None:
    """Of what is there."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def step_seconds(own: Sequence[Drawn]) -> list[float]:
    """A program's time for a step in each round, by two pictures that differ in nothing else; empty without two."""
    times: dict[int, dict[int, float]] = {}
    for each in own:
        if each.start == SECOND:
            times.setdefault(each.round, {})[each.steps] = each.seconds
    return [
        (by_steps[max(by_steps)] - by_steps[min(by_steps)]) / (max(by_steps) - min(by_steps))
        for by_steps in times.values()
        if len(by_steps) > 1
    ]


def in_markdown(rows: Sequence[Row]) -> str:
    return table(
        HEAD,
        [
            (
                row.program,
                str(row.steps),
                in_digits(row.first_seconds),
                in_digits(row.seconds),
                ratio_in_words(row.time_ratios),
                in_digits(row.first_step_first),
                in_digits(row.first_step_second),
                in_digits(median(row.step_seconds)),
                in_digits(row.peak_bytes / 1e9),
                ratio_in_words(row.memory_ratios),
                likeness(row),
            )
            for row in rows
        ],
    )


def likeness(row: Row) -> str:
    """The peak signal-to-noise ratio, in words."""
    if row.program == OURS or row.difference is None:
        return "–"
    return f"{20 * math.log10(255 / row.difference):.0f} dB" if row.difference else "the same"
