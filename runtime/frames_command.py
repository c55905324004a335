"""``python -m runtime "a red sneaker" --to "a blue sneaker" -o morph.gif``: frames on the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from runtime.animation import FPS, FRAMES, MAX_FRAMES, MAX_SIDES, Animation, check_animation, interpolate
from runtime.arguments import parse_labels
from runtime.bundle import ClassConditioning
from runtime.errors import RequestError
from runtime.image import FORMATS, check_size, check_writable
from runtime.limits import check_whole
from runtime.pipeline import Pipeline
from runtime.progress import ProgressBar, announced
from runtime.result import image_paths

GOALS = ("to", "to_label", "to_seed")


def add_frames_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frames", "from one picture to another, into a moving .gif or .webp")
    group.add_argument("--to", metavar="PROMPT", help="what the last frame of a model of text shows")
    group.add_argument("--to-label", metavar="LABEL", help="what the last frame of a model of classes shows")
    group.add_argument("--to-seed", type=int, metavar="SEED", help="of the last frame")
    group.add_argument("--frames", type=int, help=f"in all (default: {FRAMES}); with -o .png a file for each")
    group.add_argument("--fps", type=float, help=f"frames per second (default: {FPS})")


def frames_flag(arguments: argparse.Namespace) -> str | None:
    """The first flag of frames that is given."""
    names = (name for name in (*GOALS, "frames", "fps") if getattr(arguments, name) is not None)
    return next((f"--{name.replace('_', '-')}" for name in names), None)


def draw_frames(
    arguments: argparse.Namespace,
    pipeline: Pipeline,
    wanted: list[Any],
    settings: dict[str, Any],
    size: tuple[int, int],
) -> Animation:
    """Draw frames and write them; what cannot be written is found before anything is computed.

    Args:
        arguments: of the command line.
        pipeline: the model.
        wanted: the one prompt or label to begin with.
        settings: arguments of ``interpolate``.
        size: of a frame, in pixels.

    Raises:
        RequestError: flags that do not go together, or a file that cannot be written.
    """
    if all(getattr(arguments, name) is None for name in GOALS):
        raise RequestError(f"{frames_flag(arguments)} leads nowhere by itself; give --to, --to-label or --to-seed")
    if arguments.count != 1 or arguments.grid or len(wanted) != 1:
        raise RequestError("frames lead from one picture to one other; leave out --count, --grid and --label all")
    frames = FRAMES if arguments.frames is None else arguments.frames
    fps = FPS if arguments.fps is None else arguments.fps
    path: Path = arguments.output
    moving = check_output(path, frames, fps, size, arguments.overwrite)
    if not moving and arguments.fps is not None:
        raise RequestError(
            f"--fps {fps:g} is of a moving picture, and {path} is not; leave it out, or write .gif or .webp"
        )
    settings = settings | {"to": goal_of(arguments, pipeline), "to_seed": arguments.to_seed, "frames": frames}
    settings.pop("num_images_per_prompt", None)
    print(pipeline.provider_reason, flush=True)
    with announced(sys.stderr), ProgressBar(sys.stderr) as progress:
        drawn = interpolate(pipeline, wanted[0], progress=progress, **settings)
    if moving:
        drawn.save_animation(path, fps, arguments.overwrite)
    else:
        drawn.save(path, arguments.overwrite)
    return drawn


def check_output(path: Path, frames: int, fps: float, size: tuple[int, int], overwrite: bool) -> bool:
    """Whether it is to be a moving picture; what cannot be written is found before anything is computed.

    Raises:
        RequestError: a number out of range, unknown suffix, a file that exists, or frames that are too large.
    """
    check_whole("frames", frames, least=2, most=MAX_FRAMES)
    suffix = path.suffix.lower()
    moving = suffix not in FORMATS or suffix in MAX_SIDES
    if moving:
        check_animation(path, fps, *size)
    else:
        check_size(suffix, *size)
    check_writable([path] if moving else image_paths(path, frames), overwrite)
    return moving


def goal_of(arguments: argparse.Namespace, pipeline: Pipeline) -> str | int | None:
    """What the last frame shows, if it is another than the first does.

    Raises:
        RequestError: the flag is for a model of another kind, or names no label.
    """
    bundle, to, to_label = pipeline.bundle, arguments.to, arguments.to_label
    if not isinstance(bundle.conditioning, ClassConditioning):
        if to_label is not None:
            raise RequestError(f"{bundle.name} draws what a prompt says; give --to instead of --to-label {to_label}")
        return None if to is None else str(to)
    if to is not None:
        raise RequestError(f"{bundle.name} draws classes and takes no text; give --to-label instead of --to")
    if to_label is None:
        return None
    labels = parse_labels(to_label, bundle.conditioning)
    if len(labels) != 1:
        raise RequestError(f"frames lead from one picture to one other; give one --to-label, not {to_label}")
    return labels[0]
