"""A list of prompts from a file: one on a line, or a JSON object on a line (``docs/prompts.md``).

What a line says has the types that it must have; whether it suits the model is for ``runtime.draw_list`` to find out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import variation_arguments
from runtime.arguments import parse_size
from runtime.errors import BundleError, RequestError, one_line
from runtime.fields import Fields
from runtime.plan_arguments import SAMPLER_OPTIONS

MAX_LIST_BYTES = 16 * 2**20
MAX_PICTURES = 99_999  # the names of more would not sort; every line is one at least
JSON_SUFFIXES = (".jsonl", ".ndjson")
COMMENT = "#"
LISTS = Path(__file__).parent / "prompts"  # those that come with the package

# What a JSON line may say, beside the options of samplers, which take any value that ``compile_plan`` does.
KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative_prompt": (str,),
    "label": (int, str),
    "count": (int,),
    "seed": (int,),
    "width": (int,),
    "height": (int,),
    "sampler": (str,),
    "num_inference_steps": (int,),
    "guidance_scale": (int, float),
    "clip_skip": (int,),
    "rng": (str,),
    "image": (str,),
    "mask": (str,),
    "extend": (dict,),
    "paste_back": (bool,),
    "negative": (str,),
    "steps": (int,),
    "size": (str,),
}
KINDS |= variation_arguments.KINDS | dict.fromkeys(SAMPLER_OPTIONS, (object, bool))
PICTURES = {"image", "mask"}
# Those of them that are words of the command line, and what a pipeline calls the same.
FLAGS = {"negative": ("negative_prompt",), "steps": ("num_inference_steps",), "size": ("width", "height")}


@dataclass(frozen=True)
class Entry:
    """One line of a list.

    Attributes:
        line: its number in the file, from 1.
        where: file and line, for messages.
        asked: what it says.
        values: the same, by the names of a pipeline's arguments, and "label" and "count".
    """

    line: int
    where: str
    asked: Mapping[str, Any]
    values: Mapping[str, Any]


def read_prompt_list(path: Path, subject: str) -> list[Entry]:
    """The entries of a list; empty lines and those that begin with # are none.

    Args:
        path: a file with JSON lines if it ends in .jsonl or .ndjson; any other has plain ones. Or the name of a list
            that comes with the package.
        subject: what a plain line says, and a JSON line must say: "prompt" or "label".

    Raises:
        RequestError: the file cannot be read, is too large or empty, or a line is broken; the message has its number.
    """
    path = find_list(path)
    if path.suffix.lower() == ".json":
        raise RequestError(f"{path} is named like one JSON value; name it .jsonl and give an object on each line")
    is_json = path.suffix.lower() in JSON_SUFFIXES
    entries: list[Entry] = []
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if text.strip() and not text.lstrip().startswith(COMMENT):
            where = f"{path}, line {number}"
            asked = read_json(text, where) if is_json else {subject: text.strip()}
            if len(entries) == MAX_PICTURES:
                raise RequestError(f"{where}: the list asks for more than {MAX_PICTURES} pictures; divide it")
            if subject not in asked:
                raise RequestError(f"{where} lacks the key {subject!r}")
            values = by_arguments(asked, where)
            for name in PICTURES & values.keys():
                values[name] = path.parent / values[name]  # so that a list can be kept beside its pictures
            entries.append(Entry(number, where, asked, values))
    if not entries:
        raise RequestError(f"{path} has no line that says what to draw; give a {subject} on each")
    return entries


def find_list(path: Path) -> Path:
    """A file, or else a list that comes with the package; a folder of its name may be where it was drawn to."""
    own = LISTS / f"{path}.jsonl"
    # Path.is_file raises an error at names longer than any system takes.
    return own if re.fullmatch(r"[a-z]+", str(path)) and os.path.isfile(own) and not os.path.isfile(path) else path


def read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        known = ", ".join(sorted(each.stem for each in LISTS.glob("*.jsonl")))
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"the list {path} cannot be read ({reason}); with the package comes {known}") from error
    if len(data) > MAX_LIST_BYTES:
        raise RequestError(f"{path} is too large; a list has at most {MAX_LIST_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{path}, line {line} is not UTF-8; save the list as UTF-8") from error


def read_json(text: str, where: str) -> dict[str, Any]:
    """What a JSON line says.

    Raises:
        RequestError: no JSON, no object, or one with a key that is unknown, given twice or of another type.
    """
    try:
        value = json.loads(text, object_pairs_hook=without_repetition, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is not a JSON object ({one_line(error)})") from error
    try:
        fields = Fields(value, where)
        asked = {key: fields.take(key, *KINDS[key]) for key in value if key in KINDS}
        fields.finish()
    except BundleError as error:
        raise RequestError(one_line(error)) from error
    return asked


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is given twice")
    return value


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def by_arguments(asked: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Words of the command line replaced by a pipeline's arguments.

    Raises:
        RequestError: a size cannot be read, or the same is said by both.
    """
    values = dict(asked)
    for flag, names in FLAGS.items():
        if flag not in asked:
            continue
        twice = [name for name in names if name in asked]
        if twice:
            raise RequestError(f"{where} gives {flag} and {twice[0]}, which are the same; leave out one")
        value = values.pop(flag)
        try:
            values |= zip(names, parse_size(value) if flag == "size" else (value,), strict=True)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from error
    return values
