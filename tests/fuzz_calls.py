"""Calls of a pipeline for ``tests/test_fuzz.py``: for every argument values that are understood, borders, and values of
every other type. A text that begins with {} names a file of ``fuzz_files``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiny_bundle
from fuzz_files import HEIGHT, WIDTH
from fuzz_words import MANY, OTHER_NAMES, OUTPUTS, PICTURES, SHORT_PROMPTS
from hypothesis import strategies as st
from PIL import Image

from runtime import CancelToken
from runtime.noise import GENERATORS
from runtime.plan import SAMPLERS, NoiseSchedule, compile_plan
from runtime.plan_arguments import SAMPLER_OPTIONS

CANCELLED = CancelToken()
CANCELLED.cancel()
PIXELS = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
BEYOND = (9, 0, 2**14, 2**14 + 2)

ODD_VALUES = st.sampled_from(
    (
        *(None, True, False, 0, 1, -1, 2, 2**31, 2**64, 2**70, 10**200, 10**400),
        *("", "x", "1", "\x00", "a\nb", "\udcff", b"x"),
        *(0.5, -0.0, 1.5, float("nan"), float("inf"), -float("inf"), 1e308, 1e-320, 1j, np.float32(1), np.int64(3)),
        *((), [], {}, [1], (1, 2), {"a": 1}, [[]], [None], range(3), np.zeros(3), np.zeros((2, 2), np.uint8)),
        *(Path(), object()),
    )
)
# By argument what is usual, and what is at a border or beyond it.
Choices = Mapping[str, tuple[Sequence[Any], Sequence[Any]]]
ARGUMENTS: Choices = {
    "negative_prompt": (("blue", "", "white " * 40), (["blue"], ["a", "b"])),
    "num_images_per_prompt": ((1, 2, 3), (int(MANY), 10**6 + 1)),
    "clip_skip": ((0, 1, 3), (4,)),
    "width": ((8, 10, 12), BEYOND),
    "height": ((8, 10, 12), BEYOND),
    "image": ((PIXELS, Image.fromarray(PIXELS), PIXELS[..., 0], *PICTURES.usual), (PIXELS[:0], *PICTURES.odd)),
    "mask": ((PIXELS[..., 0], PIXELS[..., 0] > 100, "{}/mask.png"), (PIXELS[:4], np.ones((HEIGHT, WIDTH), np.uint8))),
    "extend": (({"left": 4}, {"top": 2, "left": 2}), ({"left": 2**14}, {"up": 2}, {"left": -2}, {"left": 0})),
    "paste_back": ((True, False), ()),
    "strength": ((0.5, 1, 1.0), (0,)),
    "guidance_scale": ((1, 3.0, 0, -2), (1e30, 1e300)),
    "seed": ((0, 7), (2**64 - 1,)),
    "rng": (tuple(GENERATORS), ()),
    "variation_seed": ((0, 9), ()),
    "variation_strength": ((0, 0.2, 1), ()),
    "upscale": ((1, 1.5, 2), (4, 5)),
    "upscale_by": (("latents", "pixels"), ()),
    "upscale_strength": ((0, 0.5, 1), ()),
    "upscale_steps": ((5, 100), (1, 101)),
    "sampler": ((*SAMPLERS, *OTHER_NAMES), ()),
    "num_inference_steps": ((2, 5, 9), (1, 100, 101)),
    "plan": ((compile_plan(NoiseSchedule(tiny_bundle.alphas_cumprod()), "ddim", 3),), ()),
    "batch_size": ((1, 2), (10**6,)),
    "timeout": ((60,), (1e-9,)),
    "cancel": ((CancelToken(),), (CANCELLED,)),
}
OPTION_VALUES = (0, 0.5, 1, 2, "zero", "sigma_min", "karras", "trailing", "midpoint", "bh2", (0.3, 5), [1, 2])
OPTIONS: Choices = dict.fromkeys(sorted(SAMPLER_OPTIONS - {"strength"}), (OPTION_VALUES, ()))
OF_FRAMES: Choices = {"to": (("blue", 1), ("white " * 40,)), "to_seed": ((3,), ()), "frames": ((2, 3), (601, 1))}
# What means nothing by itself.
TOGETHER = {
    "mask": {"image": PIXELS},
    "extend": {"image": PIXELS},
    "paste_back": {"image": PIXELS, "mask": PIXELS[..., 0]},
    "strength": {"image": PIXELS},
    "variation_seed": {"variation_strength": 0.5},
    "variation_strength": {"variation_seed": 5},
    "upscale_by": {"upscale": 2},
    "upscale_strength": {"upscale": 2},
    "upscale_steps": {"upscale": 2},
}
FIRST = {
    "text": st.sampled_from(("red", ["red", "blue square"], [], "", "my-style")) | SHORT_PROMPTS,
    "classes": st.sampled_from((0, [1, 2], 3, 4, -1, [], [0.5], [2**70])),
}
THEN = st.sampled_from(
    (
        ("nothing", None),
        *(("save", name) for name in (*OUTPUTS.usual, *OUTPUTS.odd)),
        *(("save_grid", columns) for columns in (None, 1, 3, 0, -1, 2**31, 2**14, 1.5, "2")),
    )
)


class Call(NamedTuple):
    """A call of a pipeline.

    Attributes:
        kind: "text", "fill" or "classes", whose pipeline it is.
        how: "call", "denoise" or "interpolate".
        first: what it draws.
        arguments: the rest.
        then: what is done with the result: "nothing", "save" with a name, or "save_grid" with columns.
    """

    kind: str
    how: str
    first: Any
    arguments: dict[str, Any]
    then: tuple[str, Any]


@st.composite
def calls(draw: Callable[..., Any]) -> Call:
    """A call with a few arguments, of which about one in eight is odd, and one in eight at a border."""
    kind = draw(st.sampled_from(("text", "text", "fill", "classes")))
    how = draw(st.sampled_from(("call", "call", "denoise", "interpolate")))
    first = draw(ODD_VALUES if draw(st.integers(0, 11)) == 0 else FIRST["classes" if kind == "classes" else "text"])
    given: dict[str, Any] = {"image": PIXELS, "mask": PIXELS[..., 0]} if kind == "fill" else {}
    given |= {"to_seed": 3, "frames": 2} if how == "interpolate" else {}
    there = ARGUMENTS | (OF_FRAMES if how == "interpolate" else {})
    for _ in range(draw(st.integers(0, 4))):
        table = OPTIONS if draw(st.integers(0, 5)) == 0 else there
        name, odd = draw(st.sampled_from(sorted(table))), draw(st.integers(0, 7))
        usual, beyond = table[name]
        value = draw(ODD_VALUES if odd == 0 else st.sampled_from(beyond if odd == 1 and beyond else usual))
        given = TOGETHER.get(name, {}) | given | {name: value}
    if repr(given.get("num_images_per_prompt")) == MANY:  # an array is among the odd values
        given["timeout"] = 1
    return Call(kind, how, first, given, draw(THEN))
