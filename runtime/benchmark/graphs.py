"""Each network of a text bundle at one size: the table."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.benchmark.lives import Row
from runtime.benchmark.report import in_digits, ratio_in_words, table

HEAD = (
    *("graph", "program", "load, s", "first run, s", "run, s", "time ÷ runtime's (min to max)"),
    *("peak memory, GB", "memory ÷ runtime's (min to max)", "difference"),
)


def in_markdown(rows: Sequence[Row]) -> str:
    return table(
        HEAD,
        [
            (
                row.case.graph,
                row.program,
                in_digits(row.load_seconds),
                in_digits(row.first_seconds),
                in_digits(row.seconds),
                ratio_in_words(row.time_ratios),
                in_digits(row.peak_bytes / 1e9),
                ratio_in_words(row.memory_ratios),
                "not shown" if row.difference is None else f"{row.difference:.0e}",
            )
            for row in rows
        ],
    )
