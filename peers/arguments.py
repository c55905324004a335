"""The one argument that all peers take: a folder with a model in it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def existing(*files: str) -> Callable[[str], Path]:
    """A type for argparse: a folder that holds these files."""

    def folder(text: str) -> Path:
        for file in files:
            if not (Path(text) / file).is_file():
                raise argparse.ArgumentTypeError(f"{text} holds no {file}")
        return Path(text)

    return folder
