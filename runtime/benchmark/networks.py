"""Text bundles: one guided step and one decode of the VAE, by each program alone in memory.

Two full-size programs in float32 do not fit into a laptop's memory side by side. So in each round every program is
started anew and lives a whole life: it loads, takes a first step and ``warm`` further ones, decodes a first time and
once more, and ends. Ratios are taken within a round, and every round begins with another program.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.benchmark.program import Answer, Program
from runtime.benchmark.report import ratio_in_words, table
from runtime.errors import EngineError

TIMESTEP = 500.0
GUIDANCE_SCALE = 7.5
LARGEST_DIFFERENCE = 0.2  # bfloat16 differs by some hundredths, other weights by more than 1

HEAD = (
    "program",
    "load, s",
    "first step, s",
    "step, s",
    "step ÷ runtime's (min to max)",
    "peak memory with steps, GB",
    "decode, s",
    "decode ÷ runtime's (min to max)",
    "peak memory with decoding, GB",
    "difference",
)


@dataclass(frozen=True)
class Work:
    """What every program does in a round.

    Attributes:
        latents: (B, C, h, w) of a step; one of the B is decoded.
        text: (B, L, D).
        scaling_factor: what latents are divided by before they are decoded.
        warm: steps after the first.
    """

    latents: tuple[int, int, int, int]
    text: tuple[int, int, int]
    scaling_factor: float
    warm: int


@dataclass(frozen=True)
class Life:
    """One program in one round.

    Attributes:
        load_seconds: from the start of its process until it was ready.
        steps: the first one, then the warm ones.
        decodes: the first one, then the warm one.
    """

    load_seconds: float
    steps: list[Answer]
    decodes: list[Answer]

    @property
    def step_seconds(self) -> float:
        return statistics.median(step.seconds for step in self.steps[1:])

    @property
    def decode_seconds(self) -> float:
        return self.decodes[-1].seconds


@dataclass
class Record:
    """One program in all rounds, up to the one in which it failed."""

    name: str
    command: list[str]
    ready: str = ""
    failure: str = ""
    lives: list[Life] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; ratios of each round to the runtime's time in it; peaks of the round with the largest.

    Attributes:
        difference: of the output from the runtime's, relative to its scale; None where the program shows none.
    """

    program: str
    ready: str
    load_seconds: float
    first_step_seconds: float
    step_seconds: float
    step_ratios: list[float]
    step_peak_bytes: int
    first_decode_seconds: float
    decode_seconds: float
    decode_ratios: list[float]
    peak_bytes: int
    difference: float | None


def measure(commands: Mapping[str, list[str]], work: Work, rounds: int, limit_seconds: float) -> list[Record]:
    """Let every program live ``rounds`` times; one that fails is said so and left out from then on.

    Raises:
        EngineError: the first program, the runtime, failed.
    """
    records = [Record(name, command) for name, command in commands.items()]
    for number in range(rounds):
        begin = number % len(records)
        for record in records[begin:] + records[:begin]:
            if record.failure:
                continue
            try:
                record.lives.append(live(record, work, limit_seconds))
            except EngineError as error:
                if record is records[0]:
                    raise
                record.failure = str(error)
            print(f"round {number + 1} of {rounds}: {in_words(record)}", file=sys.stderr, flush=True)
    return records


def live(record: Record, work: Work, limit_seconds: float) -> Life:
    """One life of a program: load, steps, decodes."""
    one = (1, *work.latents[1:])
    with Program(record.name, record.command, limit_seconds) as program:
        record.ready = program.ready
        steps = [
            program.order(
                op="step",
                latents=work.latents,
                text=work.text,
                timestep=TIMESTEP,
                guidance_scale=GUIDANCE_SCALE,
                seed=seed,
            )
            for seed in range(1 + work.warm)
        ]
        decodes = [
            program.order(op="decode", latents=one, scaling_factor=work.scaling_factor, seed=seed) for seed in range(2)
        ]
    return Life(program.load_seconds, steps, decodes)


def in_words(record: Record) -> str:
    """The latest life, or what ended it, for whoever waits."""
    if record.failure:
        return record.failure
    life = record.lives[-1]
    first, *warm = (f"{step.seconds:.2f}" for step in life.steps)
    return (
        f"{record.name} loaded in {life.load_seconds:.1f} s; first step {first} s, then {' '.join(warm)} s, "
        f"{life.steps[-1].peak_bytes / 1e9:.1f} GB; decode {life.decodes[0].seconds:.2f} s, then "
        f"{life.decode_seconds:.2f} s, {life.decodes[-1].peak_bytes / 1e9:.1f} GB"
    )


def summary(records: Sequence[Record]) -> tuple[list[Row], list[str]]:
    """The programs that lived through every round, and one line for each that did not or did other work."""
    rows, failures = [], []
    for record in records:
        difference = None if record.failure else difference_from(records[0].lives[0], record.lives[0])
        if record.failure:
            failures.append(record.failure)
        elif difference is not None and not difference <= LARGEST_DIFFERENCE:
            failures.append(
                f"{record.name} computes something else: its output differs by {difference:.2g} of the runtime's; "
                f"at most {LARGEST_DIFFERENCE} is rounding"
            )
        else:
            rows.append(medians(record, records[0].lives, difference))
    return rows, failures


def medians(record: Record, ours: Sequence[Life], difference: float | None) -> Row:
    lives = record.lives
    return Row(
        record.name,
        record.ready,
        statistics.median(life.load_seconds for life in lives),
        statistics.median(life.steps[0].seconds for life in lives),
        statistics.median(life.step_seconds for life in lives),
        [life.step_seconds / own.step_seconds for life, own in zip(lives, ours, strict=True)],
        max(life.steps[-1].peak_bytes for life in lives),
        statistics.median(life.decodes[0].seconds for life in lives),
        statistics.median(life.decode_seconds for life in lives),
        [life.decode_seconds / own.decode_seconds for life, own in zip(lives, ours, strict=True)],
        max(life.decodes[-1].peak_bytes for life in lives),
        difference,
    )


def difference_from(ours: Life, theirs: Life) -> float | None:
    """The larger of the step's and the decode's root mean square difference, relative to the runtime's scale."""
    pairs = [(ours.steps[0].probe, theirs.steps[0].probe), (ours.decodes[0].probe, theirs.decodes[0].probe)]
    if any(len(own) != len(other) for own, other in pairs):
        return None
    return max(math.dist(own, other) / math.hypot(*own) for own, other in pairs)


def in_markdown(rows: Sequence[Row]) -> str:
    return table(
        HEAD,
        [
            (
                row.program,
                f"{row.load_seconds:.1f}",
                f"{row.first_step_seconds:.2f}",
                f"{row.step_seconds:.2f}",
                ratio_in_words(row.step_ratios),
                f"{row.step_peak_bytes / 1e9:.2f}",
                f"{row.decode_seconds:.2f}",
                ratio_in_words(row.decode_ratios),
                f"{row.peak_bytes / 1e9:.2f}",
                "not shown" if row.difference is None else f"{row.difference:.0e}",
            )
            for row in rows
        ],
    )
