"""JSON files from strangers, whose values are checked before they are believed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import CheckpointError

LARGEST_JSON = 10_000_000  # bytes; an index of shards has a hundred thousand, a configuration a thousand
LARGEST_NUMBER = 1_000_000


@dataclass(frozen=True)
class Settings:
    """One JSON object. Every reader below raises CheckpointError for a value that cannot be meant.

    Attributes:
        path: the file, for messages.
        values: what it says.
    """

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a file.

        Raises:
            CheckpointError: it is missing, too large, or no JSON object.
        """
        try:
            if path.stat().st_size > LARGEST_JSON:
                raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, too many for a configuration")
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing") from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not JSON ({type(error).__name__}: {error})") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} is not a JSON object")
        return cls(path, values)

    def require(self, implemented: dict[str, Any], reason: str = "as in Stable Diffusion 1.x") -> None:
        """Refuse settings that are there with another value than the one that is implemented, and say the reason."""
        for name, value in implemented.items():
            if self.values.get(name, value) != value:
                raise self.error(name, f"{value!r}, {reason},")

    def integer(self, name: str, default: int, most: int = LARGEST_NUMBER, least: int = 1) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self.error(name, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not 0 < value <= LARGEST_NUMBER:
            raise self.error(name, f"a number above 0 and up to {LARGEST_NUMBER}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        values = self.values.get(name, default)
        if not isinstance(values, list | tuple) or any(type(v) is not int or v > LARGEST_NUMBER for v in values):
            raise self.error(name, "a list of whole numbers")
        return tuple(values)

    def names(self, name: str, default: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
        values = self.values.get(name, default)
        if not isinstance(values, list | tuple) or any(value not in allowed for value in values):
            raise self.error(name, f"a list of {' or '.join(allowed)}")
        return tuple(values)

    def error(self, name: str, needed: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {name} is {self.values.get(name)!r}; {needed} is needed")
