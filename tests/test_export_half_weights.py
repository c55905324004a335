"""Proves of ``--half-weights`` that the file holds the weights in float16, that engines compute with them exactly what
they compute with the same numbers in float32, and that rounding is measured, bounded and refused where it overflows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import text_samples
import torch
from random_weights import SMALLEST, random_state

from export import __main__ as export
from export.errors import ExportError
from export.half_weights import round_weights, store_half
from export.parity import load_graph, measure
from export.sd15 import export_sd15
from export.sd15_graphs import SPECS, modules
from export.trace import trace
from runtime import __main__ as runtime
from training.stable_diffusion.checkpoint.networks import Networks


def spec_of(role: str):
    networks = Networks(SMALLEST)
    networks.load_state_dict(random_state(SMALLEST))
    return SPECS[role](modules(networks.text_encoder, networks.unet, networks.vae)[role], SMALLEST)


@pytest.mark.slow  # the exporter takes seconds, however small the network
@pytest.mark.parametrize("external_data_above", [2**26, 100])
def test_the_graph_computes_what_it_computed_with_float32_in_the_file(tmp_path: Path, external_data_above: int) -> None:
    spec = spec_of("vae_decoder")
    loss = round_weights(spec)
    assert 60 < loss.psnr_db < 90
    before = trace(spec, tmp_path / "graph.onnx", external_data_above)
    inputs = {name: x.numpy() for name, x in spec.draw(spec.example_sizes, torch.Generator().manual_seed(1)).items()}
    expected = load_graph(before.path)(inputs)

    after = store_half(before, external_data_above)
    assert (after.external_data is None) == (external_data_above > 100)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in after.files}
    onnx.checker.check_model(onnx.load(after.path), full_check=True)
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(after.path).graph.initializer}
    assert {stored[str(place["name"])] for place in after.initializers.values()} == {onnx.TensorProto.FLOAT16}
    answers = load_graph(after.path)(inputs)
    for name, answer in expected.items():
        np.testing.assert_array_equal(answers[name], answer)
    assert measure(spec, after.path).psnr_db > 110


def test_a_weight_beyond_float16_is_refused() -> None:
    spec = spec_of("vae_decoder")
    spec.module.state_dict()["decoder.conv_in.weight"][0, 0, 0, 0] = 7e4
    with pytest.raises(ExportError, match=r"decoder.conv_in.weight is beyond the range of float16; leave out --half-"):
        round_weights(spec)


def test_weights_that_rounding_ruins_are_refused() -> None:
    spec = spec_of("vae_decoder")
    state = spec.module.state_dict()  # one layer's numbers vanish and the next one makes up for it
    state["decoder.conv_norm_out.weight"].mul_(1e-8)
    state["decoder.conv_norm_out.bias"].mul_(1e-8)
    state["decoder.conv_out.weight"].mul_(6e4)
    with pytest.raises(ExportError, match=r"^vae_decoder differs in fp16 from PyTorch by "):
        round_weights(spec)


@pytest.mark.slow  # exports
def test_a_bundle_passes_both_checks_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = text_samples.write_checkpoint(tmp_path / "model.safetensors")
    tokenizer = text_samples.write_tokenizer(tmp_path / "tokenizer.json")
    lines: list[str] = []
    export_sd15(
        checkpoint,
        tmp_path / "small",
        half_weights=True,
        config=text_samples.CONFIG,
        tokenizer=tokenizer,
        report=lines.append,
    )
    assert sum("rounding the weights to fp16" in line for line in lines) == len(SPECS)
    manifest = json.loads((tmp_path / "small" / "manifest.json").read_text())
    assert manifest["provenance"]["training"]["half_weights"] is True
    assert {role: list(variants) for role, variants in manifest["graphs"].items()} == {role: ["fp32"] for role in SPECS}
    assert export.main(["check", str(tmp_path / "small")]) == 0
    assert runtime.main(["check", str(tmp_path / "small"), "--provider", "cpu"]) == 0
    picture = tmp_path / "ab.png"
    assert (
        runtime.main(["ab", "--model", str(tmp_path / "small"), "--steps", "2", "--size", "64x64", "-o", str(picture)])
        == 0
    )
    capsys.readouterr()
    assert (
        export.main(["sd15", str(checkpoint), "--out", str(tmp_path / "b"), "--precision=fp16", "--half-weights"]) == 2
    )
    assert capsys.readouterr().err == "error: weights are float16 in fp16 anyway; leave out --half-weights\n"
    assert not (tmp_path / "b").exists()
