"""Dataclasses to JSON and back, without believing what the JSON says.

A configuration travels in the metadata of a checkpoint, and a checkpoint may come from anybody.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any, Self, TypeVar

T = TypeVar("T")

# A JSON number without a fraction may stand for a float; nothing else passes for another type, true and false least of
# all.
ACCEPTED: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def to_json(configuration: Any) -> str:
    """A (nested) dataclass as JSON; equal configurations give equal text."""
    return json.dumps(dataclasses.asdict(configuration), sort_keys=True)


def from_json(kind: type[T], text: str) -> T:
    """Read what ``to_json`` wrote.

    Raises:
        ValueError: not JSON, other fields than those of ``kind``, a field of another type, or a value that ``kind``
        refuses.
    """
    try:
        fields = json.loads(text)
    except RecursionError as error:
        raise ValueError("not a configuration: nested too deeply") from error
    return build(kind, fields)


def build(kind: type[T], fields: object) -> T:
    """A dataclass from a parsed JSON object, nested ones included."""
    hints = typing.get_type_hints(kind)
    if not isinstance(fields, dict) or fields.keys() != hints.keys():
        raise ValueError(f"not a configuration: expected an object with {', '.join(hints)}")
    return kind(**{name: value_of(hint, name, fields[name]) for name, hint in hints.items()})


def value_of(hint: Any, name: str, value: object) -> Any:
    """A field's value, if it is of the field's type; a list stands for a tuple of any length."""
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value)
    is_tuple = typing.get_origin(hint) is tuple
    accepted = (list,) if is_tuple else ACCEPTED.get(hint, (str,))  # a Literal of names is a string
    if type(value) not in accepted:
        raise ValueError(f"not a configuration: {name} is {value!r}")
    if is_tuple:
        return tuple(value_of(typing.get_args(hint)[0], name, item) for item in typing.cast("list[Any]", value))
    return value


def difference(theirs: Any, mine: Any) -> str:
    """Which fields of two configurations of one class differ and how; empty when none does."""
    pairs = ((field.name, getattr(theirs, field.name), getattr(mine, field.name)) for field in dataclasses.fields(mine))
    return ", ".join(
        difference(there, here) if dataclasses.is_dataclass(here) else f"{name} {there} there and {here} here"
        for name, there, here in pairs
        if there != here
    )


class Configuration:
    """A dataclass that travels in a checkpoint's metadata."""

    def to_json(self) -> str:
        """The configuration as it stands there."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: not JSON, or not the fields of this class.
        """
        return from_json(cls, text)
