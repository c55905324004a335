"""JSON that may come from a stranger, read key by key: nothing missing, mistyped or left over goes unnoticed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from runtime.errors import BundleError
from runtime.plan import is_finite_number

T = TypeVar("T")


class Fields:
    """A JSON object that is read key by key, so that nothing missing, mistyped or left over goes unnoticed."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{where} must be an object, not {type(value).__name__}")
        self.left, self.where = dict(value), where

    def take(self, key: str, *kinds: type) -> Any:
        if key not in self.left:
            raise BundleError(f"{self.where} lacks the key {key!r}")
        value = self.left.pop(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise BundleError(f"{self.where}: {key} must be {names}, not {type(value).__name__}")
        return value

    def number(self, key: str, least: float = -math.inf, most: float = math.inf) -> float:
        value = self.take(key, int, float)
        if not is_finite_number(value) or not least <= value <= most:
            raise BundleError(f"{self.where}: {key} is {value}; it must lie between {least} and {most}")
        return float(value)

    def count(self, key: str, least: int = 1, most: int = 2**62) -> int:
        value: int = self.take(key, int)
        if not least <= value <= most:
            raise BundleError(f"{self.where}: {key} is {value}; it must be a whole number from {least} to {most}")
        return value

    def one_of(self, key: str, choices: tuple[str, ...]) -> str:
        value: str = self.take(key, str)
        if value not in choices:
            raise BundleError(f"{self.where}: {key} is {value!r}; it must be one of {', '.join(choices)}")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list)
        if not all(isinstance(value, str) for value in values):
            raise BundleError(f"{self.where}: {key} must be a list of strings")
        return tuple(values)

    def objects(self, key: str, read: Callable[[Fields], T]) -> list[T]:
        return [self.child(value, f"{key}[{i}]", read) for i, value in enumerate(self.take(key, list))]

    def mapping(self, key: str, read: Callable[[Fields], T]) -> dict[str, T]:
        return {name: self.child(value, f"{key}.{name}", read) for name, value in self.take(key, dict).items()}

    def child(self, value: object, path: str, read: Callable[[Fields], T]) -> T:
        """Read a nested object whole: whatever ``read`` leaves over is an unknown key."""
        fields = Fields(value, f"{self.where}: {path}")
        result = read(fields)
        fields.finish()
        return result

    def finish(self) -> None:
        if self.left:
            raise BundleError(f"{self.where} has unknown keys: {', '.join(sorted(self.left))}")
