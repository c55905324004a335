"""How time and memory grow with the batch, with the picture's size, and with threads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runtime.benchmark.figures import Figures
from runtime.benchmark.lives import Case, Life, Row
from runtime.benchmark.report import in_digits, ratio_in_words, table

HEAD = (
    *("graph", "batch", "size", "threads", "program", "run, s", "time ÷ runtime's (min to max)", "peak memory, GB"),
    "memory ÷ runtime's (min to max)",
)
GROWTH_HEAD = ("graph", "program", "time grows with the batch to the", "with the number of latents to the", "threads")
SIZES = (0.5, 0.75, 1, 1.25, 1.5)  # of the bundle's own, each way
SIDE_MULTIPLE = 8  # latents, so that no level of the network has an odd number


@dataclass(frozen=True)
class Growth:
    """Fitted to one program's times with one graph, in each round.

    Attributes:
        batch_exponents: p in time ~ batch^p, by least squares of the logarithms; empty where one batch size was asked.
        latents_exponents: likewise in the number of latents, height times width.
        speed_ups: time with the fewest threads over time with the most.
        threads: those two numbers.
    """

    graph: str
    program: str
    batch_exponents: list[float]
    latents_exponents: list[float]
    speed_ups: list[float]
    threads: tuple[int, int] | None


def cases(
    graphs: Sequence[str], batch_sizes: Sequence[int], sizes: Sequence[tuple[int, int]], threads: Sequence[int]
) -> list[Case]:
    """One thing is varied at a time, from one image of the middle size by as many threads as a program chooses.

    The VAE works on one image at a time, so that its time with batches is known.
    """
    width, height = sizes[len(sizes) // 2]
    found = []
    for graph in graphs:
        images = batch_sizes if graph in ("unet", "text_encoder") else (1,)
        found += [Case(graph, count, width, height) for count in sorted({1, *images})]
        if graph != "text_encoder":
            found += [Case(graph, 1, *size) for size in sizes]
        found += [Case(graph, 1, width, height, count) for count in threads]
    return list(dict.fromkeys(found))


def default_sizes(width: int, height: int, factor: int) -> list[tuple[int, int]]:
    """From half to one and a half times a bundle's size, each way: 256 to 768 pixels of 512."""
    multiple = factor * SIDE_MULTIPLE

    def side(length: int, share: float) -> int:
        return max(1, round(length * share / multiple)) * multiple

    return list(dict.fromkeys((side(width, share), side(height, share)) for share in SIZES))


def growths(figures: Figures, rows: Sequence[Row]) -> list[Growth]:
    """What the programs in a table's rows show in each round."""
    lives = [Life.from_record(record) for record in figures.whole_rounds()]
    measured = {(row.case, row.program) for row in rows}
    kept = [life for life in lives if (life.case, life.program) in measured]
    pairs = dict.fromkeys((life.case.graph, life.program) for life in kept)
    return [growth(graph, program, kept) for graph, program in pairs]


def growth(graph: str, program: str, lives: Sequence[Life]) -> Growth:
    rounds: dict[int, dict[Case, float]] = {}
    for life in lives:
        if (life.case.graph, life.program) == (graph, program):
            rounds.setdefault(life.round, {})[life.case] = life.warm_seconds
    free = [{case: time for case, time in times.items() if case.threads is None} for times in rounds.values()]
    by_threads = [{case.threads: time for case, time in times.items() if case.threads} for times in rounds.values()]
    counts = sorted(by_threads[0])
    return Growth(
        graph,
        program,
        [p for times in free for p in exponent({case.images: time for case, time in of_base_size(times).items()})],
        [
            p
            for times in free
            for p in exponent({case.width * case.height: t for case, t in times.items() if case.images == 1})
        ],
        [times[counts[0]] / times[counts[-1]] for times in by_threads] if len(counts) > 1 else [],
        (counts[0], counts[-1]) if len(counts) > 1 else None,
    )


def of_base_size(times: dict[Case, float]) -> dict[Case, float]:
    """The cases of the size that batches were measured at."""
    batched = [case for case in times if case.images > 1]
    return {c: t for c, t in times.items() if batched and (c.width, c.height) == (batched[0].width, batched[0].height)}


def exponent(times: dict[int, float]) -> list[float]:
    """The slope of a line through the logarithms, or nothing where there are not two points."""
    if len(times) < 2:
        return []
    slope, _ = np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)
    return [float(slope)]


def in_markdown(rows: Sequence[Row], growths: Sequence[Growth]) -> str:
    """First what was measured, then what was fitted to it."""
    measured = [
        (
            row.case.graph,
            str(row.case.images),
            f"{row.case.width}x{row.case.height}",
            "–" if row.case.threads is None else str(row.case.threads),
            row.program,
            in_digits(row.seconds),
            ratio_in_words(row.time_ratios),
            in_digits(row.peak_bytes / 1e9),
            ratio_in_words(row.memory_ratios),
        )
        for row in rows
    ]
    fitted = [
        (each.graph, each.program, power(each.batch_exponents), power(each.latents_exponents), speed_up(each))
        for each in growths
    ]
    return f"{table(HEAD, measured)}\n\n{table(GROWTH_HEAD, fitted)}"


def power(exponents: Sequence[float]) -> str:
    return f"{statistics.median(exponents):.2f} ({min(exponents):.2f} to {max(exponents):.2f})" if exponents else "–"


def speed_up(growth: Growth) -> str:
    if not growth.threads:
        return "–"
    return f"{growth.threads[1]} are {ratio_in_words(growth.speed_ups)} times as fast as {growth.threads[0]}"


def as_json(rows: Sequence[Row], growths: Sequence[Growth]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows] + [{"growth": asdict(each)} for each in growths]
