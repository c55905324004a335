"""Drawing step by step: who draws looks on, shows what there is so far, and stops when it is enough."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from runtime.cancel import CancelToken, in_force, limited
from runtime.errors import RequestError
from runtime.image import UInt8
from runtime.result import Result

Float32 = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Row:
    """What there is after a row of the plan.

    Attributes:
        sample: x after it, float32 (B, C, H, W).
        pred_original_sample: what the network takes the finished sample to be, float32 (B, C, H, W).
        images: which of the request's images these are, (B,).
    """

    sample: Float32
    pred_original_sample: Float32
    images: tuple[int, ...]

    def of(self, images: list[int]) -> Row:
        """The same where those that are drawn are some of a larger request's."""
        return replace(self, images=tuple(images[k] for k in self.images))


Rows = Generator[Row, None, T]
"""A row after the other, and then what is made of them."""


@dataclass(frozen=True, eq=False)
class Step:
    """What ``Pipeline.denoise`` yields after each row of the plan. A request of several batches walks it for each.

    Attributes:
        row: rows done, 1 .. rows.
        rows: of the whole request.
        images: which of the request's images the arrays are about, (B,).
        sample: x after this row, float32 (B, C, H, W) of pixels or (B, C, h, w) of latents.
        pred_original_sample: what the network takes the finished sample to be, of the same shape.
    """

    row: int
    rows: int
    images: tuple[int, ...]
    sample: Float32
    pred_original_sample: Float32
    _show: Callable[[Float32], UInt8 | None] = field(repr=False)
    _finish: Callable[[], Result] = field(repr=False)

    @cached_property
    def preview(self) -> UInt8 | None:
        """What the picture is going to be, as far as can be told, uint8 (B, h, w, 3), made when it is asked for.

        A latent is one pixel, by the bundle's linear map and not by the decoder; None where the bundle has no map. A
        model of pixels shows these, (B, H, W, C).
        """
        return self._show(self.pred_original_sample)

    def result(self) -> Result:
        """The finished pictures, as a call returns them; they are decoded once, however often they are asked for.

        Raises:
            RequestError: this is not the last step, or drawing has failed or was stopped.
            Cancelled: decoding was stopped.
        """
        if self.row < self.rows:
            raise RequestError(f"step {self.row} of {self.rows} has no result; it is there after the last one")
        return self._finish()


class Drawing:
    """Rows that are drawn one by one, in a context of their own, so that what may stop them stops nobody else."""

    def __init__(self, rows: Rows[Result]) -> None:
        self.context = copy_context()
        self._rows, self._result = rows, None

    def advance(self) -> Row | None:
        """The next row; None after the last, when the result is there."""
        try:
            return self.context.run(next, self._rows)
        except StopIteration as end:
            self._result = end.value or self._result
            return None

    def result(self) -> Result:
        if self._result is None:
            self.advance()
        if self._result is None:
            raise RequestError("the drawing has failed or was stopped, and has no result; draw again")
        return self._result


def steps(
    drawing: Callable[[Progress], Rows[Result]],
    show: Callable[[Float32], UInt8 | None],
    cancel: CancelToken | None = None,
    timeout: float | None = None,
) -> Iterator[Step]:
    """Rows as steps; the last one is followed by decoding, so that a loop that ends leaves the result behind.

    Args:
        drawing: the rows, given whom to tell how many are done before each.
        show: a preview of predicted samples.
        cancel, timeout: what may stop it; time counts from the first step on, and until the loop ends.
    """
    done = (0, 0)

    def count(row: int, rows: int) -> None:
        nonlocal done
        done = row, rows

    drawn = Drawing(drawing(count))
    make = partial(Step, _show=show, _finish=drawn.result)
    with limited(cancel, timeout) as tokens:
        drawn.context.run(in_force.set, tokens)
        while (row := drawn.advance()) is not None:
            yield make(*done, row.images, read_only(row.sample), read_only(row.pred_original_sample))
        if not done[1]:  # an image that stays as it is takes no row, and still has a result
            sample = read_only(drawn.result().sample)
            yield make(1, 1, tuple(range(len(sample))), sample, sample)


def read_only(sample: Float32) -> Float32:
    """The loop's own array, which it still needs, for others to look at."""
    view = sample.view()
    view.flags.writeable = False
    return view


def finished(rows: Rows[T]) -> T:
    """What is made of rows that nobody looks at."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            value: T = end.value
            return value


def of_images(rows: Rows[Float32], images: list[int]) -> Rows[Float32]:
    """A group's rows as those of the whole request, of which it draws some images."""
    while True:
        try:
            row = next(rows)
        except StopIteration as end:
            last: Float32 = end.value
            return last
        yield row.of(images)


def of_all(progress: Progress | None, before: int, rows: int) -> Progress | None:
    """A group's progress as that of the whole request.

    Args:
        progress: of the request.
        before: rows that were done when the group began.
        rows: of all groups.
    """
    return None if progress is None else lambda done, _: progress(before + done, rows)
