"""Figures in words: medians of ratios, Markdown tables, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence

from runtime.engine import processor_name


def ratio_in_words(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def machine() -> str:
    """The processor, how many of it may be used, Python's version and the date, in one line."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}, " if "OMP_NUM_THREADS" in os.environ else ""
    python = f"{threads}Python {platform.python_version()}"
    return f"{processor_name()}, {allowed} processors, {python}, {time.strftime('%Y-%m-%d')}"
