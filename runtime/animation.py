"""Frames that lead from one picture to another, and the moving picture they make."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.cancel import CancelToken, stoppable
from runtime.class_to_image import ClassToImage
from runtime.errors import RequestError
from runtime.image import check_writable, exif, to_pil, write_file
from runtime.limits import check_whole, is_finite_number
from runtime.noise import image_seed
from runtime.pipeline import Pipeline
from runtime.recipe import Recipe
from runtime.result import Result
from runtime.steps import Progress
from runtime.text_to_image import TextToImage

FRAMES, MAX_FRAMES = 24, 600
MAX_PIXELS = 2**28  # of all frames, which are held in memory before they are written
FPS, MAX_FPS = 12, 50  # a GIF counts hundredths of a second, and what lasts one is shown for ten
MAX_SIDES = {".gif": 2**16 - 1, ".webp": 2**14 - 1}


@dataclass(frozen=True)
class Animation(Result):
    """Frames in their order, and what made each; ``save`` writes them one by one.

    Frame i of n lies the share i / (n - 1) of the way. The first and the last are the pictures that their own prompts,
    labels and seeds give, and carry no more than those would; the others carry what they lead to, and their share.
    """

    def save_animation(self, path: str | os.PathLike[str], fps: float = FPS, overwrite: bool = False) -> Path:
        """Write a moving picture that begins anew when it ends.

        Args:
            path: ends in .webp, which holds the very pixels, or in .gif, of which each frame has at most 256 colours.
            fps: frames per second, 1 to 50. A frame lasts whole hundredths of a second in a GIF and whole thousandths
                in a WebP, some a little longer than others, so that the whole lasts as long as it should.
            overwrite: replace a file that exists.

        What made it is kept as JSON, in the GIF's comment or in the EXIF description of the WebP.

        Raises:
            RequestError: unknown suffix, missing folder, a file that exists, or frames that are too large.
        """
        file = Path(path)
        check_animation(file, fps, *self.images.shape[2:0:-1])
        check_writable(file, overwrite)
        write_file(file, self.animated(file.suffix.lower(), fps))
        return file

    def animated(self, suffix: str, fps: float) -> bytes:
        """The bytes of the file.

        Raises:
            RequestError: the format cannot hold the frames.
        """
        first, *others = [to_pil(image) for image in self.images]
        description = json.dumps(
            self.metadata | {"frames": len(self.images), "fps": fps, "first": self.own(0), "last": self.own(-1)},
            sort_keys=True,
        )
        options: dict[str, Any] = {"duration": durations(len(self.images), fps, 100 if suffix == ".gif" else 1000)}
        if suffix == ".gif":
            options["comment"] = description.encode()
        else:
            options |= {"lossless": True, "exif": exif(description)}
        buffer = io.BytesIO()
        try:
            first.save(buffer, suffix[1:].upper(), save_all=True, append_images=others, loop=0, **options)
        except (OSError, ValueError) as error:
            raise RequestError(f"the frames cannot be written as {suffix} ({error})") from error
        return buffer.getvalue()

    def own(self, k: int) -> dict[str, Any]:
        """What frame k has by itself."""
        return {"seed": self.seeds[k], **self.conditions[k]}


def durations(count: int, fps: float, units: int) -> list[int]:
    """How many milliseconds each frame lasts: whole units, of which a second has so many, at least one."""
    ends = [round(units * k / fps) for k in range(count + 1)]
    return [max(1, after - before) * 1000 // units for before, after in itertools.pairwise(ends)]


def check_animation(path: Path, fps: float, width: int, height: int) -> None:
    """Find out before an hour's work whether a moving picture can be written.

    Raises:
        RequestError: unknown suffix, or size or speed out of range.
    """
    suffix = path.suffix.lower()
    if suffix not in MAX_SIDES:
        raise RequestError(f"{path} has no suffix of a moving picture; use one of {', '.join(MAX_SIDES)}")
    if not is_finite_number(fps) or not 1 <= fps <= MAX_FPS:
        raise RequestError(f"fps is {fps!r}; it must be a number from 1 to {MAX_FPS}")
    if max(width, height) > MAX_SIDES[suffix]:
        raise RequestError(f"{width}x{height} pixels are too large for {suffix}: at most {MAX_SIDES[suffix]} a side")


def interpolate(
    pipeline: Pipeline,
    first: str | int,
    *,
    to: str | int | None = None,
    to_seed: int | None = None,
    frames: int = FRAMES,
    negative_prompt: str | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    timeout: float | None = None,
    **settings: Any,
) -> Animation:
    """Draw frames from one picture to another.

    What the text encoder says of two prompts is mixed linearly; of two labels, which have nothing between them, what
    the network says is, so that each row takes twice the evaluations; all draws of noise by ``slerp``.

    Args:
        pipeline: as ``load`` makes it.
        first: the prompt or label that the first frame shows.
        to: what the last frame shows; None for the same.
        to_seed: of the last frame; None for the same.
        frames: in all, 2 to 600.
        negative_prompt: of all frames.
        progress: called with (rows done, rows in all), over all frames.
        cancel, timeout, settings: other arguments of the pipeline's call; the time is that of all frames.

    Raises:
        RequestError: an argument is out of range, and nothing has been computed; or a network's numbers are no longer
            finite.
        Cancelled, TimedOut: it was stopped.
    """
    check_whole("frames", frames, least=2, most=MAX_FRAMES)
    if to is None and to_seed is None:
        raise RequestError("there is nothing to lead to; give to, another prompt or label, or to_seed")
    ends, name = ends_of(pipeline, first, first if to is None else to, negative_prompt)
    recipe = pipeline.recipe(**settings)
    check_pixels(frames, recipe)
    seed = recipe.settings.seed
    last_seed = seed if to_seed is None else image_seed(to_seed, 0, "to_seed")
    start, goal = (recipe.settings.varied([each])[0] for each in ends)
    leads = {} if to is None else {f"to_{name}": goal[name]}
    leads |= {} if to_seed is None else {"to_seed": last_seed}
    learned = list(start.get("embeddings", ()))
    learned += [each for each in goal.get("embeddings", ()) if each not in learned]
    leads |= {"embeddings": learned} if learned else {}
    between = [{**start, **leads, "share": k / (frames - 1)} for k in range(1, frames - 1)]
    seeds = [seed] * (frames - 1) + [last_seed]
    with stoppable(cancel, timeout):
        return Animation(**vars(pipeline.draw(recipe, [start, *between, goal], seeds, progress)))


def ends_of(
    pipeline: Pipeline, first: str | int, last: str | int, negative_prompt: str | None
) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """The conditions of first and last frame, and the key of what differs.

    Raises:
        RequestError: one is no prompt or label of the model.
    """
    if isinstance(pipeline, TextToImage):
        if not isinstance(negative_prompt, str | None):
            raise RequestError(f"negative_prompt is {negative_prompt!r}; all frames have the same one, a text")
        return pipeline.conditions([first, last], negative_prompt), "prompt"  # type: ignore[list-item]
    assert isinstance(pipeline, ClassToImage)
    if negative_prompt is not None:
        raise RequestError(f"{pipeline.bundle.name} draws classes and takes no text; leave out negative_prompt")
    return pipeline.conditions([first, last]), "class_label"  # type: ignore[list-item]


def check_pixels(frames: int, recipe: Recipe) -> None:
    width, height = recipe.size
    if frames * width * height > MAX_PIXELS:
        raise RequestError(
            f"{frames} frames of {width}x{height} have {frames * width * height} pixels; at most {MAX_PIXELS}: draw "
            "fewer or smaller ones"
        )
