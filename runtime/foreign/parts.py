"""The files of a folder that others exported: read with bounds, and never outside the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runtime.bundle import PLAIN_NAME, File, checked_path
from runtime.errors import BundleError
from runtime.external_data import find_external_data, mapped
from runtime.foreign.signature import GraphSignature, read_signature

T = TypeVar("T")

MODEL = "model.onnx"
MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True)
class Part:
    """One network of the folder: its graph, the files its weights lie in, and what the graph says of itself."""

    file: File
    external_data: tuple[File, ...]
    signature: GraphSignature


def component_file(folder: Path, name: str) -> File:
    """A file of a part's folder, which must be a plain file in a plain folder.

    Raises:
        BundleError: it is not there, or it or its folder is a symbolic link.
    """
    path = folder / name
    if path.parent != folder and path.parent.is_symlink():
        raise BundleError(f"{path.parent} is a symbolic link; copy the folder with what the links point to")
    try:
        size = path.lstat().st_size
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error
    file = File(name, size, None)
    checked_path(folder, file)
    return file


def read_bytes(folder: Path, name: str, most: int) -> bytes:
    file = component_file(folder, name)
    if file.size > most:
        raise BundleError(f"{folder / name} has {file.size} bytes; such a file has at most {most}")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read ({error.strerror})") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(folder, name, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / name} is not JSON ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(value, dict):
        raise BundleError(f"{folder / name} must be an object, not {type(value).__name__}")
    return value


def read_config(folder: Path, *names: str) -> tuple[dict[str, Any], str]:
    """The first of several configuration files that is there, and its path; empty where there is none."""
    for name in names:
        if (folder / name).exists():
            return read_json(folder, name), str(folder / name)
    return {}, str(folder)


def read_part(folder: Path, role: str) -> Part:
    """Read a network without loading it.

    Raises:
        BundleError: no ONNX file, or its weights lie outside its folder.
    """
    file = component_file(folder, f"{role}/{MODEL}")
    path = folder / file.name
    if not file.size:
        raise BundleError(f"{path} is empty")
    model = mapped(path)
    signature = read_signature(model, str(path))
    locations = sorted({found.location for found in find_external_data(model, str(path))})
    for location in locations:
        if not re.fullmatch(PLAIN_NAME, location):
            raise BundleError(f"{path}: weights lie in {location!r}; it must be a plain name inside {path.parent}")
    beside = tuple(component_file(folder, f"{role}/{location}") for location in locations)
    return Part(file, beside, signature)


def said(config: Mapping[str, Any], key: str, kind: type[T], default: T, where: str) -> T:
    """A value of a JSON object, or the default where it is missing or null.

    Raises:
        BundleError: it has another type.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(f"{where}: {key} must be {kind.__name__}, not {type(value).__name__}")
    return value


def one_of(config: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str, where: str) -> str:
    value = said(config, key, str, default, where)
    if value not in choices:
        raise BundleError(f"{where}: {key} is {value!r}; it must be one of {', '.join(choices)}")
    return value


def count(config: Mapping[str, Any], key: str, default: int, where: str, least: int = 1, most: int = 10**6) -> int:
    value = said(config, key, int, default, where)
    if not least <= value <= most:
        raise BundleError(f"{where}: {key} is {value}; it must be {least} to {most}")
    return value
