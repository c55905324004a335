"""Proves how latents become pictures: whole or in tiles, and never from numbers that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text_bundle as tiny

from runtime import load
from runtime.bundle import open_bundle
from runtime.errors import RequestError
from runtime.loading import make_pipeline
from runtime.networks import Networks
from runtime.session import Session
from runtime.vae import TILING


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_numbers_of_the_vae_that_are_not_finite_are_no_black_picture(
    folder: Path, tmp_path: Path, number: float, low_memory: bool
) -> None:
    made, constants = tiny.nodes()["vae_decoder"]
    inputs, outputs = tiny.INPUTS["vae_decoder"], tiny.OUTPUTS["vae_decoder"]
    broken = tiny.model(made, inputs, outputs, {"spread": np.full_like(constants["spread"], number)})

    def add_variant(manifest: dict[str, Any]) -> None:
        variants = manifest["graphs"]["vae_decoder"]
        variants["fp16"] = variants["fp32"] | tiny.described("narrow.onnx", broken)

    folder_with_both = tiny.changed(folder, tmp_path, add_variant)
    (folder_with_both / "narrow.onnx").write_bytes(broken)
    request = {"num_images_per_prompt": 2, "num_inference_steps": 2}
    assert len(load(folder_with_both, "cpu", low_memory=low_memory)("red", **request).images) == 2
    narrow = load(folder_with_both, "cpu", low_memory=low_memory, variant="fp16")
    with pytest.raises(RequestError, match=r"the VAE makes image 1 of 2 of numbers not finite; .*fp16.*: take fp32$"):
        narrow("red", **request)

    def have_no_other(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["vae_decoder"]["fp32"].update(tiny.described("narrow.onnx", broken))

    folder_with_one = tiny.changed(folder_with_both, folder_with_both, have_no_other)
    with pytest.raises(RequestError, match=r"numbers not finite; export the model again with another VAE \(--vae\)$"):
        load(folder_with_one, "cpu", low_memory=low_memory)("red", **request)


def test_large_pictures_are_decoded_in_tiles_where_memory_is_short_and_never_for_conformance(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []
    run = Session.run

    def watching(self: Session, **inputs: Any) -> Any:
        sides.extend(max(value.shape) for name, value in inputs.items() if name == "latent_sample")
        return run(self, **inputs)

    monkeypatch.setattr(Session, "run", watching)
    request = {"width": 8, "height": 200, "num_inference_steps": 1}
    for drawer, expected in (
        (load(folder, "cpu", low_memory=True), [TILING.tile] * 2),
        (load(folder, "cpu"), [100]),
        (make_pipeline(open_bundle(folder), Networks(open_bundle(folder), low_memory=True), ""), [100]),
    ):
        drawer("red", **request)
        assert sides == expected
        sides.clear()
