"""The command: what to measure, of which programs, and where the figures go."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.arguments import parse_size
from runtime.benchmark import drawing, networks, worker
from runtime.benchmark.report import machine
from runtime.bundle import DEFAULT_MODEL, Bundle, Latents, TextConditioning, open_bundle
from runtime.engine import PROVIDERS
from runtime.errors import RequestError
from runtime.image import check_writable, write_file
from runtime.text_to_image import MAX_SIDE

OURS = "runtime"
BATCH_SIZES, STEPS, WARM = "1,32", "20", 1
NEEDS_TEXT = "one guided step and one decode are measured of text bundles"
NEEDS_CLASSES = "images per second are measured of class-conditional bundles"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=benchmark)
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="a bundle's folder or name (default: %(default)s)"
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="another program to run in turn"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each program has its turn (default: 3)")
    parser.add_argument(
        "--limit", type=float, default=600, metavar="SECONDS", help="end what takes longer for an order"
    )
    parser.add_argument("--provider", choices=("auto", *PROVIDERS), default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    drawing_group = parser.add_argument_group("class-conditional bundles", "images per second, after one warm round")
    drawing_group.add_argument("--batch-sizes", help=f"comma-separated (default: {BATCH_SIZES})")
    drawing_group.add_argument("--steps", help=f"DDIM steps for each picture, likewise (default: {STEPS})")
    networks_group = parser.add_argument_group("text bundles", "one guided step and one decode, after a first of each")
    networks_group.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: the bundle's)")
    networks_group.add_argument("--warm", type=int, help=f"steps after the first (default: {WARM})")


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure, and print a table in Markdown."""
    if arguments.worker:
        return worker.run(arguments.model, arguments.provider)
    for name in ("rounds", "warm"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise RequestError(f"{name} is {value}; it must be at least 1")
    if not 0 < arguments.limit <= threading.TIMEOUT_MAX:
        raise RequestError(
            f"limit is {arguments.limit}; it must be more than 0 seconds and at most {threading.TIMEOUT_MAX:.0f}"
        )
    if arguments.json:
        check_writable(arguments.json, overwrite=True)
    bundle = open_bundle(arguments.model)
    commands = program_commands(arguments, bundle)
    if isinstance(bundle.conditioning, TextConditioning) and bundle.latents:
        return benchmark_networks(bundle, bundle.conditioning, bundle.latents, commands, arguments)
    return benchmark_drawing(commands, arguments)


def program_commands(arguments: argparse.Namespace, bundle: Bundle) -> dict[str, list[str]]:
    """The runtime's command, and the peers'."""
    own = [sys.executable, "-m", "runtime", "benchmark", "--worker", "--provider", arguments.provider]
    commands = {OURS: [*own, str(bundle.folder)]}
    for peer in arguments.peer:
        name, _, command = peer.partition("=")
        try:
            words = shlex.split(command)
        except ValueError as error:  # a quotation mark without its other half
            raise RequestError(f"peer {peer!r} cannot be read: {str(error).lower()}") from error
        if not (name and words):
            raise RequestError(f"peer {peer!r} must be NAME=COMMAND")
        if name in commands:
            raise RequestError(f"peer {peer!r} has the name of another program; choose one for each")
        commands[name] = words
    return commands


def benchmark_drawing(commands: dict[str, list[str]], arguments: argparse.Namespace) -> int:
    """Images per second of a class-conditional bundle."""
    refuse(arguments, ("size", "warm"), NEEDS_TEXT)
    batch_sizes = parse_counts("batch sizes", arguments.batch_sizes or BATCH_SIZES)
    steps = parse_counts("steps", arguments.steps or STEPS)
    rows: list[drawing.Row] = []
    for batch in batch_sizes:
        rows += drawing.measure(commands, batch, steps, arguments.rounds, arguments.limit)
    print(f"{arguments.model}, DDIM, default guidance scale.")
    print(f"Medians of {arguments.rounds} rounds in turn, after one of warm-up.")
    print(f"{machine()}.\n")
    print(drawing.in_markdown(rows))
    print_versions({row.program: row.ready for row in rows})
    write_json(arguments, {"steps": steps, "rows": [asdict(row) for row in rows]})
    return 0


def benchmark_networks(
    bundle: Bundle,
    conditioning: TextConditioning,
    latents: Latents,
    commands: dict[str, list[str]],
    arguments: argparse.Namespace,
) -> int:
    """One guided step and one decode of a text bundle."""
    refuse(arguments, ("batch_sizes", "steps"), NEEDS_CLASSES)
    width, height = size_of(arguments.size, bundle, latents.factor)
    work = networks.Work(
        latents=(1, latents.channels, height // latents.factor, width // latents.factor),
        text=(1, conditioning.max_length, conditioning.embedding_dim),
        scaling_factor=latents.scaling_factor,
        warm=arguments.warm or WARM,
    )
    records = networks.measure(commands, work, arguments.rounds, arguments.limit)
    rows, failures = networks.summary(records)
    print(f"{arguments.model}, {width}x{height}, one guided step (the U-Net on 2 samples) and one decode.")
    print(f"Medians of {arguments.rounds} rounds; in each every program is started anew, alone, and takes {work.warm}")
    print(f"steps and a decode after a first of each. {machine()}.\n")
    print(networks.in_markdown(rows))
    print_versions({row.program: row.ready for row in rows})
    rounds = {record.name: [asdict(life) for life in record.lives] for record in records}
    figures = {"work": asdict(work), "rows": [asdict(row) for row in rows], "failures": failures, "rounds": rounds}
    write_json(arguments, figures)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 2 if failures else 0


def refuse(arguments: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    """Options of the other kind of bundle are a mistake, not a thing to leave aside in silence."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise RequestError(f"--{name.replace('_', '-')} does not go with {arguments.model}: {reason}")


def size_of(text: str | None, bundle: Bundle, factor: int) -> tuple[int, int]:
    """Width and height; without a text the bundle's."""
    default = (bundle.defaults.width, bundle.defaults.height)
    width, height = default if text is None else parse_size(text)
    if not 0 < min(width, height) <= max(width, height) <= MAX_SIDE or width % factor or height % factor:
        raise RequestError(
            f"size {text!r} must be two multiples of {factor} up to {MAX_SIDE}, such as {default[0]}x{default[1]}"
        )
    return width, height


def parse_counts(name: str, text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise RequestError(f"{name} {text!r} must be whole numbers of at least 1 with commas between them")
    return counts


def print_versions(versions: dict[str, str]) -> None:
    print()
    for name, ready in versions.items():
        print(f"- {name}: {ready}")


def write_json(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    if arguments.json:
        everything = {"model": arguments.model, "machine": machine(), "rounds_asked": arguments.rounds} | figures
        write_file(arguments.json, json.dumps(everything, indent=1).encode() + b"\n")
