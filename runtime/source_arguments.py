"""What a command line says of a picture to begin at: of which part of it changes, and how much."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from runtime.errors import RequestError
from runtime.extend import parse_extend

MASK = "what of it is drawn anew: white; black is kept, grey changes less than white"
EXTEND = "draw beyond its edges: left, top, right, bottom, such as left=64,bottom=128"
PASTE_BACK = "leave what is kept as the VAE decodes it, without the picture's own pixels"


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; ``source_settings`` reads them."""
    group = parser.add_argument_group("image to image")
    group.add_argument("--image", type=Path, metavar="FILE", help="begin at this picture instead of noise alone")
    group.add_argument("--strength", type=float, help="how much of it changes, 0 to 1 (default: 0.8, with a mask 1)")
    group.add_argument("--mask", type=Path, metavar="FILE", help=MASK)
    group.add_argument("--extend", metavar="SIDE=PIXELS,...", help=EXTEND)
    group.add_argument("--no-paste-back", dest="paste_back", action="store_false", default=None, help=PASTE_BACK)


def source_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as arguments of a pipeline; pictures are not opened.

    Raises:
        RequestError: sides that cannot be read.
    """
    flags = {name: getattr(arguments, name) for name in ("image", "strength", "mask", "extend", "paste_back")}
    given = {name: value for name, value in flags.items() if value is not None}
    return given | {"extend": parse_extend(given["extend"])} if "extend" in given else given


def check_source_flags(arguments: argparse.Namespace, has_image: bool, has_mask: bool) -> None:
    """Refuse what is said of an image where there is none.

    Args:
        arguments: of the command line.
        has_image: whether anything that is asked for begins at an image.
        has_mask: whether of one a part is drawn anew.

    Raises:
        RequestError: with the flag.
    """
    if not has_image:
        if arguments.strength is not None:
            raise RequestError(f"--strength {arguments.strength:g} says how much of an --image changes; give one")
        for flag, value in (("--mask", arguments.mask), ("--extend", arguments.extend)):
            if value is not None:
                raise RequestError(f"{flag} {value} says what of an --image is drawn anew; give one")
    if arguments.paste_back is not None and not has_mask:
        raise RequestError("--no-paste-back says what is done with what a --mask keeps; give one")
