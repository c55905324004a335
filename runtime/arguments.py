"""A command line whose complaints fit on one line, and the words that several commands read."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from runtime.errors import RequestError


class ArgumentParser(argparse.ArgumentParser):
    """argparse, without the usage before what is wrong (as in ``training``; neither package imports the other)."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parse_size(text: str) -> tuple[int, int]:
    """Width and height; whether they suit the model is for the model to say.

    Raises:
        RequestError: not two whole numbers with an x between them.
    """
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if not found:
        raise RequestError(f"size {text!r} must be WIDTHxHEIGHT in pixels, such as 512x512")
    return int(found[1]), int(found[2])
