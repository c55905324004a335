"""A bundle's conformance file (``docs/bundle.md``), read as strictly as its manifest: strangers may have made both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors

from runtime.bundle import CONFORMANCE, MANIFEST, Bundle, plain_file_size
from runtime.errors import BundleError
from runtime.fields import Fields

Array = npt.NDArray[Any]
MAX_CONFORMANCE_BYTES = 256 * 2**20


class Case(Fields):
    """One case, read key by key; some of its values name tensors of the file."""

    def __init__(self, value: object, where: str, tensors: Mapping[str, Array]) -> None:
        super().__init__(value, where)
        self.tensors = tensors

    def named(self, name: object) -> Array:
        if not isinstance(name, str) or name not in self.tensors:
            raise BundleError(f"{self.where} names the tensor {name!r}, which the file does not have")
        return self.tensors[name]

    def tensor(self, key: str, dimensions: int | None = None) -> Array:
        """The tensor that a key names, with a number of dimensions or with any."""
        tensor = self.named(self.take(key, str))
        if dimensions is not None and tensor.ndim != dimensions:
            raise BundleError(f"{self.where}: {key} has {tensor.ndim} dimensions; it must have {dimensions}")
        return tensor

    def tensors_by_name(self, key: str, allowed: tuple[str, ...]) -> dict[str, Array]:
        """The tensors that an object names, under keys that are allowed."""
        names: dict[str, Any] = self.take(key, dict)
        unknown = sorted(names.keys() - set(allowed))
        if unknown:
            raise BundleError(f"{self.where}: {key} has {', '.join(unknown)}; there are {', '.join(allowed)}")
        return {own: self.named(name) for own, name in names.items()}

    def seed(self) -> int:
        """A seed, which is a decimal string, since some languages have no 64-bit numbers in JSON."""
        text: str = self.take("seed", str)
        if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) >= 2**64:
            raise BundleError(f"{self.where}: seed must be the digits of a whole number from 0 to 2**64 - 1")
        return int(text)

    def tolerance(self) -> float:
        return self.number("tolerance", least=0)


def read_conformance(bundle: Bundle) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """The cases and tensors of a bundle's conformance file.

    Raises:
        BundleError: missing, too large, damaged, or without cases.
    """
    path = bundle.folder / CONFORMANCE
    if not (bundle.folder / MANIFEST).exists():
        raise BundleError(
            f"{bundle.folder} was exported by others and has no {CONFORMANCE} to replay; bundles have one"
        )
    size = plain_file_size(path)
    if size > MAX_CONFORMANCE_BYTES:
        raise BundleError(f"{path} has {size} bytes; a conformance file has at most {MAX_CONFORMANCE_BYTES}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error
    try:
        tensors = parse_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        cases = json.loads(header["__metadata__"]["cases"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not a conformance file ({' '.join(str(error).split())})") from error
    if not isinstance(cases, list) or not cases:
        raise BundleError(f"{path} holds no cases")
    return cases, tensors
