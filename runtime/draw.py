"""``python -m runtime draw``: from the words on a command line to files."""

from __future__ import annotations

import argparse
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arguments import parse_labels, parse_size
from runtime.bundle import DEFAULT_MODEL, TextConditioning
from runtime.cancel import stoppable
from runtime.embeddings import add_embedding_arguments, embedding_settings
from runtime.engine import PROVIDERS
from runtime.errors import RequestError
from runtime.frames_command import add_frames_arguments, draw_frames, frames_flag
from runtime.image import check_size, check_writable, grid_size, write_file
from runtime.limits import MAX_IMAGES, check_whole
from runtime.loading import load
from runtime.noise import GENERATORS
from runtime.pipeline import Pipeline
from runtime.plan_arguments import add_plan_arguments, plan_settings
from runtime.progress import ProgressBar, announced
from runtime.prompts_command import draw_prompts
from runtime.result import Result, image_paths
from runtime.second_pass import enlarged_size
from runtime.source import open_source
from runtime.source_arguments import add_source_arguments, check_source_flags, source_settings
from runtime.source_image import open_image, open_mask
from runtime.variation_arguments import add_variation_arguments, variation_settings

ARRAYS = ".npz"
CLIP_SKIP = "last layers of the text encoder to leave out; what web interfaces call clip skip 2 is 1 here"
MAX_MEMORY = "such as 3GB: give up what it takes to stay below, or say before drawing that it cannot be (on the CPU)"
OUTPUT = ".png, .webp or .jpg, or .npz for arrays; with --prompts a folder, with --to .gif or .webp"
PROMPTS = "a list to draw into the folder -o: on each line a prompt or label, or JSON if it is .jsonl (docs/prompts.md)"
SHEET = "with --prompts: one picture of all of them, each above its words"
SEED = "of the first image, the next has the next; without it one is drawn and printed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=draw)
    parser.add_argument("prompt", nargs="?", help="what a model of text is to draw")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=PROMPTS)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a bundle's folder or name (default: %(default)s)")
    parser.add_argument("--negative", metavar="PROMPT", help="what a model of text is to lead away from")
    parser.add_argument("--label", help="what a model of classes is to draw: a number, a name, or all (default: 0)")
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="in pixels (default: the model's)")
    parser.add_argument("--clip-skip", type=int, help=CLIP_SKIP)
    parser.add_argument("--count", type=int, default=1, help="images, for each label (default: %(default)s)")
    parser.add_argument("--seed", type=int, help=SEED)
    parser.add_argument(
        "--rng", choices=sorted(GENERATORS), default="philox", help="noise generator (default: %(default)s)"
    )
    parser.add_argument("--guidance-scale", type=float, help="1 is off (default: the model's)")
    add_source_arguments(parser)
    add_embedding_arguments(parser)
    add_variation_arguments(parser)
    add_frames_arguments(parser)
    add_plan_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help=OUTPUT)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help=SHEET)
    parser.add_argument("--grid", action="store_true", help="one sheet instead of one file for each image")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    add_machine_arguments(parser)


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "machine", "of these only --variant changes a picture, and --low-memory or --max-memory a large one, slightly"
    )
    group.add_argument("--batch-size", type=int, help="images at once (default: 32 of classes, 1 of text)")
    group.add_argument(
        "--provider", choices=("auto", *PROVIDERS), default="auto", help="where to compute (default: %(default)s)"
    )
    group.add_argument("--threads", type=int, help="threads inside an operator (default: one for each core)")
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="one network at a time for lists, too, guidance in turn, large pictures in tiles; slower",
    )
    group.add_argument("--max-memory", metavar="SIZE", help=MAX_MEMORY)
    group.add_argument(
        "--ignore-memory", action="store_true", help="try also what seems to need far more memory than there is"
    )
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after so long, loading included")
    group.add_argument(
        "--no-cache", dest="cache", action="store_false", help="keep no optimised networks on disk, and use none"
    )
    group.add_argument(
        "--variant",
        help="which graphs to use where there are several, such as fp16 (default: fp32, as made for the provider)",
    )


def what_to_draw(arguments: argparse.Namespace, pipeline: Pipeline) -> tuple[list[Any], dict[str, Any]]:
    """Labels or prompts, without their repetitions, and the settings that go with them.

    Raises:
        RequestError: the flags are for a model of another kind.
    """
    bundle = pipeline.bundle
    size = {} if arguments.size is None else dict(zip(("width", "height"), parse_size(arguments.size), strict=True))
    if isinstance(bundle.conditioning, TextConditioning):
        if arguments.label is not None:
            raise RequestError(
                f"{bundle.name} draws what a prompt says; leave out --label {arguments.label}, or choose a --model"
            )
        if arguments.prompt is None:
            raise RequestError(f'{bundle.name} draws what a prompt says; give one: "a red sneaker"')
        settings = {"negative_prompt": arguments.negative or "", "num_images_per_prompt": arguments.count}
        return [arguments.prompt], settings | size | {"clip_skip": arguments.clip_skip}
    given = {"a prompt": arguments.prompt, "--negative": arguments.negative, "--clip-skip": arguments.clip_skip}
    for name, value in given.items():
        if value is not None:
            raise RequestError(f"{bundle.name} draws classes and takes no text; leave out {name}, or choose a --model")
    return parse_labels("0" if arguments.label is None else arguments.label, bundle.conditioning), size


def image_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is said of the image to begin at, with it and its mask opened.

    Raises:
        RequestError: a file is no picture, or something is said of an image and there is none.
    """
    masked = arguments.mask is not None or arguments.extend is not None
    check_source_flags(arguments, arguments.image is not None, masked)
    given = source_settings(arguments)
    for name, opened in (("image", open_image), ("mask", open_mask)):
        if name in given:
            given[name] = opened(given[name])
    return given


def check_output(arguments: argparse.Namespace, count: int, columns: int, width: int, height: int) -> list[Path]:
    """The files to write; what cannot be written is found before anything is computed.

    Args:
        arguments: with the output.
        count: images in all.
        columns: of the sheet, if they go on one.
        width, height: of one image, in pixels.

    Raises:
        RequestError: unknown suffix, missing or unwritable folder, a file that exists, or a picture that is too large.
    """
    path: Path = arguments.output
    if path.suffix.lower() == ARRAYS:
        paths = [path]
    else:
        paths = image_paths(path, 1 if arguments.grid else count)
        size = grid_size(count, width, height, columns) if arguments.grid else (width, height)
        check_size(path.suffix.lower(), *size)
    check_writable(paths, arguments.overwrite)
    return paths


def save_arrays(result: Result, path: Path) -> None:
    """Write ``images`` uint8 (N, H, W, C), ``seeds`` uint64 (N,), and ``labels`` int64 or ``prompts`` (N,)."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"images": result.images, "seeds": np.array(result.seeds, np.uint64)}
    if "class_label" in result.conditions[0]:
        arrays["labels"] = np.array([each["class_label"] for each in result.conditions], np.int64)
    else:
        arrays["prompts"] = np.array([each["prompt"] for each in result.conditions])
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_file(path, buffer.getvalue())


def draw(arguments: argparse.Namespace) -> int:
    """Draw what the words on a command line ask for, or a list in a file."""
    check_whole("count", arguments.count, least=1, most=MAX_IMAGES)
    if arguments.sheet is not None and arguments.prompts is None:
        raise RequestError("--sheet shows what --prompts asks for, with its words; for one prompt there is --grid")
    with stoppable(timeout=arguments.timeout):
        pipeline = load(
            arguments.model,
            arguments.provider,
            arguments.threads,
            arguments.low_memory,
            arguments.variant,
            arguments.ignore_memory,
            embedding_settings(arguments),
            arguments.cache,
            arguments.max_memory,
        )
        pipeline.networks.one_network |= needs_none_twice(arguments)
        return draw_words(arguments, pipeline) if arguments.prompts is None else draw_prompts(arguments, pipeline)


def needs_none_twice(arguments: argparse.Namespace) -> bool:
    """Whether each network has its turn and is done: then it makes room for the next, and no time is lost."""
    return arguments.prompts is None and frames_flag(arguments) is None and not arguments.upscale


def draw_words(arguments: argparse.Namespace, pipeline: Pipeline) -> int:
    """Draw, and say in one line what was used and where it went."""
    wanted, settings = what_to_draw(arguments, pipeline)
    total = len(wanted) * arguments.count
    columns = arguments.count if len(wanted) > 1 else math.ceil(math.sqrt(total))
    settings |= image_settings(arguments) | variation_settings(arguments) | plan_settings(arguments)
    size = last_size(pipeline, settings)
    settings |= {name: getattr(arguments, name) for name in ("guidance_scale", "seed", "rng", "batch_size")}
    if frames_flag(arguments) is not None:
        animation = draw_frames(arguments, pipeline, wanted, settings, size)
        say(pipeline, animation, arguments.output, f"{len(animation.images)} frames")
        return 0
    paths = check_output(arguments, total, columns, *size)
    print(pipeline.provider_reason, flush=True)
    if "num_images_per_prompt" not in settings:
        wanted = np.repeat(wanted, arguments.count).tolist()

    with announced(sys.stderr), ProgressBar(sys.stderr) as progress:
        result = pipeline(wanted, progress=progress, **settings)
    if arguments.output.suffix.lower() == ARRAYS:
        save_arrays(result, arguments.output)
    elif arguments.grid:
        result.save_grid(arguments.output, columns, arguments.overwrite)
    else:
        result.save(arguments.output, arguments.overwrite)
    say(pipeline, result, f"{paths[0]} to {paths[-1].name}" if len(paths) > 1 else paths[0], str(total))
    return 0


def last_size(pipeline: Pipeline, settings: dict[str, Any]) -> tuple[int, int]:
    """Width and height of a finished picture, in pixels.

    Raises:
        RequestError: the model draws no such size.
    """
    source = open_source(settings.get("image"), settings.get("mask"), settings.get("extend"))
    size = pipeline.check_size(settings.get("width"), settings.get("height"), source.image)
    if "upscale" not in settings or pipeline.bundle.latents is None:
        return size
    return enlarged_size(*size, settings["upscale"], pipeline.bundle.latents.factor)


def say(pipeline: Pipeline, result: Result, where: str | Path, what: str) -> None:
    """In one line what was drawn and how, and which files of the model were not to be used."""
    print("; ".join([f"{where}: {what} of {describe(pipeline, result)}", *pipeline.networks.fallbacks.values()]))


def describe(pipeline: Pipeline, result: Result) -> str:
    used = result.metadata
    steps = f"{used['sampler']} {used['num_inference_steps']} steps"
    guidance = f"guidance scale {used['guidance_scale']:g}"
    return f"{pipeline.bundle.name}, {steps}, {guidance}, seed {result.seeds[0]} ({used['rng']})"
