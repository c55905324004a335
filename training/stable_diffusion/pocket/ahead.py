"""Making what the next steps need while the present one is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """``make(0)``, ``make(1)`` ..., one thread ahead of whoever asks for them in order.

    ``make`` must depend on its argument alone: then it does not matter when it is called.
    """

    def __init__(self, make: Callable[[int], Made], depth: int = 2) -> None:
        self.make, self.depth = make, depth
        self.thread = ThreadPoolExecutor(1)
        self.pending: dict[int, Future[Made]] = {}

    def __call__(self, index: int) -> Made:
        wanted = range(index, index + 1 + self.depth)
        self.pending = {k: self.pending.get(k) or self.thread.submit(self.make, k) for k in wanted}
        return self.pending[index].result()
