"""Proves of a small model that its bundle is what the contract says: the same bytes from the same checkpoint, weights
where the manifest places them, attention that engines fuse, parity at every promised size, conformance that the runtime
passes and ``export check`` repeats; and that an export that fails or is broken off leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import text_samples
import torch
from checkpoint_files import write_folder
from export_samples import ROOT, run_export
from onnx import numpy_helper
from onnxruntime.transformers.optimizer import optimize_model
from random_weights import random_state

from export.__main__ import main
from export.restore import torch_module
from export.sd15_graphs import modules
from export.sd15_source import stated_by
from export.staging import replacing
from runtime.bundle import CONFORMANCE, MANIFEST, TextConditioning, open_bundle
from runtime.check import read_conformance, replay
from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.pocket.config import POCKET

pytestmark = pytest.mark.slow  # an export traces four networks, which takes half a minute

ROLES = ("text_encoder", "unet", "vae_encoder", "vae_decoder")


def folder_checkpoint(folder: Path) -> Path:
    """The model of ``text_samples`` as a folder in diffusers' layout."""
    write_folder(folder, text_samples.CONFIG, random_state(text_samples.CONFIG))
    (folder / "tokenizer").mkdir()
    text_samples.write_tokenizer(folder / "tokenizer" / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def bundle() -> Path:
    return text_samples.sample_bundle()


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((bundle / MANIFEST).read_text())
    return value


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to change."""
    return shutil.copytree(bundle, tmp_path / "pocket")


# --- the files ------------------------------------------------------------------------------------------------------


def test_the_same_checkpoint_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(bundle.parent / name, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345"}
    command = [sys.executable, text_samples.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # the exporter's own remarks are kept from the terminal
    names = sorted(path.name for path in bundle.iterdir())
    assert names == sorted([MANIFEST, CONFORMANCE, "tokenizer.json", *(f"{role}-fp32.onnx" for role in ROLES)])
    assert names == sorted(path.name for path in (tmp_path / "pocket").iterdir())
    for name in names:
        assert (bundle / name).read_bytes() == (tmp_path / "pocket" / name).read_bytes(), name


def test_nothing_of_the_machine_travels(bundle: Path) -> None:
    root, home, packages = Path(__file__).parents[1], Path.home(), Path(torch.__file__).parents[1]
    telltale = [*map(str, (root, home, packages, bundle.parent)), "stack_trace", "Traceback", 'File "']
    for file in bundle.iterdir():
        data = file.read_bytes()
        assert [word for word in telltale if word.encode() in data] == [], file.name


# --- the graphs -----------------------------------------------------------------------------------------------------


def originals(bundle: Path) -> dict[str, torch.nn.Module]:
    model = load_checkpoint(bundle.parent / "model.safetensors", config=text_samples.CONFIG)
    return modules(model.text_encoder, model.unet, model.vae)


@pytest.mark.parametrize("role", ROLES)
def test_every_weight_is_there_once_and_where_the_manifest_places_it(
    bundle: Path, manifest: dict[str, Any], role: str
) -> None:
    graph = onnx.load(bundle / f"{role}-fp32.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = originals(bundle)[role].state_dict()
    placed = manifest["graphs"][role]["fp32"]["initializers"]
    assert placed.keys() == weights.keys()
    for name, place in placed.items():
        assert place["name"] == name
        expected = weights[name].T if place["transposed"] else weights[name]
        np.testing.assert_array_equal(stored[name], expected.numpy(), err_msg=name)
    rest = sum(array.nbytes for name, array in stored.items() if name not in weights)
    assert rest < 4000  # constants of shapes and frequencies


@pytest.mark.parametrize("role", ROLES)
def test_graphs_are_portable(bundle: Path, role: str) -> None:
    model = onnx.load(bundle / f"{role}-fp32.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert Counter(node.op_type for node in model.graph.node)["CastLike"] == 0


def test_attention_is_of_the_shape_that_engines_fuse(bundle: Path) -> None:
    before = Counter(node.op_type for node in onnx.load(bundle / "unet-fp32.onnx").graph.node)
    fused = optimize_model(str(bundle / "unet-fp32.onnx"), model_type="unet", opt_level=0, verbose=False)
    after = Counter(node.op_type for node in fused.model.graph.node)
    transformers = sum(
        type(module).__name__ == "BasicTransformerBlock" for module in originals(bundle)["unet"].modules()
    )
    assert before["Softmax"] == 2 * transformers  # to itself and to the text
    assert after["MultiHeadAttention"] == 2 * transformers
    assert after["Softmax"] == 0


def test_modules_come_back_bit_for_bit(bundle: Path) -> None:
    for role, original in originals(bundle).items():
        restored = torch_module(bundle, role)
        assert not restored.training
        theirs = restored.state_dict()
        for name, tensor in original.state_dict().items():
            assert torch.equal(theirs[name], tensor), name


# --- and back ---------------------------------------------------------------------------------------------------------


def test_a_bundle_becomes_its_checkpoint_again(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "again" / "model.safetensors"
    assert main(["checkpoint", str(bundle), "--out", str(out)]) == 0
    again = load_checkpoint(out, config=text_samples.CONFIG)
    for role, module in modules(again.text_encoder, again.unet, again.vae).items():
        theirs = originals(bundle)[role].state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in module.state_dict().items()), role
    first = out.read_bytes()
    out.unlink()
    assert main(["checkpoint", str(bundle), "--out", str(out)]) == 0
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == ["model.safetensors"]


def test_the_pocket_model_says_in_its_checkpoint_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["checkpoint", str(ROOT / "models_onnx" / "pocket"), "--out", str(out)]) == 0
    config, words = stated_by(out)
    conditioning = open_bundle(ROOT / "models_onnx" / "pocket").conditioning
    assert isinstance(conditioning, TextConditioning)
    assert (config, words) == (POCKET, conditioning.known_words)


@pytest.mark.parametrize(
    ("bundle_name", "out", "message"),
    [
        ("pocket", "there.safetensors", "there.safetensors is there already; choose another --out"),
        ("pocket", "model.ckpt", "model.ckpt does not end in .safetensors"),
        ("mnist-paper", "new.safetensors", "is of the family class-conditional-ddpm; checkpoints are written of"),
        ("none", "new.safetensors", "none"),
    ],
)
def test_what_becomes_no_checkpoint_is_one_line(
    bundle_name: str, out: str, message: str, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"somebody's")
    before = sorted(tmp_path.iterdir())
    said = refusal(main, "checkpoint", ROOT / "models_onnx" / bundle_name, "--out", tmp_path / out)
    assert message in said
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.safetensors").read_bytes() == b"somebody's"


def test_a_full_disk_leaves_no_checkpoint(bundle: Path, small_disk: Path, refusal: Callable[..., str]) -> None:
    assert "cannot be written" in refusal(main, "checkpoint", bundle, "--out", small_disk / "model.safetensors")
    assert list(small_disk.glob("*.safetensors*")) == []


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_parity_covers_what_is_promised(manifest: dict[str, Any]) -> None:
    parity = {role: manifest["graphs"][role]["fp32"]["parity"] for role in ROLES}
    for role, tolerance in (("text_encoder", 1e-5), ("unet", 1e-5), ("vae_encoder", 3e-5), ("vae_decoder", 3e-5)):
        bound = tolerance * parity[role]["max_abs_reference"] + tolerance
        assert parity[role]["tolerance"] == pytest.approx(bound, rel=1e-12)
        assert 0 < parity[role]["max_abs_diff"] <= bound
        assert parity[role]["accepted"] is None
        assert parity[role]["batch_sizes"] == [sizes["batch"] for sizes in parity[role]["sizes"]]
    sides = {(64, 64), (48, 80), (65, 63)}
    assert sides == {(sizes["h"], sizes["w"]) for sizes in parity["unet"]["sizes"]}
    assert sides < {(sizes["h"], sizes["w"]) for sizes in parity["vae_decoder"]["sizes"]}
    factor = text_samples.CONFIG.vae.factor
    assert sides < {(sizes["height"] / factor, sizes["width"] / factor) for sizes in parity["vae_encoder"]["sizes"]}
    assert {sizes["length"] for sizes in parity["unet"]["sizes"]} == {77, 231}
    assert {sizes["clip_skip"] for sizes in parity["text_encoder"]["sizes"]} >= {0, 1}
    for role in ROLES:
        assert {1, 2} <= set(parity[role]["batch_sizes"])


def test_the_manifest_is_the_models(bundle: Path) -> None:
    opened = open_bundle(bundle)
    model = load_checkpoint(bundle.parent / "model.safetensors", config=text_samples.CONFIG)
    np.testing.assert_array_equal(opened.noise_schedule.alphas_cumprod, model.config.scheduler.alphas_cumprod.numpy())
    assert opened.noise_schedule.final_alpha_cumprod == model.config.scheduler.alphas_cumprod[0]
    assert (opened.noise_schedule.timestep_spacing, opened.noise_schedule.steps_offset) == ("leading", 1)
    assert opened.latents is not None
    assert (opened.latents.channels, opened.latents.factor, opened.latents.scaling_factor) == (4, 2, 0.18215)
    assert opened.unet_input == (("sample", 4),)
    assert (opened.defaults.sampler, opened.defaults.num_inference_steps) == ("dpmpp_2m_karras", 20)
    counts = (4, 6, 8, 10, 15, 20, 30, 50)
    assert set(opened.plans) == {f"{name}-{n}" for name in ("dpmpp_2m_karras", "ddim", "pndm") for n in counts}
    assert opened.provenance["licence"] == "none"


# --- conformance and check ------------------------------------------------------------------------------------------


def test_the_runtime_passes_the_conformance_file(bundle: Path) -> None:
    opened = open_bundle(bundle)
    cases, _ = read_conformance(opened)
    kinds = Counter(case["kind"] for case in cases)
    assert kinds.keys() == {"graph", "bits", "noise", "plan", "tokens", "picture"}
    assert (kinds["graph"], kinds["picture"]) == (4, 1)
    assert [outcome for outcome in replay(opened, "cpu") if not outcome.passed] == []


def test_check_passes_without_the_checkpoint(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(copied)]) == 0
    assert capsys.readouterr().out.count("SHA-256 and weights as shipped") == 4


def set_offset(value: dict[str, Any]) -> None:
    value["noise_schedule"]["steps_offset"] = 0


def set_vae_width(value: dict[str, Any]) -> None:
    value["provenance"]["training"]["config"]["vae"]["block_out_channels"] = [4, 16]


def set_layers(value: dict[str, Any]) -> None:
    value["provenance"]["training"]["config"]["text_encoder"]["num_hidden_layers"] = 10**9


def set_hash(value: dict[str, Any]) -> None:
    value["graphs"]["vae_decoder"]["fp32"]["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_offset, "steps_offset is 0; the training configuration says 1"),
        (set_vae_width, "does not hold the weights of its training configuration"),
        (set_layers, "holds no training configuration (num_hidden_layers is 1000000000; it must be from 1 to 100)"),
        (set_hash, "vae_decoder-fp32.onnx does not have the SHA-256 of the manifest"),
    ],
)
def test_check_notices_what_was_changed(
    copied: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    value = json.loads((copied / MANIFEST).read_text())
    change(value)
    (copied / MANIFEST).write_text(json.dumps(value))
    assert main(["check", str(copied)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_bundle_with_a_tokenizer_may_be_replaced(copied: Path) -> None:
    with replacing(copied) as folder:
        assert list(folder.iterdir()) == []
        (folder / MANIFEST).write_text("{}")
    assert [path.name for path in copied.iterdir()] == [MANIFEST]


def test_a_full_disk_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    checkpoint = folder_checkpoint(tmp_path / "checkpoint")
    target = small_disk / "small"
    target.mkdir()
    (small_disk / "ballast").write_bytes(bytes(250_000))  # so that the first graph has no room
    done = run_export("sd15", checkpoint, "--out", target)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{target} cannot be written" in done.stderr
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "small"]
    assert list(target.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = folder_checkpoint(tmp_path / "checkpoint")
    models = tmp_path / "models"
    command = [sys.executable, "-m", "export", "sd15", str(checkpoint), "--out", str(models / "small")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (models / ".small.exporting" / "text_encoder-fp32.onnx").exists():
        assert process.poll() is None, "it ended before the moment came"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
