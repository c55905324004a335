"""Ranges that the arguments of a request must keep."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from runtime.errors import RequestError

MAX_IMAGES = 1_000_000  # of a request, which are held in memory until it is finished


def check_whole(name: str, value: object, least: int, most: int = 2**31) -> None:
    """Refuse what is no whole number of a range.

    Raises:
        RequestError: with the name, the value and the range.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        limits = f"of at least {least}" if most == 2**31 else f"from {least} to {most}"
        raise RequestError(f"{name} is {value!r}; it must be a whole number {limits}")


def check_share(name: str, value: float) -> float:
    """The value, if it is a number from 0 to 1; else raises RequestError."""
    if not is_finite_number(value) or not 0 <= value <= 1:
        raise RequestError(f"{name} is {value}; it must be a number from 0 to 1")
    return value


def check_clip(value: float | None, name: str = "clip_sample") -> float | None:
    """The value, if it can bound the predicted original sample; else raises RequestError."""
    if value is not None and (not is_finite_number(value) or value <= 0):
        raise RequestError(f"{name} is {value}; it must be a number above 0, or None")
    return value


def check_bool(name: str, value: object) -> bool:
    """The value, if it is true or false and not merely taken for it; else raises RequestError."""
    if not isinstance(value, bool | np.bool_):
        raise RequestError(f"{name} is {value!r}; it must be True or False")
    return bool(value)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Refuse what is none of some words; anything may be asked for, an array too, which compares with no word.

    Raises:
        RequestError: with the name, the value and the words.
    """
    if not isinstance(value, str) or value not in choices:
        joined = " or ".join(choices) if len(choices) == 2 else ", ".join(choices)
        raise RequestError(f"{name} {value!r} is unknown; choose {joined}")


def is_finite_number(value: object) -> bool:
    """Whether it is a number, and neither infinite nor none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False
