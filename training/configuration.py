"""Dataclasses to JSON and back, without believing what the JSON says.

A configuration travels in the metadata of a checkpoint, and a checkpoint may come from anybody.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any, TypeVar

Configuration = TypeVar("Configuration")

# A JSON number without a fraction may stand for a float; nothing else passes for another type, true and false least of
# all.
ACCEPTED: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}


def to_json(configuration: Any) -> str:
    """A (nested) dataclass as JSON; equal configurations give equal text."""
    return json.dumps(dataclasses.asdict(configuration), sort_keys=True)


def from_json(kind: type[Configuration], text: str) -> Configuration:
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


def build(kind: type[Configuration], fields: object) -> Configuration:
    """A dataclass from a parsed JSON object, nested ones included."""
    hints = typing.get_type_hints(kind)
    if not isinstance(fields, dict) or fields.keys() != hints.keys():
        raise ValueError(f"not a configuration: expected an object with {', '.join(hints)}")
    arguments = {}
    for name, hint in hints.items():
        value = fields[name]
        if dataclasses.is_dataclass(hint):
            value = build(typing.cast("type[Any]", hint), value)
        elif type(value) not in ACCEPTED.get(hint, (str,)):  # a Literal of names is a string; its class checks which
            raise ValueError(f"not a configuration: {name} is {value!r}")
        arguments[name] = value
    return kind(**arguments)


def difference(theirs: Any, mine: Any) -> str:
    """Which fields of two configurations of one class differ and how; empty when none does."""
    pairs = ((field.name, getattr(theirs, field.name), getattr(mine, field.name)) for field in dataclasses.fields(mine))
    return ", ".join(
        difference(there, here) if dataclasses.is_dataclass(here) else f"{name} {there} there and {here} here"
        for name, there, here in pairs
        if there != here
    )
