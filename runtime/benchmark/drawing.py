"""Class-conditional bundles: images per second, from noise to pixels, at several batch sizes."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.benchmark.program import Answer, Program
from runtime.benchmark.report import ratio_in_words, table

HEAD = ("batch", "program", "seconds a batch", "images/s", "time ÷ runtime's (min to max)", "peak memory, MB")


@dataclass(frozen=True)
class Row:
    """What one program took for batches of one size.

    Attributes:
        seconds: the median over the rounds.
        ratios: in each round its time over that of the first program, the runtime.
    """

    batch: int
    program: str
    ready: str
    seconds: float
    images_per_second: float
    ratios: list[float]
    peak_megabytes: float


def measure(commands: Mapping[str, list[str]], batch: int, steps: int, rounds: int, limit_seconds: float) -> list[Row]:
    """One round of warm-up, then ``rounds`` in which every program draws once, in turn; the others wait meanwhile.

    They are started for this batch size, so that their peak memory belongs to it.

    Raises:
        EngineError: a program cannot be started, ends, takes too long or does not speak the protocol.
    """
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program(name, command, limit_seconds)) for name, command in commands.items()]
        answers: dict[str, list[Answer]] = {program.name: [] for program in programs}
        for number in range(rounds + 1):
            for program in programs:
                answers[program.name].append(program.order(op="draw", batch=batch, steps=steps, seed=number))
    ours = [answer.seconds for answer in answers[programs[0].name][1:]]
    return [summary(program, answers[program.name], ours, batch) for program in programs]


def summary(program: Program, answers: Sequence[Answer], ours: Sequence[float], batch: int) -> Row:
    """Medians of everything but the first answer, which was for warming up."""
    seconds = [answer.seconds for answer in answers[1:]]
    median = statistics.median(seconds)
    ratios = [theirs / mine for theirs, mine in zip(seconds, ours, strict=True)]
    return Row(batch, program.name, program.ready, median, batch / median, ratios, answers[-1].peak_bytes / 1e6)


def in_markdown(rows: Sequence[Row]) -> str:
    return table(
        HEAD,
        [
            (
                str(row.batch),
                row.program,
                f"{row.seconds:.3f}",
                f"{row.images_per_second:.1f}",
                ratio_in_words(row.ratios),
                f"{row.peak_megabytes:.0f}",
            )
            for row in rows
        ],
    )
