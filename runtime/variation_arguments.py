"""What a command line, a line of a list and a picture's metadata may say of variations and of a second pass."""

from __future__ import annotations

import argparse
from typing import Any

from runtime.second_pass import MAX_UPSCALE, UPSCALE_BY, UPSCALE_STRENGTH

# Arguments of a call, with the types they have in JSON.
KINDS: dict[str, tuple[type, ...]] = {
    "variation_seed": (int,),
    "variation_strength": (int, float),
    "upscale": (int, float),
    "upscale_by": (str,),
    "upscale_strength": (int, float),
    "upscale_steps": (int,),
}
HOW_NEAR = "how near, 0 to 1; of several images the variation seed counts up, and the seed stays"


def add_variation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; ``variation_settings`` reads them."""
    group = parser.add_argument_group("variations")
    group.add_argument("--variation-seed", type=int, metavar="SEED", help="begin nearer to the noise of this seed")
    group.add_argument("--variation-strength", type=float, metavar="SHARE", help=HOW_NEAR)
    group = parser.add_argument_group("second pass, at a larger size (models of text)")
    group.add_argument("--upscale", type=float, metavar="FACTOR", help=f"draw once more, larger: 1 to {MAX_UPSCALE}")
    group.add_argument(
        "--upscale-by", choices=UPSCALE_BY, help=f"what is enlarged in between (default: {UPSCALE_BY[0]})"
    )
    group.add_argument(
        "--upscale-strength", type=float, help=f"how much of it changes, 0 to 1 (default: {UPSCALE_STRENGTH})"
    )
    group.add_argument("--upscale-steps", type=int, help="steps, of which that share is taken (default: as before)")


def variation_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as arguments of a pipeline."""
    return {name: getattr(arguments, name) for name in KINDS if getattr(arguments, name) is not None}
