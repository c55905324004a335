"""The figures of one benchmark as a chart: ``python -m peers.chart FIGURES.json CHART.svg``.

FIGURES.json is what ``python -m runtime benchmark --json`` wrote of a text bundle. What is drawn is what the tables
say: medians, with the smallest and the largest of the rounds.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.benchmark.figures import read
from runtime.errors import RequestError
from runtime.image import write_file

Rows = list[dict[str, Any]]
HEIGHT = 0.32  # inches that a bar takes
KINDS = ("graphs", "scaling", "pictures")


def bars(axes: Any, names: Sequence[str], ratios: Sequence[Sequence[float]], label: str) -> None:
    """One bar for each program, as long as its median, with a line from the smallest to the largest."""
    medians = [statistics.median(each) for each in ratios]
    spread = [
        [middle - min(each) for middle, each in zip(medians, ratios, strict=True)],
        [max(each) - middle for middle, each in zip(medians, ratios, strict=True)],
    ]
    colours = [f"C{k}" for k in range(len(names))]
    axes.barh(range(len(names)), medians, xerr=spread, color=colours, height=0.7, ecolor="0.25", capsize=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(1, color="0.5", linewidth=0.8, zorder=0)
    for k, (middle, high) in enumerate(zip(medians, spread[1], strict=True)):
        axes.annotate(f"{middle:.2f}", (middle + high, k), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.15)
    axes.set_xlabel(label)


def draw_ratios(pyplot: Any, groups: dict[str, Rows]) -> Any:
    """A row of two panels, time and memory, for each group of programs."""
    most = max(map(len, groups.values()))
    figure, panels = pyplot.subplots(
        len(groups), 2, figsize=(8.4, (HEIGHT * most + 0.75) * len(groups)), layout="constrained", squeeze=False
    )
    for (title, rows), (time, memory) in zip(groups.items(), panels, strict=True):
        names = [row["program"] for row in rows]
        bars(time, names, [row["time_ratios"] for row in rows], "time ÷ runtime's")
        bars(memory, names, [row["memory_ratios"] for row in rows], "peak memory ÷ runtime's")
        memory.set_yticklabels([])
        time.set_title(title, loc="left")
    return figure


def draw_growth(pyplot: Any, rows: Rows) -> Any:
    """Time and memory of the U-Net's step over batches, and of each graph over latents, on logarithmic axes."""
    measured = [row for row in rows if "growth" not in row and row["case"]["threads"] is None]
    unet = [row for row in measured if row["case"]["graph"] == "unet"]
    batched = [(row["case"]["width"], row["case"]["height"]) for row in unet if row["case"]["images"] > 1]
    of_base = [row for row in unet if (row["case"]["width"], row["case"]["height"]) in batched]
    panels = {"U-Net, by images in a batch": (of_base, lambda case: case["images"])} if batched else {}
    for graph in dict.fromkeys(row["case"]["graph"] for row in measured):
        single = [row for row in measured if row["case"]["graph"] == graph and row["case"]["images"] == 1]
        panels[f"{graph}, by pixels"] = (single, lambda case: case["width"] * case["height"])
    figure, axes = pyplot.subplots(
        len(panels), 2, figsize=(8.4, 2.9 * len(panels)), layout="constrained", squeeze=False
    )
    for (title, (points, along)), (time, memory) in zip(panels.items(), axes, strict=True):
        lines(time, points, along, lambda row: row["seconds"])
        lines(memory, points, along, lambda row: row["peak_bytes"] / 1e9)
        time.set_title(title, loc="left")
        time.set_ylabel("seconds")
        memory.set_ylabel("peak memory, GB")
    axes[0][0].legend(fontsize=8)
    return figure


def lines(axes: Any, rows: Rows, along: Any, value: Any) -> None:
    """A line for each program, on logarithmic axes whose ticks are written out."""
    from matplotlib import ticker

    cases = {along(row["case"]): row["case"] for row in rows}
    names = [str(x) if x == case["images"] else f"{case['width']}x{case['height']}" for x, case in cases.items()]
    for k, program in enumerate(dict.fromkeys(row["program"] for row in rows)):
        points = sorted((along(row["case"]), value(row)) for row in rows if row["program"] == program)
        axes.loglog(*zip(*points, strict=True), marker="osDv^<>P"[k % 8], markersize=4, linewidth=1, label=program)
    axes.minorticks_off()
    axes.set_xticks(list(cases), names)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)


def draw(kind: str, rows: Rows) -> Any:
    """A figure of matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "benchmark", "font.size": 9}
    from matplotlib import pyplot

    if kind == "scaling":
        return draw_growth(pyplot, rows)
    groups: dict[str, Rows] = {}
    for row in rows:
        title = row["case"]["graph"] if kind == "graphs" else f"whole pictures of {row['steps']} steps"
        groups.setdefault(title, []).append(row)
    return draw_ratios(pyplot, groups)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m peers.chart", description=__doc__)
    parser.add_argument("figures", type=Path, help="what python -m runtime benchmark --json wrote")
    parser.add_argument("chart", type=Path, help="the .svg to write")
    arguments = parser.parse_args()
    try:
        said = read(arguments.figures)
        rows = said.get("rows")
        if said.get("kind") not in KINDS or not rows:
            raise RequestError(f"{arguments.figures} holds no rows of {', '.join(KINDS)}; finish at least one round")
        write_file(arguments.chart, as_svg(draw(said["kind"], rows)))
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyError, TypeError, ValueError) as error:
        print(f"error: {arguments.figures} has rows of another form ({error})", file=sys.stderr)
        return 2
    return 0


def as_svg(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
