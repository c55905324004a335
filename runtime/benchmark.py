"""``python -m runtime benchmark``: images per second, beside other programs, in turn, in one run.

Machines are shared and swing, so a time on its own says little. Every program is a process of its own that waits; in
each round each of them draws once, one after the other, and what is reported is the median of the rounds' *ratios*. A
program is anything that speaks the protocol: for each line ``{"batch": B, "steps": N, "seed": S}`` on standard input
it draws B images through N DDIM steps with the bundle's default guidance, and answers ``{"seconds": t, "peak_bytes":
m}``, m being the peak memory of its process so far.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from runtime.bundle import DEFAULT_MODEL, find_bundle
from runtime.engine import PROVIDERS, processor_name
from runtime.errors import EngineError, RequestError
from runtime.image import check_writable, write_file
from runtime.pipeline import load

OURS = "runtime"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=benchmark)
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="a bundle's folder or name (default: %(default)s)"
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="another program to run in turn"
    )
    parser.add_argument("--batch-sizes", default="1,32", help="comma-separated (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps for each picture (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one of warm-up (default: %(default)s)")
    parser.add_argument("--provider", choices=("auto", *PROVIDERS), default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


@dataclass
class Program:
    """One program under test, as a running process, and what it measured."""

    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def __enter__(self) -> Program:
        try:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise EngineError(
                f"{self.name} ({shlex.join(self.command)}) cannot be started: {error.strerror}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.communicate()

    def draw(self, batch: int, steps: int, seed: int) -> float:
        """Ask for one batch; returns its seconds.

        Raises:
            EngineError: the program ended or answered something else.
        """
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"batch": batch, "steps": steps, "seed": seed}) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
            self.peak_bytes = int(answer["peak_bytes"])
            return float(answer["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{self.name} ({shlex.join(self.command)}) ended or does not speak the protocol"
            ) from error


def serve(arguments: argparse.Namespace) -> int:
    """Be a program under test: this runtime."""
    pipeline = load(arguments.model, arguments.provider)
    for line in sys.stdin:
        order = json.loads(line)
        begun = time.perf_counter()
        pipeline(
            [k % pipeline.bundle.conditioning.num_classes for k in range(order["batch"])],
            sampler="ddim",
            num_inference_steps=order["steps"],
            seed=order["seed"],
            batch_size=order["batch"],
        )
        print(json.dumps({"seconds": time.perf_counter() - begun, "peak_bytes": peak_bytes()}), flush=True)
    return 0


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    import resource  # Unix has it alone, and other commands live in modules beside this one

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def parse_batch_sizes(text: str) -> list[int]:
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise RequestError(f"batch sizes {text!r} must be whole numbers of at least 1 with commas between them")
    return sizes


def measure(programs: list[Program], batch: int, steps: int, rounds: int) -> None:
    """One round of warm-up, then ``rounds`` in which every program draws once, in turn."""
    for number in range(rounds + 1):
        for program in programs:
            seconds = program.draw(batch, steps, seed=number)
            if number:
                program.seconds.append(seconds)


def row(program: Program, ours: Program, batch: int) -> dict[str, Any]:
    """The figures of one program at one batch size."""
    ratios = [theirs / mine for theirs, mine in zip(program.seconds, ours.seconds, strict=True)]
    return {
        "program": program.name,
        "batch": batch,
        "seconds": statistics.median(program.seconds),
        "images_per_second": batch / statistics.median(program.seconds),
        "times_the_runtime": statistics.median(ratios),
        "ratios": ratios,
        "peak_megabytes": program.peak_bytes / 1e6,
    }


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure and print a table in Markdown."""
    if arguments.worker:
        return serve(arguments)
    for name in ("steps", "rounds"):
        if getattr(arguments, name) < 1:
            raise RequestError(f"{name} is {getattr(arguments, name)}; it must be at least 1")
    if arguments.json:
        check_writable(arguments.json, overwrite=True)
    model = str(find_bundle(arguments.model))
    worker = [sys.executable, "-m", "runtime", "benchmark", "--worker", "--provider", arguments.provider, model]
    commands = {OURS: worker}
    for peer in arguments.peer:
        name, equals, command = peer.partition("=")
        if not (name and equals and command):
            raise RequestError(f"peer {peer!r} must be NAME=COMMAND")
        commands[name] = shlex.split(command)
    rows = []
    for batch in parse_batch_sizes(arguments.batch_sizes):
        rows += measure_batch(commands, batch, arguments.steps, arguments.rounds)
    print_table(rows, arguments)
    if arguments.json:
        write_file(arguments.json, json.dumps(rows, indent=1).encode() + b"\n")
    return 0


def measure_batch(commands: dict[str, list[str]], batch: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Start every program anew, so that its peak memory is that of this batch size."""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program(name, command)) for name, command in commands.items()]
        measure(programs, batch, steps, rounds)
    return [row(program, programs[0], batch) for program in programs]


def print_table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    print(f"{arguments.model}, DDIM {arguments.steps} steps, default guidance scale.")
    print(f"Medians of {arguments.rounds} rounds in turn, after one of warm-up.")
    print(f"{processor_name()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}.\n")
    print("| batch | program | seconds a batch | images/s | time ÷ runtime's (min to max) | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for each in rows:
        spread = f"{each['times_the_runtime']:.2f} ({min(each['ratios']):.2f} to {max(each['ratios']):.2f})"
        print(
            f"| {each['batch']} | {each['program']} | {each['seconds']:.3f} | {each['images_per_second']:.1f} "
            f"| {spread} | {each['peak_megabytes']:.0f} |"
        )
