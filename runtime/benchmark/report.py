"""Figures in words: medians of ratios, Markdown tables, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence

from runtime.engine import processor_features, processor_name

OURS = "runtime"  # how the tables call this one


def ratio_in_words(ratios: Sequence[float]) -> str:
    if set(ratios) == {1.0}:  # the runtime's to itself
        return "1"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def in_digits(value: float | None) -> str:
    """Seconds or gigabytes in three digits; a dash where there are none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def machine() -> dict[str, str | int]:
    """What the figures were measured on: the processor, how many of it may be used, and the versions below all else."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, str | int] = {
        "processor": processor_name(),
        "features": " ".join(processor_features()),
        "processors": allowed,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if "OMP_NUM_THREADS" in os.environ:
        found["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    return found


def machine_in_words(found: dict[str, str | int]) -> str:
    """The same in one line, with today's date."""
    threads = f"OMP_NUM_THREADS={found['OMP_NUM_THREADS']}, " if "OMP_NUM_THREADS" in found else ""
    return (
        f"{found['processor']}, {found['processors']} processors, {threads}Python {found['python']}, "
        f"{time.strftime('%Y-%m-%d')}"
    )
