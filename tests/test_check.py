"""Proves that ``python -m runtime check`` replays the cases of a text bundle, and that it notices what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import tiny_text_bundle as tiny
from safetensors.numpy import save_file

from runtime import load
from runtime.__main__ import main
from runtime.bundle import open_bundle

Case = dict[str, Any]
Tensors = dict[str, np.ndarray]
PROMPT = "a red circle on a white green square"  # two words too long


def write_conformance(bundle: Path, change: Callable[[Case, Case, Tensors], object]) -> None:
    """A conformance file with one case of tokens and one picture, both right but for ``change``."""
    result = load(bundle, "cpu")(PROMPT, negative_prompt="blue", width=6, height=4, seed=5)
    tensors = {"ids": np.array(tiny.ids(PROMPT)), "sample": result.sample, "image": result.images}
    tokens: Case = {"kind": "tokens", "prompt": PROMPT, "tensor": "ids"}
    picture: Case = {
        "kind": "picture",
        "plan": "ddim-10",
        "generator": "philox",
        "seed": "5",
        "guidance_scale": 3.0,
        "prompt": PROMPT,
        "negative_prompt": "blue",
        "width": 6,
        "height": 4,
        "sample": "sample",
        "image": "image",
        "tolerance": 1e-5,
    }
    change(tokens, picture, tensors)
    save_file(tensors, bundle / "conformance.safetensors", {"cases": json.dumps([tokens, picture])})


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize(
    ("change", "failures"),
    [
        (lambda tokens, picture, tensors: None, 0),
        (lambda tokens, picture, tensors: tensors.update(ids=tensors["ids"][::-1].copy()), 1),
        (lambda tokens, picture, tensors: tensors.update(ids=tensors["ids"][:-1]), 1),
        (lambda tokens, picture, tensors: picture.update(seed="6"), 2),
        (lambda tokens, picture, tensors: picture.update(negative_prompt=""), 2),
        (lambda tokens, picture, tensors: picture.update(width=8), 2),
        (lambda tokens, picture, tensors: tensors.update(image=255 - tensors["image"]), 1),
    ],
)
def test_cases_of_a_text_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Case, Case, Tensors], object], failures: int
) -> None:
    bundle = tiny.write(tmp_path)
    write_conformance(bundle, change)
    assert main(["check", str(bundle), "--provider", "cpu"]) == (1 if failures else 0)
    captured = capsys.readouterr()
    assert captured.err == ""  # a prompt that is cut off on purpose is no news
    assert "pass  tokenizer.json: SHA-256" in captured.out
    assert captured.out.count("FAIL  ") == failures
    assert captured.out.endswith(f"tiny-text: {3 - failures} of 3 cases pass\n")


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize(
    "change",
    [
        lambda tokens, picture, tensors: tokens.pop("prompt"),
        lambda tokens, picture, tensors: tokens.update(prompt=7),
        lambda tokens, picture, tensors: picture.pop("width"),
        lambda tokens, picture, tensors: picture.update(width="wide"),
        lambda tokens, picture, tensors: picture.update(prompt=[]),
        lambda tokens, picture, tensors: picture.update(plan="none"),
        lambda tokens, picture, tensors: picture.update(guidance_scale=None, seed="x"),
    ],
)
def test_a_malformed_case_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Case, Case, Tensors], object]
) -> None:
    bundle = tiny.write(tmp_path)
    write_conformance(bundle, change)
    assert main(["check", str(bundle), "--provider", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_bundle_of_classes_has_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle.write(tmp_path)
    cases = json.dumps([{"kind": "tokens", "prompt": "", "tensor": "ids"}])
    save_file({"ids": np.zeros(1)}, bundle / "conformance.safetensors", {"cases": cases})
    assert main(["check", str(bundle), "--provider", "cpu"]) == 2
    assert "has tokens, but tiny takes no text" in capsys.readouterr().err
    assert open_bundle(bundle).name == "tiny"
