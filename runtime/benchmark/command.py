"""The command: what to measure, of which programs, and where the figures go."""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.arguments import parse_size
from runtime.benchmark import drawing, graphs, lives, pictures, scaling, worker
from runtime.benchmark.figures import Figures
from runtime.benchmark.protocol import GRAPHS
from runtime.benchmark.report import OURS, machine, machine_in_words
from runtime.bundle import DEFAULT_MODEL, Bundle, Latents, TextConditioning, open_bundle
from runtime.engine import PROVIDERS
from runtime.errors import RequestError
from runtime.image import check_writable
from runtime.limits import check_whole
from runtime.networks import MAX_THREADS
from runtime.text_to_image import MAX_SIDE

BATCH_SIZES, STEPS, WARM = "1,32", "20", 1
SCALING_BATCH_SIZES, SCALING_GRAPHS = "1,2,4,8", ("unet", "vae_decoder")
PICTURE_STEPS, PICTURE_SEED = "4,8", 0
PROMPT = "a photograph of an astronaut riding a horse"

# What each kind of measurement takes of the options that not all take, and how it is spoken of.
OPTIONS = {
    "drawing": ("batch_sizes", "steps"),
    "graphs": ("graphs", "size", "warm"),
    "scaling": ("graphs", "batch_sizes", "sizes", "threads", "warm"),
    "pictures": ("prompt", "seed", "size", "steps"),
}
SPOKEN_OF = {
    "drawing": "images per second are measured of class-conditional bundles",
    "graphs": "each network is measured at one size of text bundles",
    "scaling": "with --scaling networks are measured at several sizes",
    "pictures": "with --pictures whole pictures are measured",
}


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
        "--limit", type=float, default=600, metavar="SECONDS", help="end what takes longer for an order or a picture"
    )
    parser.add_argument("--provider", choices=("auto", *PROVIDERS), default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures here, after each program's turn")
    parser.add_argument("--resume", action="store_true", help="go on after the last whole round in the --json file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--scaling", action="store_true", help="text bundles: several batches, sizes and threads")
    kind.add_argument("--pictures", action="store_true", help="text bundles: from the start of a process to its PNG")
    classes = parser.add_argument_group("class-conditional bundles", "images per second, after one warm round")
    classes.add_argument(
        "--batch-sizes", help=f"comma-separated (default: {BATCH_SIZES}; with --scaling {SCALING_BATCH_SIZES})"
    )
    classes.add_argument(
        "--steps", help=f"DDIM steps for each picture, likewise (default: {STEPS}; with --pictures {PICTURE_STEPS})"
    )
    texts = parser.add_argument_group(
        "text bundles", "each network for itself, unless --scaling or --pictures is given"
    )
    texts.add_argument("--graphs", help=f"comma-separated, of {', '.join(GRAPHS)} (default: all there are)")
    texts.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: the bundle's)")
    texts.add_argument("--warm", type=int, help=f"runs after the first (default: {WARM})")
    texts.add_argument("--sizes", help="with --scaling, comma-separated (default: 0.5 to 1.5 times the bundle's)")
    texts.add_argument("--threads", help="with --scaling, comma-separated (default: 1 and the number of processors)")
    texts.add_argument("--prompt", help=f"with --pictures (default: {PROMPT})")
    texts.add_argument("--seed", type=int, help=f"with --pictures (default: {PICTURE_SEED})")


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure, and print a table in Markdown."""
    if arguments.worker:
        return worker.run(arguments.model, arguments.provider)
    check(arguments)
    bundle = open_bundle(arguments.model)
    conditioning, latents = bundle.conditioning, bundle.latents
    kind = "scaling" if arguments.scaling else "pictures" if arguments.pictures else "graphs"
    if not isinstance(conditioning, TextConditioning) or latents is None:
        for name in ("scaling", "pictures"):
            if getattr(arguments, name):
                raise RequestError(f"--{name} does not go with {arguments.model}: {SPOKEN_OF['drawing']}")
        refuse_others(arguments, "drawing")
        return benchmark_drawing(program_commands(arguments, worker_command(arguments, bundle)), arguments)
    refuse_others(arguments, kind)
    if kind == "pictures":
        return benchmark_pictures(bundle, latents, arguments)
    shapes = lives.Shapes.of(conditioning, latents)
    return benchmark_networks(bundle, shapes, program_commands(arguments, worker_command(arguments, bundle)), arguments)


def check(arguments: argparse.Namespace) -> None:
    """What can be wrong without looking at the bundle."""
    for name in ("rounds", "warm"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise RequestError(f"{name} is {value}; it must be at least 1")
    if not 0 < arguments.limit <= threading.TIMEOUT_MAX:
        raise RequestError(
            f"limit is {arguments.limit}; it must be more than 0 seconds and at most {threading.TIMEOUT_MAX:.0f}"
        )
    if arguments.resume and not arguments.json:
        raise RequestError("--resume goes on where a file ends; say which by --json")
    if arguments.json:
        check_writable(arguments.json, overwrite=True)


def refuse_others(arguments: argparse.Namespace, kind: str) -> None:
    """Options of another kind of measurement are a mistake, not a thing to leave aside in silence."""
    for name in dict.fromkeys(name for names in OPTIONS.values() for name in names):
        if name not in OPTIONS[kind] and getattr(arguments, name) is not None:
            raise RequestError(f"--{name.replace('_', '-')} does not go with {arguments.model}: {SPOKEN_OF[kind]}")


def worker_command(arguments: argparse.Namespace, bundle: Bundle) -> list[str]:
    own = [sys.executable, "-m", "runtime", "benchmark", "--worker", "--provider", arguments.provider]
    return [*own, str(bundle.folder)]


def program_commands(arguments: argparse.Namespace, own: list[str]) -> dict[str, list[str]]:
    """The runtime's command, and the peers'."""
    commands = {OURS: own}
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


def figures_for(
    arguments: argparse.Namespace, kind: str, commands: Mapping[str, list[str]], work: dict[str, Any]
) -> Figures:
    head = {
        "kind": kind,
        "command": sys.argv,
        "model": arguments.model,
        "machine": machine(),
        "programs": dict(commands),
        "work": work,
        "rounds_asked": arguments.rounds,
    }
    return Figures(head, arguments.json, arguments.resume)


def benchmark_drawing(commands: dict[str, list[str]], arguments: argparse.Namespace) -> int:
    """Images per second of a class-conditional bundle."""
    if arguments.resume:
        raise RequestError("--resume does not go with class-conditional bundles, whose programs all wait in one run")
    batch_sizes = parse_counts("batch sizes", arguments.batch_sizes or BATCH_SIZES)
    steps = parse_counts("steps", arguments.steps or STEPS)
    figures = figures_for(arguments, "drawing", commands, {"batch_sizes": batch_sizes, "steps": steps})
    rows: list[drawing.Row] = []
    for batch in batch_sizes:
        rows += drawing.measure(commands, batch, steps, arguments.rounds, arguments.limit)
        figures.summary = [asdict(row) for row in rows]
        figures.write()
    print(f"{arguments.model}, DDIM, default guidance scale.")
    print(f"Medians of {arguments.rounds} rounds in turn, after one of warm-up.")
    print(f"{machine_in_words(machine())}.\n")
    print(drawing.in_markdown(rows))
    print_versions({row.program: row.ready for row in rows})
    return 0


def benchmark_networks(
    bundle: Bundle, shapes: lives.Shapes, commands: dict[str, list[str]], arguments: argparse.Namespace
) -> int:
    """Each network of a text bundle, at one size or at many."""
    cases = (scaling_cases if arguments.scaling else graph_cases)(bundle, shapes, arguments)
    warm = arguments.warm or WARM
    work = {"cases": [asdict(case) for case in cases], "shapes": asdict(shapes), "warm": warm}
    figures = figures_for(arguments, "scaling" if arguments.scaling else "graphs", commands, work)
    check_readable(figures, lives.summary)

    def report() -> list[str]:
        rows, failures = lives.summary(figures)
        if arguments.scaling:
            growths = scaling.growths(figures, rows)
            table, figures.summary = scaling.in_markdown(rows, growths), scaling.as_json(rows, growths)
        else:
            table, figures.summary = graphs.in_markdown(rows), [asdict(row) for row in rows]
        size = f"{cases[0].width}x{cases[0].height}"
        print(f"{arguments.model}, {size}; a run of the U-Net is a guided step, on two samples for each image.")
        print(
            f"Medians of {figures.rounds_done} rounds; in each every program is started anew, alone, for every network"
        )
        print(f"and runs it once and {warm} more; the median of those counts. {machine_in_words(machine())}.\n")
        print(table)
        print_versions({row.program: row.ready for row in rows})
        return failures

    def measure() -> None:
        lives.measure(commands, cases, shapes, warm, arguments.rounds, arguments.limit, figures)

    return measured_and_told(measure, report, figures)


def graph_cases(bundle: Bundle, shapes: lives.Shapes, arguments: argparse.Namespace) -> list[lives.Case]:
    """Every network at one size."""
    width, height = size_of(arguments.size, bundle, shapes.factor)
    return [lives.Case(graph, 1, width, height) for graph in lives.graphs_of(bundle, arguments.graphs, [*GRAPHS])]


def scaling_cases(bundle: Bundle, shapes: lives.Shapes, arguments: argparse.Namespace) -> list[lives.Case]:
    """Batches, sizes and threads."""
    batch_sizes = parse_counts("batch sizes", arguments.batch_sizes or SCALING_BATCH_SIZES)
    sizes = scaling.default_sizes(bundle.defaults.width, bundle.defaults.height, shapes.factor)
    if arguments.sizes is not None:
        sizes = [size_of(text, bundle, shapes.factor) for text in arguments.sizes.split(",")]
    chosen = lives.graphs_of(bundle, arguments.graphs, SCALING_GRAPHS)
    return scaling.cases(chosen, batch_sizes, sizes, thread_counts(arguments.threads))


def check_readable(figures: Figures, summary: Callable[[Figures], object]) -> None:
    """What is taken over of a file can be reckoned with: before an hour's work and not after it.

    Raises:
        RequestError: its records do not fit together.
    """
    try:
        summary(figures)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"the records of {figures.path} do not fit together ({type(error).__name__}); leave out --resume"
        ) from error


def benchmark_pictures(bundle: Bundle, latents: Latents, arguments: argparse.Namespace) -> int:
    """Whole pictures of a text bundle."""
    steps = tuple(dict.fromkeys(parse_counts("steps", arguments.steps or PICTURE_STEPS)))
    width, height = size_of(arguments.size, bundle, latents.factor)
    prompt = PROMPT if arguments.prompt is None else arguments.prompt
    if prompt.startswith("-") or "\0" in prompt:
        raise RequestError(
            f"prompt {prompt!r} must not begin with - nor hold a null character: it is a word of commands"
        )
    seed = PICTURE_SEED if arguments.seed is None else arguments.seed
    check_whole("seed", seed, least=0, most=2**32 - 1)
    request = pictures.Request(prompt, seed, width, height, bundle.defaults.guidance_scale, steps)
    # The sampler and the noise that every other program has, too.
    draw = [
        "draw",
        "--model",
        str(bundle.folder),
        "--provider",
        arguments.provider,
        "--sampler",
        "ddim",
        "--rng",
        "torch",
    ]
    commands = program_commands(arguments, [sys.executable, "-m", "runtime.benchmark.picture", *draw])
    figures = figures_for(arguments, "pictures", commands, asdict(request))
    check_readable(figures, pictures.summary)

    def report() -> list[str]:
        rows, failures = pictures.summary(figures)
        figures.summary = [asdict(row) for row in rows]
        guidance = f"guidance scale {request.guidance_scale:g}"
        print(f"{arguments.model}, {width}x{height}, {guidance}, from the start of the process to the PNG.")
        print(f"Medians of {figures.rounds_done} rounds in turn. {machine_in_words(machine())}.\n")
        print(pictures.in_markdown(rows))
        return failures

    def measure() -> None:
        pictures.measure(commands, request, arguments.rounds, arguments.limit, figures)

    return measured_and_told(measure, report, figures)


def measured_and_told(measure: Callable[[], None], report: Callable[[], list[str]], figures: Figures) -> int:
    """Measure and report; an interruption loses no whole round."""
    try:
        measure()
    except KeyboardInterrupt:
        if figures.rounds_done:
            print(f"interrupted; of the {figures.rounds_done} whole rounds:", file=sys.stderr)
            report()
            figures.write()
        if figures.path:
            print(f"--json {figures.path} --resume goes on after round {figures.rounds_done}", file=sys.stderr)
        raise
    failures = report()
    figures.write()
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 2 if failures else 0


def size_of(text: str | None, bundle: Bundle, factor: int) -> tuple[int, int]:
    """Width and height; without a text the bundle's."""
    default = (bundle.defaults.width, bundle.defaults.height)
    width, height = default if text is None else parse_size(text)
    if not 0 < min(width, height) <= max(width, height) <= MAX_SIDE or width % factor or height % factor:
        raise RequestError(
            f"size {text!r} must be two multiples of {factor} up to {MAX_SIDE}, such as {default[0]}x{default[1]}"
        )
    return width, height


def thread_counts(text: str | None) -> list[int]:
    if text is None:
        return sorted({1, int(machine()["processors"])})
    counts = parse_counts("threads", text)
    if max(counts) > MAX_THREADS:
        raise RequestError(f"threads {text!r} must be at most {MAX_THREADS}")
    return counts


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
