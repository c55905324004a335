"""Questions and this package's answers, by which the JavaScript host proves that it computes the same.

``python tests/js_vectors.py`` writes them to ``runtime/hosts/js/test/vectors.json``, whose bytes depend on nothing but
this code and the runtime's.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from clip_tokenizer import clip_tokenizer  # noqa: E402 - the path is set above, for who runs this as a program

from runtime.arithmetic import clip_original, guided  # noqa: E402
from runtime.bundle import Latents, PreviewMap  # noqa: E402
from runtime.noise import mersenne_words, noise_generator, philox_words  # noqa: E402
from runtime.preview import preview_latents  # noqa: E402
from runtime.prompt_syntax import parse  # noqa: E402
from runtime.text_encoder import weighted  # noqa: E402

FILE = ROOT / "runtime" / "hosts" / "js" / "test" / "vectors.json"

SYNTAX = (
    "a red cat",
    "a ((red)) cat [on (a mat)]",
    "(red:1.3) (blue: .5 ) (green:-1) (grey:1e9) (white:99999)",
    "(a (red:2) cat:0.5)",
    "(a:b:1.5) (12:30) (red:x) (red:1.3:) a: 1.3",
    r"\(red\) (\(red\):1.3) a \\ b a \n b \[a|b\]",
    "(red ((red) (red] (a [b) c] )( () smile :)",
    "red BREAK blue redBREAK break BREAK",
    "\u00e9BREAK BREAK\u00e9 BREAK9 _BREAK BREAK",
    "BREAK BREAK red BREAK  ",
    "(red BREAK blue:2)",
    "a <lora:style:0.8>cat <hypernet:x:1> <lora:\u00e9\u0661:2> <3:1>",
    "[red:blue:0.5] [red::8] [blue:0.5] [(a:1.2):b:0.5] [a:(b:1.2):0.5] [a [b:c:1]:d:2]",
    "[cow|horse] [a|b|c] [a|b:1.2|c] [:x|b] c [a [b]|c] [a [b]:0.5] x",
    "a:1.2 AND b:0.8",
    "red AND blue SAND ANDY\u00e9 \u00e9AND",
    "(red:\u0661.\u0663) (red:\u30001.5\u00a0) (red:\u0085 2\x1c) (red:\ufeff2)",
    "<lora:x\ny:1> and \u3000 wide\u2003spaces",
    "<lora:\x1b[31m:1> <lora:\u200b\U000e0001:1> [a\x07:b\x9b:1] [\u202ea|b]",
    "<cat-toy> embedding:my-style <3 <\u00e9x> xembedding:y EMBEDDING: z, <a:b>",
)
PROMPTS = (
    "",
    " \t\n ",
    "A PHOTO  of a\nCAT",
    "it's 2026, isn't IT'S? DON'T we'll (masterpiece:1.3), 4k!! a.b,c;d--e_f",
    "😀👩‍👩‍👧 émigré café e\u0301 漢字 Ελλάς ΟΔΟΣ",
    "\x00\x01\u200b\u200f\ufeff\U0010ffff",
    "a\u0085b\x1cc\x1fd\u00a0e\u3000f\u2028g\ufeffh\u180ei",
    "<|startoftext|> a <|endoftext|> b <|ENDOFTEXT|><|endoftext|>c",
    "ﬁne İstanbul ıI ẞ ß ŉ ǅ Ω Å \u1e9b\u0323",
    "٣ ² ½ Ⅷ ① १२ 1234567890 a1b2",
    "नमस्ते ไทย עברית العربية 한국어 日本語ひらがな",
    "word " * 75,
    "word " * 76,
    "x" * 3000,
    "hello</w> Ġworld Ã© 'S 's 'llama `~!@#$%^&*()",
)
LONG = (
    "cat " * 76,
    "cat " * 60 + ", " + "dog " * 39,
    "cat " * 54 + ", " + "dog " * 45,
    "cat " * 75 + ", " + "dog " * 24,
    "a (red cat:1.5) on [a mat] BREAK, " + "very " * 80 + "(old:0.5)",
)
WARNED = (
    "A red unicorn, on a blue-green car and x-ray, x-ray",
    "<cat-toy> on <lora:a:1> [a:b:0.5] a AND b [c|d] embedding:e",
    "cat " * (32 * 75 + 3),
)
KNOWN_WORDS = ("a", "red", "blue-green", "on", "cat", "and", "x")


def numbers(seed: int, *shape: int) -> np.ndarray:
    return noise_generator("philox", seed).draw(shape)


def said(prompt: str, known_words: tuple[str, ...] | None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip_tokenizer(known_words).chunks(prompt)
    return [str(each.message) for each in caught]


def parsed(text: str) -> dict[str, Any]:
    prompt = parse(text)
    sections = [[[piece.text, piece.weight] for piece in section] for section in prompt.sections]
    return {"text": text, "sections": sections, "notes": prompt.notes}


def chunked(prompt: str) -> dict[str, Any]:
    chunks = clip_tokenizer().chunks(prompt)
    return {
        "text": prompt,
        "ids": [chunk.ids[0].tolist() for chunk in chunks],
        "weights": [chunk.weights.tolist() for chunk in chunks],
    }


def drawn(generator: str, seed: int, counts: tuple[int, ...]) -> dict[str, Any]:
    """The last of several draws of one image."""
    noise = noise_generator(generator, seed)
    draws = [noise.draw((count,)) for count in counts]
    return {"generator": generator, "seed": str(seed), "counts": counts, "values": draws[-1].tolist()}


def vectors() -> dict[str, Any]:
    tokenizer = clip_tokenizer()
    uncond, cond = numbers(1, 2, 3, 2, 2), numbers(2, 2, 3, 2, 2)
    sample, latents = numbers(3, 24), numbers(4, 1, 4, 2, 3)
    states, weights = numbers(5, 1, 4, 3), np.array([1, 1.5, -0.5, 1])
    clipped = clip_original(np.array([1.25, -0.75]), sample, uncond.reshape(-1), 0.8)
    preview = {"weights": numbers(6, 4, 3).tolist(), "biases": [0.1, 0.2, -0.3]}
    return {
        "syntax": [parsed(text) for text in SYNTAX],
        "tokens": [{"text": text, "ids": tokenizer.ids(text)[0].tolist()} for text in PROMPTS],
        "chunks": [chunked(prompt) for prompt in LONG],
        "known_words": KNOWN_WORDS,
        "warnings": [{"text": prompt, "said": said(prompt, KNOWN_WORDS)} for prompt in WARNED],
        "weighted": {
            "states": states.reshape(-1).tolist(),
            "weights": weights.tolist(),
            "expected": weighted(states, weights).reshape(-1).tolist(),
        },
        "words": {
            "philox": philox_words(2**64 - 2, 3, 4).reshape(-1).tolist(),
            "torch": mersenne_words(2**32 + 1, 700)[-4:].tolist(),
        },
        "noise": [
            drawn("philox", 0, (8,)),
            drawn("philox", 2**64 - 1, (5, 7)),
            drawn("torch", 0, (16,)),
            drawn("torch", 7, (3, 20, 2, 37)),
        ],
        "guided": {
            "uncond": uncond.reshape(-1).tolist(),
            "cond": cond.reshape(-1).tolist(),
            "size": uncond[0].size,
            "expected": {str(phi): guided(uncond, cond, 7.5, phi).reshape(-1).tolist() for phi in (0, 0.7)},
        },
        "clipped": {"sample": sample.tolist(), "output": clipped[0].tolist(), "original": clipped[1].tolist()},
        "preview": preview | {"latents": latents.reshape(-1).tolist(), "expected": preview_of(preview, latents)},
    }


def preview_of(preview: dict[str, Any], latents: np.ndarray) -> list[int]:
    found = PreviewMap(tuple(map(tuple, preview["weights"])), tuple(preview["biases"]))
    pixels = preview_latents(Latents(4, 8, 1.0, found), latents)
    assert pixels is not None
    values: list[int] = pixels.reshape(-1).tolist()
    return values


def text() -> str:
    return json.dumps(vectors(), separators=(",", ":")).replace('],"', '],\n"').replace('},{"', '},\n{"') + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
    print(f"{FILE}: {FILE.stat().st_size} bytes")
