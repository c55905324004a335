"""What each network really takes of memory beside what ``runtime.memory`` estimates, and the constants that would fit.

    python tests/full_size_memory.py [BUNDLE] [--variant fp32] [--sizes 256x256,512x512] [--rows 1,2] [--constants]

Without a bundle it is the full-size one of random weights that the full-size tests share. Every line of the table is a
process of its own: it loads one network, evaluates it, and once more as for the last time. What is measured is resident
memory, mapped files included, as Linux counts it in /proc/self/status, less what the process held before it loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from runtime.arguments import parse_size
from runtime.available_memory import held_bytes
from runtime.bundle import Bundle, GraphVariant, open_bundle
from runtime.engine import import_engine
from runtime.errors import DiffusionError
from runtime.memory import (
    ACTIVATIONS,
    CPU_ONLY,
    PORTABLE,
    SESSION,
    Cost,
    Demand,
    MemoryPlan,
    copies,
    estimate,
    weight_bytes,
)
from runtime.networks import Networks

ROOT = Path(__file__).parents[1]
HEAD = "| network | rows | pixels | loading | estimated | evaluating | estimated | kept | given back to |"
MIB = 2**20


@dataclass(frozen=True)
class Point:
    """One evaluation of one network."""

    role: str
    rows: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.role} | {self.rows} | {self.width} x {self.height}"


@dataclass(frozen=True)
class Measured:
    """Bytes beside what the process held before.

    Attributes:
        loading: the most while the session was made.
        held: when it was made.
        peak: the most since then, of two evaluations.
        kept: after the first of them.
        given_back: after the second, which gave back what it took.
    """

    loading: int
    held: int
    peak: int
    kept: int
    given_back: int


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status says nothing of {key}"
    return 1024 * int(found[1])


def inputs_of(bundle: Bundle, graph: GraphVariant, point: Point) -> dict[str, np.ndarray[Any, Any]]:
    """Numbers of the right shapes; what they are does not matter to memory."""
    factor = bundle.latents.factor if bundle.latents else 1
    pixels = point.role == "vae_encoder"
    sides = (point.height, point.width) if pixels else (point.height // factor, point.width // factor)
    length = getattr(bundle.conditioning, "max_length", 0)
    values = {}
    for spec in graph.inputs:
        if len(spec.shape) == 4:
            shape: tuple[int, ...] = (point.rows, int(spec.shape[1]), *sides)
        else:
            named = {0: 1 if spec.name == "extra_embeddings" else point.rows, 1: length}
            shape = tuple(size if isinstance(size, int) else named[k] for k, size in enumerate(spec.shape))
        values[spec.name] = np.ones(shape, spec.dtype)
    return values


def measure_here(model: str, variant: str | None, point: Point) -> Measured:
    """Load and evaluate in this process, which has done nothing yet."""
    bundle = open_bundle(model)
    networks = Networks(bundle, variant=variant, ignore_memory=True)
    import_engine()
    before = held_bytes()
    session = networks.session(point.role)
    loading, held = status("VmHWM") - before, held_bytes() - before
    inputs = inputs_of(bundle, session.graph, point)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    session.run(**inputs)
    kept = held_bytes() - before
    session.for_the_last_time().run(**inputs)
    return Measured(loading, held, status("VmHWM") - before, kept, held_bytes() - before)


def measure(model: str, variant: str | None, point: Point) -> Measured:
    """The same in a process of its own."""
    words = [model, "--here", point.role, str(point.rows), f"{point.width}x{point.height}"]
    words += [] if variant is None else ["--variant", variant]
    command = [sys.executable, __file__, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return Measured(**json.loads(done.stdout))


def points(bundle: Bundle, sizes: list[tuple[int, int]], rows: list[int]) -> list[Point]:
    """Each network at each size, the U-Net with each number of rows, and the text encoder once."""
    found = []
    for role in (role for role in PORTABLE if role in bundle.graphs):
        if role == "text_encoder":
            found.append(Point(role, 1, *sizes[0]))
        else:
            counts = rows if role == "unet" else [1]
            found += [Point(role, count, *size) for size in sizes for count in counts]
    return found


def expected(bundle: Bundle, graph: GraphVariant, point: Point) -> tuple[int, int]:
    """What loading and evaluating are estimated to take."""
    demand = Demand(point.width, point.height, {point.role: graph}, guided=False)
    (stage,) = estimate(bundle, demand, MemoryPlan(point.rows)).stages
    return stage.loading, stage.held + stage.activations


def fitted(bundle: Bundle, graph: GraphVariant, made: dict[Point, Measured]) -> Cost:
    """The constants of one network, which nothing that was measured exceeds.

    Three terms by least squares, none below zero; what the worst point then lacks goes to what is fixed.
    """
    (role,) = {point.role for point in made}
    weights, (loading_copies, held_copies) = weight_bytes(bundle, graph), copies(graph)
    loading = (max(each.loading for each in made.values()) - SESSION) / (loading_copies * weights)
    held = (max(each.held for each in made.values()) - SESSION) / (held_copies * weights)
    evaluated = np.array([each.peak - SESSION - held * held_copies * weights for each in made.values()])

    def taken(cost: Cost) -> list[float]:
        demands = [Demand(point.width, point.height, {role: graph}, guided=False) for point in made]
        plans = [MemoryPlan(point.rows) for point in made]
        return [ACTIVATIONS[role](cost, weights, bundle, *each) for each in zip(demands, plans, strict=True)]

    terms = np.stack([np.ones(len(made)) * weights, taken(Cost(0, 0, 0, 1)), taken(Cost(0, 0, 0, 0, 1))], axis=1)
    if graph.providers == CPU_ONLY:  # fused attention holds no scores, and chance must not look like them
        terms[:, 2] = 0
    scale = terms.max(axis=0).clip(1)
    numbers, _ = nnls(terms / scale, evaluated.clip(0))
    fixed, place, pair = numbers / scale
    short = max(0.0, *(evaluated - terms @ (fixed, place, pair)))
    return Cost(*map(round_up, (loading, held, fixed + short / weights, place)), pair=math.ceil(pair))


def round_up(value: float) -> float:
    return float(np.ceil(1000 * value) / 1000)


def show(bundle: Bundle, networks: Networks, made: dict[Point, Measured]) -> None:
    print(HEAD, "|---" * 9 + "|", sep="\n")
    for point, each in made.items():
        loading, evaluating = expected(bundle, networks.graph(point.role), point)
        numbers = (each.loading, loading, each.peak, evaluating, each.kept, each.given_back)
        print(f"| {point} | " + " | ".join(f"{number / MIB:,.0f}" for number in numbers) + " |")
    print("MiB beside what the process held before; estimated as runtime.memory has it.")


def show_constants(bundle: Bundle, networks: Networks, made: dict[Point, Measured]) -> None:
    for role in dict.fromkeys(point.role for point in made):
        graph = networks.graph(role)
        table = "FUSED" if graph.providers == CPU_ONLY else "PORTABLE"
        own = {point: each for point, each in made.items() if point.role == role}
        print(f'{table}["{role}"] = {fitted(bundle, graph, own)}')


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a bundle (default: the full-size one of random weights)")
    parser.add_argument("--variant")
    parser.add_argument("--sizes", default="256x256,384x640,512x512,768x512")
    parser.add_argument("--rows", default="1,2", help="of the U-Net")
    parser.add_argument("--constants", action="store_true", help="print what to put into runtime/memory.py")
    parser.add_argument("--here", nargs=3, metavar=("ROLE", "ROWS", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.here:
        role, rows, size = arguments.here
        point = Point(role, int(rows), *parse_size(size))
        print(json.dumps(vars(measure_here(arguments.model, arguments.variant, point))))
        return 0
    model = arguments.model or full_size_model()
    bundle = open_bundle(model)
    networks = Networks(bundle, variant=arguments.variant)
    sizes = [parse_size(each) for each in arguments.sizes.split(",")]
    made = {}
    for point in points(bundle, sizes, [int(count) for count in arguments.rows.split(",")]):
        print(f"{point} …", file=sys.stderr, flush=True)
        made[point] = measure(str(model), arguments.variant, point)
    show(bundle, networks, made)
    if arguments.constants:
        show_constants(bundle, networks, made)
    return 0


def full_size_model() -> str:
    """Exported where it is not there yet: a child does not pay for PyTorch, which only that needs."""
    import full_size_bundle

    return str(full_size_bundle.exported_bundle())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
