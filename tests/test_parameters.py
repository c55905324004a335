"""Proves that pictures of prompts carry what made them in the words of the web interfaces."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from runtime.__main__ import main


@pytest.fixture
def models(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", str(tiny_models))
    return tiny_models


def carried(path: str) -> str | None:
    with Image.open(path) as picture:
        text = picture.info.get("parameters")
    return None if text is None else str(text)


def test_everything_said(models: Path) -> None:
    words = [
        "a (red:1.5) circle, 円",
        "--negative",
        "blue",
        "--sampler",
        "DPM++ 2M Karras",
        "--steps",
        "9",
        "--seed",
        "7",
    ]
    words += ["--guidance-scale", "4.5", "--size", "10x8", "--clip-skip", "1", "-o", "out.png"]
    assert main(["--model", "tiny-text", *words]) == 0
    prompt, negative, facts = str(carried("out.png")).split("\n")
    assert prompt == "a (red:1.5) circle, 円"
    assert negative == "Negative prompt: blue"
    sha256 = dict(fact.split(": ") for fact in facts.split(", "))
    assert len(sha256.pop("Model hash")) == 10
    assert sha256 == {
        "Steps": "9",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "4.5",
        "Seed": "7",
        "Size": "10x8",
        "Model": "tiny-text",
        "Clip skip": "2",
    }


def test_nothing_said(models: Path) -> None:
    assert main(["--model", "tiny-text", "red", "--seed", "1", "-o", "out.png"]) == 0
    lines = str(carried("out.png")).split("\n")
    assert lines[0] == "red"
    assert len(lines) == 2
    assert lines[1].startswith("Steps: ")
    assert "Clip skip" not in lines[1]


def test_strength_is_their_denoising_strength(models: Path) -> None:
    Image.new("RGB", (8, 8), (90, 10, 200)).save("begin.png")
    words = ["red", "--image", "begin.png", "--strength", "0.6", "-o", "out.png"]
    assert main(["--model", "tiny-text", *words]) == 0
    assert str(carried("out.png")).endswith("Denoising strength: 0.6")


def test_classes_carry_none(models: Path) -> None:
    assert main(["--model", "tiny", "--label", "1", "-o", "class.png"]) == 0
    assert carried("class.png") is None


def test_a_sheet_carries_those_of_its_first_picture(models: Path) -> None:
    words = ["--model", "tiny-text", "red", "--seed", "7"]
    assert main([*words, "-o", "first.png"]) == 0
    assert main([*words, "--count", "2", "--grid", "-o", "sheet.png"]) == 0
    assert carried("sheet.png") == carried("first.png")
