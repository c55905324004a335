"""Class-conditional bundles: images per second, from noise to pixels, at several batch sizes and numbers of steps."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.benchmark.program import Answer, Program
from runtime.benchmark.report import ratio_in_words, table

HEAD = (
    *("batch", "steps", "program", "seconds a batch", "seconds a picture", "images/s"),
    *("time ÷ runtime's (min to max)", "peak memory, MB"),
)


@dataclass(frozen=True)
class Row:
    """What one program took for batches of one size.

    Attributes:
        batch: images.
        steps: of DDIM, each of which is a row of the plan.
        seconds: for a batch, the median over the rounds.
        ratios: in each round its time over that of the first program, the runtime.
    """

    batch: int
    steps: int
    program: str
    ready: str
    seconds: float
    images_per_second: float
    ratios: list[float]
    peak_megabytes: float


def measure(
    commands: Mapping[str, list[str]], batch: int, steps: Sequence[int], rounds: int, limit_seconds: float
) -> list[Row]:
    """For each number of steps one round of warm-up, then ``rounds`` in which every program draws once, in turn; the
    others wait meanwhile.

    They are started for this batch size, so that their peak memory belongs to it.

    Raises:
        EngineError: a program cannot be started, ends, takes too long or does not speak the protocol.
    """
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program(name, command, limit_seconds)) for name, command in commands.items()]
        for program in programs:
            program.order(op="load", graph="unet", threads=None)
        rows = []
        for count in steps:
            answers: dict[str, list[Answer]] = {program.name: [] for program in programs}
            for number in range(rounds + 1):
                for program in programs:
                    answers[program.name].append(program.order(op="draw", batch=batch, steps=count, seed=number))
            ours = [answer.seconds for answer in answers[programs[0].name][1:]]
            rows += [summary(program, answers[program.name], ours, batch, count) for program in programs]
    return rows


def summary(program: Program, answers: Sequence[Answer], ours: Sequence[float], batch: int, steps: int) -> Row:
    """Medians of everything but the first answer, which was for warming up."""
    seconds = [answer.seconds for answer in answers[1:]]
    median = statistics.median(seconds)
    ratios = [theirs / mine for theirs, mine in zip(seconds, ours, strict=True)]
    peak_megabytes = answers[-1].peak_bytes / 1e6
    return Row(batch, steps, program.name, program.ready, median, batch / median, ratios, peak_megabytes)


def in_markdown(rows: Sequence[Row]) -> str:
    return table(
        HEAD,
        [
            (
                str(row.batch),
                str(row.steps),
                row.program,
                f"{row.seconds:.3f}",
                f"{row.seconds / row.batch:.4f}",
                f"{row.images_per_second:.1f}",
                ratio_in_words(row.ratios),
                f"{row.peak_megabytes:.0f}",
            )
            for row in rows
        ],
    )
