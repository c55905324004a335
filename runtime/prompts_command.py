"""``python -m runtime --prompts FILE -o FOLDER``: a list of prompts or labels on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arguments import parse_size
from runtime.bundle import ClassConditioning, TextConditioning
from runtime.contact_sheet import MAX_PICTURES, captioned, contact_sheet, drawn
from runtime.draw_list import Report, draw_list
from runtime.errors import RequestError
from runtime.frames_command import frames_flag
from runtime.image import FORMATS, check_writable, encode_image, write_file
from runtime.picture_index import INDEX, read_index
from runtime.pipeline import Pipeline
from runtime.plan_arguments import plan_settings
from runtime.progress import ProgressBar, announced
from runtime.prompt_list import Entry, read_prompt_list
from runtime.result import image_path
from runtime.source_arguments import check_source_flags, source_settings
from runtime.variation_arguments import variation_settings

FAILED = 2


def draw_prompts(arguments: argparse.Namespace, pipeline: Pipeline) -> int:
    """Draw a list; at the end say what failed, each in a line, and what there is."""
    check_flags(arguments)
    if arguments.sheet is not None:
        check_writable(image_path(arguments.sheet), arguments.overwrite)
    is_text = isinstance(pipeline.bundle.conditioning, TextConditioning)
    entries = read_prompt_list(arguments.prompts, "prompt" if is_text else "label")
    check_source(arguments, entries)
    print(pipeline.provider_reason, flush=True)
    with announced(sys.stderr), ProgressBar(sys.stderr) as progress:
        report = draw_list(
            pipeline,
            entries,
            arguments.output,
            defaults_of(arguments),
            arguments.seed,
            arguments.overwrite,
            progress,
        )
    if arguments.sheet is not None:
        write_sheet(arguments, pipeline, report)
    # All pictures of a line may have failed for the same reason, which is told once.
    for line, reason in dict.fromkeys((each.line, each.error) for each in report.failures):
        print(f"error: {arguments.prompts}, line {line}: {reason}", file=sys.stderr)
    print("; ".join([summary(report, arguments.output, pipeline), *pipeline.networks.fallbacks.values()]))
    return FAILED if report.failures else 0


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse what does not go with a list.

    Raises:
        RequestError: a flag that the list stands for, or an output that is no folder.
    """
    given = {"a prompt": arguments.prompt, "--label": arguments.label, "--grid": arguments.grid or None}
    for name, value in given.items():
        if value is not None:
            raise RequestError(f"--prompts {arguments.prompts} says what to draw, one file each; leave out {name}")
    frames = frames_flag(arguments)
    if frames is not None:
        raise RequestError(f"--prompts {arguments.prompts} draws single pictures; leave out {frames}")
    output: Path = arguments.output
    if output.suffix.lower() in (*FORMATS, ".npz"):
        raise RequestError(f"with --prompts -o names a folder, and {output} is named like a file")


def check_source(arguments: argparse.Namespace, entries: Sequence[Entry]) -> None:
    """Refuse flags that say something of images where no line begins at one.

    Raises:
        RequestError: with the flag.
    """
    begun = [each.values for each in entries if arguments.image is not None or "image" in each.values]
    flags = arguments.mask is not None or arguments.extend is not None
    masked = bool(begun) and (flags or any("mask" in each or "extend" in each for each in begun))
    check_source_flags(arguments, bool(begun), masked)


def write_sheet(arguments: argparse.Namespace, pipeline: Pipeline, report: Report) -> None:
    """Show on one sheet what there is of the list.

    Raises:
        RequestError: the file cannot be written.
    """
    conditioning = pipeline.bundle.conditioning
    names = conditioning.names if isinstance(conditioning, ClassConditioning) else ()
    count = report.drawn + report.kept + len(report.failures)
    records = drawn(read_index(arguments.output, report.seed), count)
    if not records:
        return
    shown = records[:MAX_PICTURES]
    sheet = np.asarray(contact_sheet(captioned(shown, arguments.output, names)))
    made = {"pictures": [record.settings for record in shown]}
    write_file(arguments.sheet, encode_image(sheet, arguments.sheet.suffix.lower(), made))
    first = f"the first {MAX_PICTURES} of " if len(records) > MAX_PICTURES else ""
    print(f"{arguments.sheet}: {first}{len(records)} pictures with their words")


def defaults_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say for all that a list does not say, as arguments of a pipeline."""
    width, height = (None, None) if arguments.size is None else parse_size(arguments.size)
    flags = {
        "negative_prompt": arguments.negative,
        "count": arguments.count,
        "width": width,
        "height": height,
        "clip_skip": arguments.clip_skip,
        "guidance_scale": arguments.guidance_scale,
        "rng": arguments.rng,
        "batch_size": arguments.batch_size,
    }
    return (
        {name: value for name, value in flags.items() if value is not None}
        | source_settings(arguments)
        | variation_settings(arguments)
        | plan_settings(arguments)
    )


def summary(report: Report, folder: Path, pipeline: Pipeline) -> str:
    parts = [f"{report.drawn} drawn", f"{report.kept} there before"]
    if report.failures:
        parts.append(f"{len(report.failures)} failed, which the same command tries again")
    return f"{folder / INDEX}: {pipeline.bundle.name}, seed {report.seed}; {', '.join(parts)}"
