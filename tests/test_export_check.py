"""Proves that a check notices what it should without the checkpoint: changed files, changed weights behind hashes that
agree, wrong entries; that the module in PyTorch comes back bit for bit; and that a loose bound is asked for and told.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_samples import ill_conditioned_network, network, sample_bundle, write_checkpoint
from onnx import numpy_helper

from export.__main__ import main
from export.restore import torch_module
from runtime.bundle import MANIFEST

pytestmark = pytest.mark.slow  # an export traces a network, which takes seconds

GRAPH = "unet-fp32.onnx"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A bundle to change."""
    return shutil.copytree(sample_bundle(), tmp_path / "digits")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle's manifest in place."""
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    (folder / MANIFEST).write_text(json.dumps(value))


def checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status of ``export check`` and what it says on standard error."""
    capsys.readouterr()
    return main(["check", str(folder)]), capsys.readouterr().err


def test_the_module_comes_back_bit_for_bit() -> None:
    restored = torch_module(sample_bundle())
    assert not restored.training
    theirs = restored.state_dict()
    for name, tensor in network().state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(theirs[name], tensor), name


def test_check_passes_without_the_checkpoint(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(copied)]) == 0
    assert "max |difference|" in capsys.readouterr().out


def test_check_notices_a_changed_byte(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((copied / GRAPH).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / GRAPH).write_bytes(data)
    status, message = checked(copied, capsys)
    assert status == 2
    assert "does not have the SHA-256 of the manifest" in message


def replace_weight(folder: Path, name: str, factor: float) -> None:
    """Change a weight and make the manifest agree, as somebody would who wants to pass their weights off as ours."""
    model = onnx.load(folder / GRAPH)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    onnx.save(model, folder / GRAPH)
    data = (folder / GRAPH).read_bytes()

    def change(value: dict[str, Any]) -> None:
        value["graphs"]["unet"]["fp32"] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    rewrite(folder, change)


def test_check_notices_changed_weights_though_the_hashes_agree(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_weight(copied, "conv_in.conv1.0.weight", 1.0)
    assert checked(copied, capsys) == (0, "")
    replace_weight(copied, "conv_in.conv1.0.weight", 1.05)
    status, message = checked(copied, capsys)
    assert status == 2
    assert "are not those the bundle was made with" in message


def shorten(tensor: onnx.TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-2]


def enlarge(tensor: onnx.TensorProto) -> None:
    tensor.dims[0] = 2**40


def make_strings(tensor: onnx.TensorProto) -> None:
    tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, onnx.TensorProto.STRING, [2], [b"a", b"b"]))


def make_float8(tensor: onnx.TensorProto) -> None:
    tensor.data_type = onnx.TensorProto.FLOAT8E4M3FN


def lie_behind_the_end(tensor: onnx.TensorProto) -> None:
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.data"), ("offset", str(2**30)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize("damage", [shorten, enlarge, make_strings, make_float8, lie_behind_the_end])
def test_a_malformed_weight_is_one_line_with_its_name(
    copied: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[onnx.TensorProto], None]
) -> None:
    model = onnx.load(copied / GRAPH)
    damage(next(tensor for tensor in model.graph.initializer if tensor.name == "conv_in.conv1.0.weight"))
    (copied / GRAPH).write_bytes(model.SerializeToString())
    (copied / "weights.data").write_bytes(bytes(1000))

    def described(name: str) -> dict[str, Any]:
        data = (copied / name).read_bytes()
        return {"file": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    rewrite(
        copied,
        lambda value: value["graphs"]["unet"]["fp32"].update(
            described(GRAPH), external_data=[described("weights.data")]
        ),
    )
    status, said = checked(copied, capsys)
    assert status == 2
    assert f"{GRAPH}: conv_in.conv1.0.weight " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: graph["initializers"].pop("conv_out.3.bias"), "conv_out.3.bias"),
        (lambda graph: graph["initializers"]["conv_out.3.bias"].update(name="other"), "holds no initializer other"),
        (lambda graph: graph["initializers"]["conv_out.3.weight"].update(name="conv_out.3.bias"), "conv_out.3.weight"),
        (lambda graph: graph["parity"].update(seed="seven"), "seed 'seven'"),
        (lambda graph: graph["parity"].update(seed=2**70), "has seed 1180591620717411303424"),
        (lambda graph: graph["parity"].pop("seed"), "parity of unet fp32 is malformed"),
    ],
)
def test_check_notices_a_wrong_entry(
    copied: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(copied, lambda value: change(value["graphs"]["unet"]["fp32"]))
    status, said = checked(copied, capsys)
    assert status == 2
    assert message in said
    assert said.count("\n") == 1


def set_alpha(value: dict[str, Any]) -> None:
    value["noise_schedule"]["alphas_cumprod"][7] += 1e-6


def set_plan_weight(value: dict[str, Any]) -> None:
    value["plans"]["ddim-10"]["weights"][3][0] += 1e-6


def set_sampler(value: dict[str, Any]) -> None:
    value["plans"]["ddim-10"]["sampler"] = "unheard-of"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_alpha, "alphas_cumprod are not those of the training configuration"),
        (set_plan_weight, "plan ddim-10 is not what its sampler and options give"),
        (set_sampler, "unheard-of"),
    ],
)
def test_check_notices_a_changed_table(
    copied: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(copied, change)
    status, said = checked(copied, capsys)
    assert status == 2
    assert message in said
    assert said.count("\n") == 1


def test_check_notices_another_training_configuration(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def widen(value: dict[str, Any]) -> None:
        value["provenance"]["training"]["config"]["model"]["features"] = 1024

    rewrite(copied, widen)
    status, message = checked(copied, capsys)
    assert status == 2
    assert "does not hold the weights of its training configuration" in message
    assert message.count("\n") == 1


def test_above_the_bound_nothing_is_written_unless_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "run" / "model.safetensors", ill_conditioned_network())
    target = tmp_path / "models" / "digits"
    assert main(["ddpm", str(path), "--out", str(target)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: unet differs from PyTorch by ")
    assert re.search(r"add --accept-parity \d\.\de[+-]\d\d\n$", message)
    assert message.count("\n") == 1
    assert not target.parent.exists()

    assert main(["ddpm", str(path), "--out", str(target), "--accept-parity", "1000"]) == 0
    parity = json.loads((target / MANIFEST).read_text())["graphs"]["unet"]["fp32"]["parity"]
    assert parity["accepted"] == 1000
    assert parity["max_abs_diff"] > parity["tolerance"]
    capsys.readouterr()
    assert main(["check", str(target)]) == 0
    assert "a bound of 1000 was accepted" in capsys.readouterr().out
