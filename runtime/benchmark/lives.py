"""Networks of text bundles, by each program alone in memory.

Two full-size programs in float32 do not fit into a laptop's memory side by side, and what a process has held for one
network is still counted when it runs another. So in each round every program is started anew for every case, a network
at some size: it loads that network, runs it a first time and ``warm`` further ones, and ends. Ratios are taken within
a round, and every case of every round begins with another program.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runtime.benchmark.figures import Figures
from runtime.benchmark.program import Answer, Program
from runtime.benchmark.protocol import GRAPHS
from runtime.benchmark.report import OURS, in_digits
from runtime.bundle import Bundle, Latents, TextConditioning
from runtime.errors import EngineError, RequestError

TIMESTEP = 500.0
GUIDANCE_SCALE = 7.5
LARGEST_DIFFERENCE = 0.2  # bfloat16 differs by some hundredths, other weights by more than 1


@dataclass(frozen=True)
class Case:
    """What is measured: one network at one size.

    Attributes:
        graph: of ``GRAPHS``.
        images: of a step, which is the U-Net on twice as many samples, or prompts of the text encoder.
        width, height: of an image in pixels; they do not matter to the text encoder.
        threads: to compute with, or as many as a program chooses.
    """

    graph: str
    images: int
    width: int
    height: int
    threads: int | None = None

    def __str__(self) -> str:
        size = "" if self.graph == "text_encoder" else f" {self.width}x{self.height}"
        several = f" of {self.images} images" if self.images > 1 else ""
        threads = "" if self.threads is None else f" by {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.graph}{size}{several}{threads}"


@dataclass(frozen=True)
class Shapes:
    """What the networks of a bundle take: channels and factor of the latents, tokens, widths."""

    channels: int
    factor: int
    scaling_factor: float
    tokens: int
    embedding_dim: int
    vocab_size: int

    @classmethod
    def of(cls, conditioning: TextConditioning, latents: Latents) -> Shapes:
        return cls(
            latents.channels,
            latents.factor,
            latents.scaling_factor,
            conditioning.max_length,
            conditioning.embedding_dim,
            conditioning.vocab_size,
        )

    def order(self, case: Case, seed: int) -> dict[str, Any]:
        """The order of ``protocol.py`` for a case."""
        latents = [case.images, self.channels, case.height // self.factor, case.width // self.factor]
        values: dict[str, dict[str, Any]] = {
            "text_encoder": {"tokens": [case.images, self.tokens], "vocab_size": self.vocab_size},
            "unet": {
                "latents": latents,
                "text": [case.images, self.tokens, self.embedding_dim],
                "timestep": TIMESTEP,
                "guidance_scale": GUIDANCE_SCALE,
            },
            "vae_decoder": {"latents": [1, *latents[1:]], "scaling_factor": self.scaling_factor},
            "vae_encoder": {"image": [1, 3, case.height, case.width]},
        }
        return {"op": GRAPHS[case.graph], "seed": seed} | values[case.graph]


@dataclass(frozen=True)
class Life:
    """One program with one case in one round.

    Attributes:
        load_seconds: from the start of its process until the network was ready.
        answers: the first run, then the warm ones.
    """

    round: int
    program: str
    ready: str
    case: Case
    load_seconds: float
    answers: list[Answer]

    @property
    def warm_seconds(self) -> float:
        return statistics.median(answer.seconds for answer in self.answers[1:])

    @property
    def peak_bytes(self) -> int:
        return self.answers[-1].peak_bytes

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Life:
        """Of a file's record.

        Raises:
            RequestError: it is no life.
        """
        try:
            answers = [Answer.of(each) for each in record["answers"]]
            if len(answers) < 2 or not isinstance(record["program"], str):
                raise ValueError("fewer than two answers, or no name")
            case = Case(**record["case"])
            hash(case)  # a list is no value of it
            seconds = float(record["load_seconds"])
            return cls(record["round"], record["program"], str(record["ready"]), case, seconds, answers)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise RequestError(
                f"a record of the figures is no life of a program ({type(error).__name__}: {error}); leave out --resume"
            ) from error


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; ratios of each round to the runtime's in it.

    Attributes:
        peak_bytes: of the round in which it was largest.
        difference: of the output from the runtime's, relative to its scale; None where the program shows none.
    """

    case: Case
    program: str
    ready: str
    load_seconds: float
    first_seconds: float
    seconds: float
    time_ratios: list[float]
    peak_bytes: int
    memory_ratios: list[float]
    difference: float | None


def graphs_of(bundle: Bundle, text: str | None, default: Sequence[str]) -> list[str]:
    """The graphs to measure, from words with commas between them.

    Raises:
        RequestError: one is unknown, or the bundle has no such graph.
    """
    chosen = list(default) if text is None else text.split(",")
    there = [graph for graph in GRAPHS if graph in bundle.graphs]
    for graph in chosen:
        if graph not in there and text is not None:
            raise RequestError(f"graph {graph!r} is unknown; {bundle.name} has {', '.join(there)}")
    return [graph for graph in there if graph in chosen]


def measure(
    commands: Mapping[str, list[str]],
    cases: Sequence[Case],
    shapes: Shapes,
    warm: int,
    rounds: int,
    limit_seconds: float,
    figures: Figures,
) -> None:
    """Let every program live once a round for every case; what fails is said so and left out from then on.

    Raises:
        EngineError: the runtime failed.
    """
    names = list(commands)
    for number in range(figures.rounds_done, rounds):
        for k, case in enumerate(cases):
            begin = (number + k) % len(names)
            for name in names[begin:] + names[:begin]:
                if figures.left_out(name, asdict(case)):
                    continue
                said = turn(name, commands[name], case, shapes, warm, number, limit_seconds, figures)
                print(f"round {number + 1} of {rounds}, {case}: {said}", file=sys.stderr, flush=True)
        figures.finish_round()


def turn(
    name: str,
    command: list[str],
    case: Case,
    shapes: Shapes,
    warm: int,
    number: int,
    limit_seconds: float,
    figures: Figures,
) -> str:
    """One life, noted; says how it went."""
    program = Program(name, command, limit_seconds)
    lived = False
    try:
        with program:
            lived = True
            life = live(program, case, shapes, warm, number)
    except EngineError as error:
        if name == OURS:
            raise
        message = f"{error}, with {case}" if lived else str(error)
        figures.fail(name, asdict(case) if lived else None, message)
        return message
    figures.add(asdict(life))
    return in_words(life)


def live(program: Program, case: Case, shapes: Shapes, warm: int, number: int) -> Life:
    """Load, a first run, and the warm ones."""
    loaded = program.order(op="load", graph=case.graph, threads=case.threads)
    answers = [program.order(**shapes.order(case, seed)) for seed in range(1 + warm)]
    return Life(number, program.name, program.ready, case, program.ready_seconds + loaded.seconds, answers)


def in_words(life: Life) -> str:
    first, *warm = (in_digits(answer.seconds) for answer in life.answers)
    return (
        f"{life.program} loaded in {in_digits(life.load_seconds)} s; first {first} s, then {' '.join(warm)} s; "
        f"{in_digits(life.peak_bytes / 1e9)} GB"
    )


def summary(figures: Figures) -> tuple[list[Row], list[str]]:
    """What lived through every whole round, and one line for each that did not or did other work."""
    lives = [Life.from_record(record) for record in figures.whole_rounds()]
    failures = [each["message"] for each in figures.failures]
    ours = {(life.case, life.round): life for life in lives if life.program == OURS}
    rows = []
    for case in dict.fromkeys(life.case for life in lives):
        for program in dict.fromkeys(life.program for life in lives):
            own = [life for life in lives if life.case == case and life.program == program]
            if len(own) < figures.rounds_done or figures.left_out(program, asdict(case)):
                continue
            row = row_of(own, [ours[case, life.round] for life in own])
            if row.difference is None or row.difference <= LARGEST_DIFFERENCE:
                rows.append(row)
                continue
            failures.append(
                f"{program} computes something else with {case}: its output differs by {row.difference:.2g} of the "
                f"runtime's; at most {LARGEST_DIFFERENCE} is rounding"
            )
    return rows, failures


def row_of(lives: Sequence[Life], ours: Sequence[Life]) -> Row:
    return Row(
        lives[0].case,
        lives[0].program,
        lives[0].ready,
        statistics.median(life.load_seconds for life in lives),
        statistics.median(life.answers[0].seconds for life in lives),
        statistics.median(life.warm_seconds for life in lives),
        [life.warm_seconds / own.warm_seconds for life, own in zip(lives, ours, strict=True)],
        max(life.peak_bytes for life in lives),
        [life.peak_bytes / own.peak_bytes for life, own in zip(lives, ours, strict=True)],
        difference_from(ours[0].answers[0].probe, lives[0].answers[0].probe),
    )


def difference_from(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The root mean square difference, relative to the runtime's scale; infinite where the outputs differ in size."""
    if not ours or not theirs:
        return None
    return math.dist(ours, theirs) / math.hypot(*ours) if len(ours) == len(theirs) else math.inf
