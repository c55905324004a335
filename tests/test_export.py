"""Proves that a bundle is what its contract says: the same bytes from the same checkpoint, every weight where the
manifest places it, nothing of the machine it was made on, parity recorded, and conformance that the runtime passes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_samples import CONFIG, network, run_export, sample_bundle
from onnx import numpy_helper

from runtime.bundle import CONFORMANCE, MANIFEST, open_bundle
from runtime.check import read_conformance, replay
from runtime.plan import compile_plan

pytestmark = pytest.mark.slow  # an export traces a network, which takes seconds

GRAPH = "unet-fp32.onnx"


@pytest.fixture(scope="module")
def bundle() -> Path:
    return sample_bundle()


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((bundle / MANIFEST).read_text())
    return value


@pytest.fixture(scope="module")
def graph(bundle: Path) -> onnx.ModelProto:
    return onnx.load(bundle / GRAPH)


# --- the bytes ------------------------------------------------------------------------------------------------------


def test_the_same_checkpoint_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = shutil.copy(bundle.parent / "model.safetensors", tmp_path / "elsewhere")
    done = run_export("ddpm", path, "--out", tmp_path / "digits", PYTHONHASHSEED="12345")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # the exporter's own remarks are kept from the terminal
    assert sorted(file.name for file in bundle.iterdir()) == sorted([MANIFEST, CONFORMANCE, GRAPH])
    for file in bundle.iterdir():
        assert file.read_bytes() == (tmp_path / "digits" / file.name).read_bytes(), file.name


def test_nothing_of_the_machine_travels(bundle: Path, graph: onnx.ModelProto) -> None:
    everything = [
        graph,
        graph.graph,
        *graph.graph.node,
        *graph.graph.input,
        *graph.graph.output,
        *graph.graph.initializer,
    ]
    assert [item for item in everything if item.doc_string or item.metadata_props] == []
    assert not graph.metadata_props
    assert not graph.functions
    root, home, packages = Path(__file__).parents[1], Path.home(), Path(torch.__file__).parents[1]
    telltale = [
        *map(str, (root, home, packages, bundle.parent)),
        "stack_trace",
        "Traceback",
        'File "',
    ]
    for file in bundle.iterdir():
        data = file.read_bytes()
        assert [word for word in telltale if word.encode() in data] == [], file.name


# --- the graph ------------------------------------------------------------------------------------------------------


def test_every_weight_is_where_the_manifest_places_it(manifest: dict[str, Any], graph: onnx.ModelProto) -> None:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    weights = {name: tensor.numpy() for name, tensor in network().state_dict().items() if tensor.is_floating_point()}
    placed = manifest["graphs"]["unet"]["fp32"]["initializers"]
    assert placed == {name: {"name": name, "transposed": False} for name in weights}
    for name, weight in weights.items():
        np.testing.assert_array_equal(stored[name], weight, err_msg=name)

    anonymous = {name: array for name, array in stored.items() if name not in weights}
    values = {array.tobytes() for weight in weights.values() for array in (weight, weight.T)}
    assert [name for name, array in anonymous.items() if array.tobytes() in values and array.size > 8] == []
    assert sum(array.nbytes for array in anonymous.values()) < 2000  # constants of shapes and frequencies


def test_the_graph_is_portable_and_unfolded(graph: onnx.ModelProto) -> None:
    operators = Counter(node.op_type for node in graph.graph.node)
    assert {node.domain for node in graph.graph.node} == {""}
    assert (
        operators["BatchNormalization"] == 14
    )  # folded by ONNX Runtime at load, where the weights may still be merged
    assert operators["CastLike"] == 0  # ONNX Runtime has no kernel to fold it with
    onnx.checker.check_model(graph, full_check=True)


def test_onnx_runtime_loads_it_without_a_word_and_folds_it(bundle: Path, tmp_path: Path) -> None:
    program = (
        "import sys, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED\n"
        "options.optimized_model_filepath = sys.argv[2]\n"
        "ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
    )
    optimised = tmp_path / "optimised.onnx"
    command = [sys.executable, "-c", program, str(bundle / GRAPH), str(optimised)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""  # at its default log level
    operators = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert operators["BatchNormalization"] == 0
    assert operators["Conv"] == 16


def test_inputs_and_outputs_are_those_of_the_contract(manifest: dict[str, Any], graph: onnx.ModelProto) -> None:
    entry = manifest["graphs"]["unet"]["fp32"]
    image = ["batch", 1, 28, 28]
    assert entry["inputs"] == [
        {"name": "sample", "dtype": "float32", "shape": image},
        {"name": "timestep", "dtype": "float32", "shape": ["batch"]},
        {"name": "class_labels", "dtype": "int64", "shape": ["batch"]},
    ]
    assert entry["outputs"] == [{"name": "out_sample", "dtype": "float32", "shape": image}]
    assert (entry["opset"], entry["providers"], entry["external_data"]) == (20, ["any"], [])
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_the_manifest_tells_where_the_weights_came_from(bundle: Path, manifest: dict[str, Any]) -> None:
    checkpoint = bundle.parent / "model.safetensors"
    provenance = manifest["provenance"]
    assert provenance["source"] == "model.safetensors"
    assert provenance["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert provenance["licence"] == "Apache-2.0"
    training = provenance["training"]
    assert (training["dataset_sha256"], training["step"], training["total_steps"]) == ("0" * 64, 7, 9)
    assert training["config"] == json.loads(CONFIG.to_json())


def test_parity_is_measured_and_recorded(manifest: dict[str, Any]) -> None:
    parity = manifest["graphs"]["unet"]["fp32"]["parity"]
    assert parity["batch_sizes"] == [1, 2, 7]
    assert 0 < parity["max_abs_diff"] <= parity["tolerance"]
    assert parity["tolerance"] == pytest.approx(1e-5 * parity["max_abs_reference"] + 1e-5, rel=1e-12)
    assert parity["psnr_db"] > 100
    assert parity["accepted"] is None


def test_the_schedule_and_the_plans_are_those_of_the_model(bundle: Path) -> None:
    opened = open_bundle(bundle)
    np.testing.assert_array_equal(opened.noise_schedule.alphas_cumprod, CONFIG.schedule.alphas_cumprod.numpy())
    assert list(opened.plans) == [f"ddim-{count}" for count in (4, 6, 8, 10, 15, 20, 30, 50)]
    for plan in opened.plans.values():
        mine = compile_plan(opened.noise_schedule, "ddim", plan.num_inference_steps, eta=0.0)
        assert json.dumps(mine.to_json()) == json.dumps(plan.to_json())
    assert (opened.defaults.num_inference_steps, opened.defaults.guidance_scale) == (50, 3.0)
    assert (opened.conditioning.null_class, opened.conditioning.names[9]) == (10, "9")


# --- conformance ----------------------------------------------------------------------------------------------------


def test_the_runtime_passes_the_conformance_file(bundle: Path) -> None:
    opened = open_bundle(bundle)
    cases, _ = read_conformance(opened)
    assert {case["kind"] for case in cases} == {"graph", "bits", "noise", "plan", "picture"}
    assert [outcome for outcome in replay(opened, "cpu") if not outcome.passed] == []
    assert (bundle / CONFORMANCE).stat().st_size < 200_000


def test_its_noise_is_what_torch_draws(bundle: Path) -> None:
    cases, tensors = read_conformance(open_bundle(bundle))
    noise = [case for case in cases if case["kind"] == "noise" and case["generator"] == "torch"]
    assert len(noise) == 4
    for case in noise:
        generator = torch.Generator().manual_seed(int(case["seed"]))
        expected = tensors[case["tensor"]]
        draws = [torch.randn(expected.shape, generator=generator) for _ in range(case["draw"] + 1)]
        np.testing.assert_allclose(expected, draws[-1].numpy(), rtol=0, atol=3e-6)
