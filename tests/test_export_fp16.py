"""Proves of a small model that ``--precision fp16`` gives a bundle that ``export check`` and ``runtime check`` pass and
that draws; and that a check notices a weight that was altered afterwards, behind hashes that agree."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import text_samples
from onnx import numpy_helper
from PIL import Image

from export import __main__ as export
from export.sd15 import export_sd15
from export.sd15_graphs import SPECS
from runtime import __main__ as runtime
from runtime.bundle import MANIFEST

pytestmark = pytest.mark.slow  # an export traces four networks, which takes half a minute


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp16")
    export_sd15(
        text_samples.write_checkpoint(folder / "model.safetensors"),
        folder / "small",
        precision="fp16",
        config=text_samples.CONFIG,
        tokenizer=text_samples.write_tokenizer(folder / "tokenizer.json"),
        report=lambda line: None,
    )
    return folder / "small"


def test_the_bundle_holds_fp16_alone(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert {role: list(variants) for role, variants in manifest["graphs"].items()} == {role: ["fp16"] for role in SPECS}
    assert sorted(path.name for path in bundle.glob("*.onnx")) == sorted(f"{role}-fp16.onnx" for role in SPECS)
    assert manifest["graphs"]["text_encoder"]["fp16"]["parity"]["sizes"][0]["clip_skip"] == 0


def test_both_checks_pass(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["check", str(bundle)]) == 0
    assert capsys.readouterr().out.count("fp16: SHA-256 and weights as shipped") == 4
    assert runtime.main(["check", str(bundle), "--provider", "cpu"]) == 0


def test_it_draws(bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "ab.png"
    words = ["ab", "--model", str(bundle), "--steps", "4", "--size", "64x64", "-o", str(picture)]
    assert runtime.main(words) == 0
    with Image.open(picture) as image:
        assert image.size == (64, 64)
        assert np.asarray(image).std() > 1


WEIGHTS = {
    "text_encoder": "text_model.encoder.layers.0.mlp.fc1.weight",
    "unet": "mid_block.resnets.0.conv1.weight",
    "vae_encoder": "encoder.conv_in.weight",
    "vae_decoder": "decoder.conv_in.weight",
}


@pytest.mark.parametrize("role", SPECS)
def test_an_altered_weight_is_noticed(
    bundle: Path, role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth more of one layer, in a file whose size and SHA-256 the manifest agrees with."""
    copied = shutil.copytree(bundle, tmp_path / "small")
    path = copied / f"{role}-fp16.onnx"
    model = onnx.load(path)
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == WEIGHTS[role]]
    weight = numpy_helper.to_array(tensor)
    assert weight.dtype == np.float16
    tensor.CopyFrom(numpy_helper.from_array(weight * np.float16(1.1), tensor.name))
    onnx.save(model, path)
    data = path.read_bytes()
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["graphs"][role]["fp16"] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (copied / MANIFEST).write_text(json.dumps(manifest))
    assert export.main(["check", str(copied)]) == 2
    said = capsys.readouterr().err
    assert f"the weights of {role} fp16 are not those the bundle was made with" in said
    assert said.count("\n") == 1
