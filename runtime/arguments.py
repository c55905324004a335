"""A command line whose complaints fit on one line, and the words that several commands read."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from runtime.bundle import ClassConditioning
from runtime.errors import RequestError, printable
from runtime.prompt_syntax import shortened

MAX_DIGITS = 18  # of a label; Python reads no number of thousands


class ArgumentParser(argparse.ArgumentParser):
    """argparse, without the usage before what is wrong (as in ``training``; neither package imports the other)."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}; see {self.prog} --help\n")


def parse_size(text: str) -> tuple[int, int]:
    """Width and height; whether they suit the model is for the model to say.

    Raises:
        RequestError: not two whole numbers with an x between them.
    """
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if not found:
        raise RequestError(f"size {text!r} must be WIDTHxHEIGHT in pixels, such as 512x512")
    return int(found[1]), int(found[2])


def parse_labels(text: str, conditioning: ClassConditioning) -> list[int]:
    """Labels by number, name or "all".

    Raises:
        RequestError: neither of these.
    """
    if text == "all":
        return list(range(conditioning.num_classes))
    if text in conditioning.names:
        return [conditioning.names.index(text)]
    if text.isdecimal() and len(text) <= MAX_DIGITS and int(text) < conditioning.num_classes:
        return [int(text)]
    names = (
        ""
        if conditioning.names == tuple(map(str, range(conditioning.num_classes)))
        else f" ({', '.join(conditioning.names)})"
    )
    raise RequestError(f"label {shortened(text)!r} is none of 0 to {conditioning.num_classes - 1}{names} or all")
