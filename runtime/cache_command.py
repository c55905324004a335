"""``python -m runtime cache``: which optimised graphs this machine keeps, their sizes, and how to be rid of them."""

from __future__ import annotations

import argparse
import time

from runtime.errors import RequestError
from runtime.graph_cache import GraphCache, Listed, user_cache

AGES = ((86400, "day"), (3600, "hour"), (60, "minute"))  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=show_cache)
    parser.add_argument("--clear", action="store_true", help="remove them; they are made again when they are needed")


def show_cache(arguments: argparse.Namespace) -> int:
    """List what is kept, or remove it."""
    cache = user_cache()
    if arguments.clear:
        print(f"removed {summary(cleared(cache))} from {cache.folder}")
        return 0
    entries = cache.entries()
    for entry in reversed(entries):
        print(f"{entry.title or entry.key:<40}  {entry.size / 1e9:6.2f} GB  used {age(time.time() - entry.used)}")
    print(f"{summary(entries)} of {cache.limit / 1e9:g} GB in {cache.folder}")
    return 0


def cleared(cache: GraphCache) -> list[Listed]:
    """Remove everything.

    Raises:
        RequestError: it cannot be removed.
    """
    try:
        return cache.clear()
    except OSError as error:
        raise RequestError(f"{cache.folder} cannot be cleared ({error.strerror or error})") from error


def summary(entries: list[Listed]) -> str:
    graphs = "1 graph" if len(entries) == 1 else f"{len(entries)} graphs"
    return f"{graphs}, {sum(entry.size for entry in entries) / 1e9:.2f} GB"


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, name in AGES:
        count = int(seconds // unit)
        if count >= 1:
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"
