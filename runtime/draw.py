"""``python -m runtime draw``: from the words on a command line to files."""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from runtime.bundle import DEFAULT_MODEL, ClassConditioning
from runtime.engine import PROVIDERS
from runtime.errors import RequestError
from runtime.image import check_writable, write_file
from runtime.noise import GENERATORS
from runtime.pipeline import DEFAULT_BATCH_SIZE, Pipeline, Result, image_paths, load
from runtime.plan import SAMPLERS

BAR_WIDTH = 30
MAX_COUNT = 1_000_000  # all of a request are held in memory before they are written
ARRAYS = ".npz"


class ProgressBar:
    """Rows done, on a terminal; silent elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begun, self.shown = stream, time.monotonic(), stream.isatty()

    def __call__(self, done: int, total: int) -> None:
        if not self.shown:
            return
        filled = BAR_WIDTH * done // total
        left = (time.monotonic() - self.begun) * (total - done) / done
        bar = "█" * filled + "·" * (BAR_WIDTH - filled)
        self.stream.write(f"\r{bar} {done}/{total}  {left:.0f} s left " + ("\n" if done == total else ""))
        self.stream.flush()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=draw)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a bundle's folder or name (default: %(default)s)")
    parser.add_argument("--label", default="0", help="class to draw: a number, a name, or all (one row for each)")
    parser.add_argument("--count", type=int, default=1, help="images, for each label (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, help="of the first image, the next has the next; without it one is drawn and printed"
    )
    parser.add_argument(
        "--rng", choices=sorted(GENERATORS), default="philox", help="noise generator (default: %(default)s)"
    )
    parser.add_argument("--sampler", help=f"{', '.join(sorted(SAMPLERS))} (default: the model's)")
    parser.add_argument("--steps", type=int, help="rows of the plan (default: the model's; for ddpm all)")
    parser.add_argument("--guidance-scale", type=float, help="1 is off (default: the model's)")
    add_sampler_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help=".png, .webp or .jpg, or .npz for arrays")
    parser.add_argument("--grid", action="store_true", help="one sheet instead of one file for each image")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="images at once; changes no picture")
    parser.add_argument(
        "--provider", choices=("auto", *PROVIDERS), default="auto", help="where to compute (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads inside an operator (default: one for each core)")


def add_sampler_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--eta", type=float, help="ddim: 0 is deterministic, 1 has DDPM's variance")
    parser.add_argument("--variance", choices=("posterior", "beta"), help="ddpm: variance of the added noise")
    parser.add_argument(
        "--spacing", dest="timestep_spacing", help="leading, trailing or linspace (default: the model's)"
    )


def sampler_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampler options that were given."""
    values = {name: getattr(arguments, name) for name in ("eta", "variance", "timestep_spacing")}
    return {name: value for name, value in values.items() if value is not None}


def parse_labels(text: str, conditioning: ClassConditioning) -> list[int]:
    """Labels by number, name or "all".

    Raises:
        RequestError: neither of these.
    """
    if text == "all":
        return list(range(conditioning.num_classes))
    if text in conditioning.names:
        return [conditioning.names.index(text)]
    if text.isdecimal() and int(text) < conditioning.num_classes:
        return [int(text)]
    names = (
        ""
        if conditioning.names == tuple(map(str, range(conditioning.num_classes)))
        else f" ({', '.join(conditioning.names)})"
    )
    raise RequestError(f"label {text!r} is none of 0 to {conditioning.num_classes - 1}{names} or all")


def check_output(arguments: argparse.Namespace, count: int) -> list[Path]:
    """The files to write; a bad path is found before anything is computed.

    Raises:
        RequestError: unknown suffix, missing or unwritable folder, or a file that exists.
    """
    path: Path = arguments.output
    is_array = path.suffix.lower() == ARRAYS
    paths = [path] if is_array else image_paths(path, 1 if arguments.grid else count)
    for each in paths:
        check_writable(each, arguments.overwrite)
    return paths


def save_arrays(result: Result, path: Path) -> None:
    """Write ``images`` uint8 (N, H, W, C), ``labels`` int64 (N,) and ``seeds`` uint64 (N,)."""
    buffer = io.BytesIO()
    seeds = np.array(result.seeds, np.uint64)
    np.savez_compressed(buffer, images=result.images, labels=result.class_labels, seeds=seeds)
    write_file(path, buffer.getvalue())


def draw(arguments: argparse.Namespace) -> int:
    """Draw, and say in one line what was used and where it went."""
    if not 1 <= arguments.count <= MAX_COUNT:
        raise RequestError(f"count is {arguments.count}; it must be 1 to {MAX_COUNT}")
    pipeline = load(arguments.model, arguments.provider, arguments.threads)
    labels = parse_labels(arguments.label, pipeline.bundle.conditioning)
    total = len(labels) * arguments.count
    paths = check_output(arguments, total)
    print(f"{pipeline.provider_reason}{describe_fallback(pipeline)}", flush=True)

    result = pipeline(
        np.repeat(labels, arguments.count).tolist(),
        guidance_scale=arguments.guidance_scale,
        seed=arguments.seed,
        rng=arguments.rng,
        batch_size=arguments.batch_size,
        progress=ProgressBar(sys.stderr),
        sampler=arguments.sampler,
        num_inference_steps=arguments.steps,
        **sampler_arguments(arguments),
    )
    if arguments.output.suffix.lower() == ARRAYS:
        save_arrays(result, arguments.output)
    elif arguments.grid:
        columns = arguments.count if len(labels) > 1 else math.ceil(math.sqrt(total))
        result.save_grid(arguments.output, columns, arguments.overwrite)
    else:
        result.save(arguments.output, arguments.overwrite)
    where = f"{paths[0]} to {paths[-1].name}" if len(paths) > 1 else paths[0]
    print(f"{where}: {total} of {pipeline.bundle.name}, {describe(result)}")
    return 0


def describe(result: Result) -> str:
    used = result.metadata
    steps = f"{used['sampler']} {used['num_inference_steps']} steps"
    return f"{steps}, guidance scale {used['guidance_scale']:g}, seed {result.seeds[0]} ({used['rng']})"


def describe_fallback(pipeline: Pipeline) -> str:
    fallback = pipeline.unet.fallback()
    return f"; {fallback}" if fallback else ""
