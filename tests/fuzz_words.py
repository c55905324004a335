"""Prompts and command lines for ``tests/test_fuzz.py``: for every flag values that are understood, borders, and
nonsense. A word may name a file of ``fuzz_files``; {} stands for their folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fuzz_files import BROKEN
from hypothesis import strategies as st

from runtime.noise import GENERATORS
from runtime.plan import SAMPLERS
from runtime.plan_arguments import SAMPLER_OPTIONS
from runtime.sigma_spacings import SIGMA_SPACINGS

MANY = "100000"  # images: more than anybody waits for here, so that they come with a time limit
LONG = {MANY, "1000000", "600", "{}/many.jsonl"}
SECONDS = "2"


def words(text: str) -> list[str]:
    """Words that hold no space."""
    return text.split()


# No slash is in them, so that what is drawn stays in the folder that it is drawn into.
NUMBERS = words("0 1 -1 0.5 1.5 nan inf -inf 1e308 -1e308 1e-320 1e400 1e40 -0.0 2 100")
WHOLE = words("0 1 2 3 -1 99 100 101 2147483648 4294967296 18446744073709551616 999999999999999999999999999999")
WORDS = words("x None true 0x10 1_0 1,2 = , - -- [ {} [] null %s%n%d '\" $(id) * ~ . nul -h2 @file \u0663 ½ １２ 💥 é")
CONTROL = (" ", "\n", "a\nb", "\r", "\t", "\x1b[31mred", "\x00", "a\x00b", "\x7f", "\u2028", "\u202e", "\ufeff")
NONSENSE = ("", *NUMBERS, *WORDS, *CONTROL, "\udcff", "a\ud800", "x" * 300, "x" * 5000, "9" * 400, "9" * 5000)
ANY_TEXT = st.text(st.characters(exclude_characters="/"), max_size=12)

KNOWN = ("a ", "red ", "green ", "blue ", "circle ", "square ", "on ", "white ")
SYNTAX = ("(", ")", "[", "]", "\\", ":", "|", "1.3", "1.1)", ":-2)", "((", " BREAK ", " AND ", "[a:b:0.5]", ", ", "\n")
PIECES = (*KNOWN, *SYNTAX, "cat ", "<lora:x:1>", "<toy>", "my-style", "embedding:x ", "é", "💥", "\x00")
SHORT_PROMPTS = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=60)
PROMPTS = st.one_of(
    SHORT_PROMPTS,
    st.lists(st.sampled_from(KNOWN), min_size=1, max_size=12).map("".join),
    st.text(max_size=400),
    st.text(st.characters(), max_size=20),  # with halves of surrogate pairs
    st.tuples(st.sampled_from(PIECES), st.sampled_from((100, 3000, 20_000))).map(lambda pair: pair[0] * pair[1]),
)


class Values(NamedTuple):
    """What a flag may be given: what is mostly understood, and what is odd, beside nonsense."""

    usual: Sequence[str]
    odd: Sequence[str] = ()


def values(usual: str, odd: str | Sequence[str] = ()) -> Values:
    return Values(words(usual), words(odd) if isinstance(odd, str) else odd)


PICTURES = values(
    "{}/colours.png {}/grey.png {}/clear.png {}/colours.jpg {}/colours.webp {}/mask.png",
    "{}/colours.bmp {}/colours.gif {}/palette.png {}/bits.png {}/deep.png {}/one.png {}/wide.png {}/turned.jpg "
    "{}/black.png {} missing.png {}/plan.json " + " ".join(f"{{}}/{name.replace(' ', '-')}.png" for name in BROKEN),
)
OUTPUTS = Values(
    words("out.png out.png out.webp out.jpg out.npz out.gif out"),
    (
        *("there.png", "missing/out.png", "OUT.PNG", ".png", "o\nut.png", "\x1b[31m.png", "\x00.png", "\udcff.png"),
        *("x" * 300 + ".png", "💥.png", " .png", "out.tiff", "there", "-o.png", "a b.jpeg"),
    ),
)
SEEDS, SHARES = values("0 7 4294967295", WHOLE), values("0.5 0.8 1", NUMBERS)
OTHER_NAMES = ("DPM++ 2M Karras", "Euler a", "PLMS", "Heun beta")
ODD_JSON = ("null", "true", "[1]", "[]", '{"a": 1}', "NaN", "1e999", "-1", "x", '"leading"', "9" * 30, "")

# By the name that argparse gives what a flag says; flags that take no value are not among them.
VALUES: Mapping[str, Values] = {
    "prompt": Values(("a red circle", "blue", "my-style on white", "(red:1.3) BREAK square")),
    "prompts": values(
        "{}/prompts.txt {}/prompts.jsonl {}/labels.txt {}/labels.jsonl {}/images.jsonl",
        "{}/fails.jsonl {}/lost.jsonl {}/many.jsonl {}/wrong.jsonl {}/empty.txt {}/binary.txt {}/bomb.jsonl "
        "{}/plan.json {}/colours.png {} missing.txt",
    ),
    "model": values("tiny-text tiny tiny-fill", "nowhere {} {}/plan.json .. " + "m" * 300),
    "negative": Values(("blue", "a (white:0.5) square"), ("red " * 50,)),
    "label": values("0 owl all", ["3", "None", "all,0", *WHOLE]),
    "size": values("8x8 12x8 16x10", "0x0 9x9 2x2 16384x16384 16386x2 512x2 8 8X8"),
    "clip_skip": values("0 1 2", WHOLE),
    "count": values("1 2 3", [*WHOLE, MANY, "1000000", "1000001"]),
    "seed": SEEDS,
    "rng": values(" ".join(GENERATORS), "dice"),
    "guidance_scale": values("1 3 0", NUMBERS),
    "image": PICTURES,
    "strength": SHARES,
    "mask": values("{}/mask.png {}/clear.png", [*PICTURES.usual, *PICTURES.odd]),
    "extend": values("left=4 top=2,bottom=4", "left=1 left=0 left=16384 up=2 left=2,left=2"),
    "embedding": values(
        "{}/words/my-style.safetensors toy={}/words/toy.safetensors",
        "{}/words/wide.safetensors {}/words/broken.pt {}/words missing.pt ={}/words/toy.safetensors",
    ),
    "embeddings": values("{}/words", "missing {}/colours.png {}"),
    "variation_seed": SEEDS,
    "variation_strength": SHARES,
    "upscale": values("1.5 2", [*NUMBERS, "4", "4.1"]),
    "upscale_by": values("latents pixels", "magic"),
    "upscale_strength": SHARES,
    "upscale_steps": values("3 10", WHOLE),
    "to": Values(("blue", "a white square"), ("red " * 50,)),
    "to_label": values("1 owl", ["all", "3", *WHOLE]),
    "to_seed": SEEDS,
    "frames": values("2 3", [*WHOLE, "600", "601"]),
    "fps": values("12 5.5", NUMBERS),
    "sampler": Values([*SAMPLERS, *OTHER_NAMES], ("eulerr", "K_EULER")),
    "steps": values("1 2 5 8", WHOLE),
    "plan": values(
        "{}/plan.json {}/from-image.json",
        "{}/other.json {}/no-plan.json {}/half-plan.json {}/wrong-plan.json {} missing.json /dev/zero",
    ),
    "timestep_spacing": values("leading trailing linspace", "odd"),
    "sigma_spacing": values(" ".join(SIGMA_SPACINGS), "odd"),
    "sigma_min": values("0.05 0.1", [*NUMBERS, "0.0001", "10000"]),
    "sigma_max": values("3 10", [*NUMBERS, "0.0001", "10000"]),
    "final_sigmas_type": values("zero sigma_min", "odd"),
    "guidance_interval": values("0.3,5 0,1", "5,0.3 nan,nan -inf,inf 1 1,2,3 , 1,x"),
    "guidance_rescale": SHARES,
    "clip_sample": values("1 1.5", NUMBERS),
    "eta": values("0 0.5 1", NUMBERS),
    "variance": values("posterior beta", "odd"),
    "sampler_option": Values(
        [f"{name}={value}" for name in sorted(SAMPLER_OPTIONS) for value in ("1", "2", "0.5")],
        [f"{name}={value}" for name in sorted(SAMPLER_OPTIONS) for value in ODD_JSON],
    ),
    "output": OUTPUTS,
    "sheet": OUTPUTS,
    "batch_size": values("1 2 32", [*WHOLE, "1000000"]),
    "provider": values("cpu auto", "tpu"),
    "max_memory": values("3GB 900MB 0.5GiB 99999999", ["1MB", "3G", "0GB", "-1GB", "1e3MB", *WHOLE]),
    "threads": values("1 2", "0 -1 1025 999999999999999999999999999999"),
    "timeout": values("60 600", "0 -1 nan inf 1e300 1e-9 0.01"),
    "variant": values("fp32", "fp16 int8"),
    "picture": values(
        "{}/drawn.png {}/drawn-class.png {}/drawn-from.png {}/drawn-filled.png",
        [*PICTURES.usual, *PICTURES.odd, "{}/drawn-sheet.png", "{}/drawn.webp", "{}/drawn.gif"],
    ),
    "plot": values("plot.png plot.webp", OUTPUTS.odd),
    "peer": values("other=false", ("other=no-such-program", "x", "a='", "=true", "runtime=true", "a=\x00")),
    "rounds": values("1", "0 -1"),
    "limit": values("60", "0 -1 nan inf 1e-9"),
    "json": values("figures.json", ("missing/figures.json", "\x00")),
    "batch_sizes": values("1", "0 1,x , -1 1000000001"),
    "warm": values("1", "0 -1"),
    "graphs": values("unet unet,vae_decoder text_encoder", "controlnet , unet, UNET"),
    "sizes": values("8x8 8x8,12x8", "0x0 9x9 8x8, 16386x2"),
}

# What command lines begin as, before anything is done to them: positional words first, then flags with their values.
Units = tuple[tuple[str, ...], ...]
PNG, FROM, MASK = ("-o", "out.png"), ("--image", "{}/colours.png"), ("--mask", "{}/mask.png")
TEXT, FILL, CLASSES = ("--model", "tiny-text"), ("--model", "tiny-fill"), ("--model", "tiny")
TASKS: Mapping[str, Units] = {
    "text": (("a red circle",), TEXT, PNG),
    "weights": (("a (red:1.4) circle, [blue] BREAK my-style",), TEXT, PNG, ("--negative", "white")),
    "learned word": (("my-style",), TEXT, PNG, ("--embedding", "{}/words/my-style.safetensors")),
    "image": (("red",), TEXT, PNG, FROM, ("--strength", "0.5")),
    "mask": (("red",), TEXT, PNG, FROM, MASK),
    "fill": (("red",), FILL, PNG, FROM, MASK),
    "extend": (("red",), TEXT, PNG, FROM, ("--extend", "left=4,bottom=2")),
    "variation": (("red",), TEXT, PNG, ("--seed", "7"), ("--variation-seed", "9"), ("--variation-strength", "0.2")),
    "second pass": (("red",), TEXT, PNG, ("--upscale", "2")),
    "frames": (("red",), TEXT, ("-o", "out.gif"), ("--to", "blue"), ("--frames", "3")),
    "seeds": (("red",), TEXT, PNG, ("--to-seed", "3"), ("--frames", "2")),
    "sheet": (("red",), TEXT, PNG, ("--count", "4"), ("--grid",)),
    "arrays": (("red",), TEXT, ("-o", "out.npz"), ("--count", "2")),
    "plan": (("red",), TEXT, PNG, ("--plan", "{}/plan.json")),
    "list": (TEXT, ("--prompts", "{}/prompts.txt"), ("-o", "out")),
    "list of objects": (TEXT, ("--prompts", "{}/images.jsonl"), ("-o", "out"), ("--sheet", "all.png")),
    "list of labels": (CLASSES, ("--prompts", "{}/labels.txt"), ("-o", "out")),
    "class": (CLASSES, PNG, ("--label", "1")),
    "classes": (CLASSES, PNG, ("--label", "all"), ("--count", "2"), ("--grid",)),
    "class from image": (CLASSES, PNG, FROM, MASK),
    "class frames": (CLASSES, ("-o", "out.webp"), ("--to-label", "2"), ("--frames", "3")),
    "replay": (("replay",), ("{}/drawn.png",), PNG),
    "replay of a class": (("replay",), ("{}/drawn-class.png",)),
    "replay with image": (("replay",), ("{}/drawn-from.png",), FROM),
    "replay with mask": (("replay",), ("{}/drawn-filled.png",), FROM, MASK),
    "plan command": (("plan",), TEXT, ("--json",), ("-o", "plan.json")),
    "plot": (("plan",), CLASSES, ("--plot", "plot.png")),
    "check": (("check",), ("tiny",)),
    "cache": (("cache",),),
    "doctor": (("doctor",),),
    "benchmark": (("benchmark",), ("tiny",), ("--rounds", "0")),
}
# Pictures to be drawn again, by the task that draws them, each into a file of another name.
DRAWN: Mapping[str, str] = {
    "drawn.png": "text",
    "drawn-class.png": "class",
    "drawn-from.png": "image",
    "drawn-filled.png": "mask",
    "drawn-sheet.png": "sheet",
    "drawn.webp": "text",
    "drawn.gif": "frames",
}


def value_of(name: str) -> st.SearchStrategy[str]:
    """A value for a flag, by its name in ``VALUES``: of ten some seven usual ones, two odd ones, and nonsense."""
    known, texts = VALUES[name], SHORT_PROMPTS if name in ("prompt", "negative", "to") else ANY_TEXT
    odd = st.sampled_from((*known.odd, *NONSENSE[:16]))
    choices = [*[st.sampled_from(known.usual)] * 7, odd, odd, st.sampled_from(NONSENSE) | texts]
    return st.integers(0, 9).flatmap(choices.__getitem__)


@st.composite
def command_lines(draw: Callable[..., Any], flags: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """A task's words, to which flags are added, or of which some are changed, left out, or said twice.

    Args:
        draw: of hypothesis.
        flags: by command, each flag with its name in ``VALUES``, or None if it takes no value.
    """
    units = list(TASKS[draw(st.sampled_from(sorted(TASKS)))])
    command = units[0][0] if units[0][0] in flags else "draw"
    own = flags[command]
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 2, 3, 5)))):
        change, k = draw(st.integers(0, 19)), draw(st.integers(0, len(units) - 1))
        word = units[k][0]
        if change < 14 and own:
            flag = draw(st.sampled_from(sorted(own)))
            name = own[flag]
            units.append((flag,) if name is None else (flag, draw(value_of(name))))
        elif change < 16 and len(units[k]) == 2 and word in own:
            units[k] = (word, draw(value_of(own[word] or "prompt")))
        elif change < 16 and not word.startswith("-") and word != command:
            units[k] = (draw(value_of({"draw": "prompt", "replay": "picture"}.get(command, "model"))),)
        elif change == 16 and len(units) > 1:
            del units[k]
        elif change == 17:
            units[k] = units[k][:1]
        elif change == 18:
            units.append(units[k])
        elif change == 19:
            units.insert(k, (draw(st.sampled_from(NONSENSE) | SHORT_PROMPTS),))
    typed = [word for unit in units for word in unit]
    return [*typed, "--timeout", SECONDS] if LONG & {*typed} else typed
