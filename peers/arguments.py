"""What all peers take: a folder with a model in it, and, to draw one picture, the words of ``python -m runtime``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from runtime.arguments import parse_size
from runtime.errors import RequestError


def existing(*files: str) -> Callable[[str], Path]:
    """A type for argparse: a folder that holds these files."""

    def folder(text: str) -> Path:
        for file in files:
            if not (Path(text) / file).is_file():
                raise argparse.ArgumentTypeError(f"{text} holds no {file}")
        return Path(text)

    return folder


def size(text: str) -> tuple[int, int]:
    """A type for argparse: width and height."""
    try:
        return parse_size(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_picture_arguments(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """What ``python -m runtime benchmark --pictures`` appends; without a prompt a peer answers orders."""
    parser.add_argument("prompt", nargs=None if required else "?", help="draw this, and end; else answer orders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=size, default=(512, 512), metavar="WIDTHxHEIGHT")
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("-o", "--output", type=Path, default=Path("peer.png"))
