"""``python -m runtime plan``: a sampler's table, to look at, to keep, or as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from runtime.bundle import DEFAULT_MODEL, open_bundle
from runtime.errors import RequestError
from runtime.image import check_writable, encode_image, write_file
from runtime.plan import Plan
from runtime.plan_arguments import add_plan_arguments, chosen_plan
from runtime.plan_plot import plot
from runtime.result import image_path
from runtime.samplers.rows import COLUMN_NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=print_plan)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundle whose noise levels are used")
    add_plan_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the whole plan, for a host in another language")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there what would be printed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it as well: .png, .webp or .jpg")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def print_plan(arguments: argparse.Namespace) -> int:
    """Print or write a compiled plan, and draw it where that is asked for."""
    bundle = open_bundle(arguments.model)
    plan = chosen_plan(bundle, arguments)
    picture = image_path(arguments.plot) if arguments.plot else None
    if picture is not None and picture == arguments.output:
        raise RequestError(f"--output and --plot are both {picture}; give two names")
    for path in filter(None, (arguments.output, picture)):
        check_writable(path, arguments.overwrite)
    text = json.dumps(plan.to_json()) if arguments.json else table(plan)
    if arguments.output:
        write_file(arguments.output, f"{text}\n".encode())
    else:
        print(text)
    if picture:
        write_file(picture, encode_image(plot(plan), picture.suffix.lower()))
    return 0


def table(plan: Plan) -> str:
    """A row for each evaluation of the network; of the weights those columns that are used."""
    used = [column for column in range(len(COLUMN_NAMES)) if plan.weights[:, column].any()]
    guidance = plan.guidance.min() < 1
    lines = [
        "row  timestep  signal  noise "
        + (" guide" if guidance else "")
        + "".join(f"{COLUMN_NAMES[column]:>10}" for column in used)
    ]
    for i in range(len(plan)):
        told = f"{i:3}  {plan.timesteps[i]:8g}  {plan.signal_scales[i]:.4f}  {plan.noise_scales[i]:.4f}"
        share = f"{plan.guidance[i]:6g}" if guidance else ""
        lines.append(told + share + "".join(f"{weight:10.5f}" for weight in plan.weights[i, used]))
    if plan.clip_sample is not None:
        lines.append(f"the predicted original sample is clipped to +-{plan.clip_sample:g}")
    if plan.guidance_rescale:
        lines.append(f"guidance is rescaled by {plan.guidance_rescale:g}")
    return "\n".join(lines)
