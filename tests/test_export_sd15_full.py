"""Proves at full size, with 1.07 billion random weights, what the other tests prove of a small model: the bundle is
made in bounded memory, its graphs are PyTorch's at every promised size, its conformance file is small enough to ship,
and the runtime and ``export check`` pass it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from full_size_bundle import ROOT, exported_bundle, how_it_was_made, run_measured

from runtime.bundle import CONFORMANCE, MANIFEST, open_bundle

pytestmark = pytest.mark.full

MOST_MEMORY = 14e9
BOUNDS = {"text_encoder": 1e-5, "unet": 1e-5, "vae_encoder": 3e-5, "vae_decoder": 3e-5}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((exported_bundle() / MANIFEST).read_text())
    return value


def test_it_is_made_in_bounded_memory() -> None:
    made = how_it_was_made()
    print(*made.lines, f"{made.seconds:.0f} s, at most {made.peak_bytes / 1e9:.1f} GB", sep="\n")
    assert made.peak_bytes < MOST_MEMORY
    for role in BOUNDS:
        for variant in ("fp32", "fp32-cpu"):
            assert any(line.startswith(f"{role} {variant}: ") for line in made.lines)


@pytest.mark.parametrize("variant", ["fp32", "fp32-cpu"])
@pytest.mark.parametrize("role", BOUNDS)
def test_graphs_are_pytorchs_at_every_promised_size(manifest: dict[str, Any], role: str, variant: str) -> None:
    parity = manifest["graphs"][role][variant]["parity"]
    assert parity["max_abs_diff"] <= BOUNDS[role] * parity["max_abs_reference"] + BOUNDS[role]
    assert {1, 2} <= {sizes["batch"] for sizes in parity["sizes"]}
    factor = 8 if role == "vae_encoder" else 1
    sides = {(sizes.get("h", sizes.get("height")), sizes.get("w", sizes.get("width"))) for sizes in parity["sizes"]}
    if role != "text_encoder":
        assert {(factor * 64, factor * 64), (factor * 48, factor * 80), (factor * 65, factor * 63)} <= sides


def test_weights_lie_beside_large_graphs(manifest: dict[str, Any]) -> None:
    for role, most in (("unet", 3.5e9), ("text_encoder", 5e8)):
        graph = manifest["graphs"][role]["fp32"]
        assert graph["size"] < 5e6
        (external,) = graph["external_data"]
        assert 0.9 * most < external["size"] < most
        variant = manifest["graphs"][role]["fp32-cpu"]
        assert variant["external_data"] == [external]
        assert variant["size"] < graph["size"]
    assert len(manifest["graphs"]["unet"]["fp32"]["initializers"]) == 686


def test_the_conformance_file_is_small_enough_to_ship() -> None:
    assert (exported_bundle() / CONFORMANCE).stat().st_size < 20e6
    assert open_bundle(exported_bundle()).defaults.width == 512


def test_the_runtime_passes_it() -> None:
    command = [sys.executable, "-m", "runtime", "check", str(exported_bundle())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "picture ddim-4" in done.stdout


def test_check_repeats_its_parity_in_bounded_memory() -> None:
    made = run_measured("check", exported_bundle())
    print(*made.lines, f"{made.seconds:.0f} s, at most {made.peak_bytes / 1e9:.1f} GB", sep="\n")
    assert made.peak_bytes < MOST_MEMORY
