"""Proves that the full-size bundle which tests share is made anew when anything changes that shapes it, and kept when
something else does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from full_size_bundle import ROOT, SOURCES, key, versions

SHAPING = (
    "export/graph_writer.py",
    "training/noise_schedule.py",
    "training/stable_diffusion/unet.py",
    "runtime/plan.py",
    "runtime/noise.py",
    "runtime/noise_levels.py",
    "runtime/noise_schedule.py",
    "runtime/sigma_spacings.py",
    "runtime/samplers/adams.py",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*SHAPING, "runtime/draw.py", "training/stable_diffusion/lora/read.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", SHAPING)
def test_code_that_shapes_the_bundle_counts(root: Path, name: str) -> None:
    before = key(root, versions())
    (root / name).write_bytes((root / name).read_bytes() + b"\n")
    assert key(root, versions()) != before


@pytest.mark.parametrize("name", ["runtime/draw.py", "training/stable_diffusion/lora/read.py"])
def test_other_code_does_not(root: Path, name: str) -> None:
    before = key(root, versions())
    (root / name).write_bytes(b"")
    assert key(root, versions()) == before


@pytest.mark.parametrize("library", ["torch", "onnx", "onnxscript", "onnxruntime", "format"])
def test_versions_count(root: Path, library: str) -> None:
    assert key(root, {**versions(), library: "another"}) != key(root, versions())


def test_every_pattern_finds_code() -> None:
    assert [pattern for pattern in SOURCES if not any(ROOT.glob(pattern))] == []
