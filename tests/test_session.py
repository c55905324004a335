"""Proves that a session is what it was asked to be: its provider, and its graph's inputs and outputs."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle

from runtime.bundle import Bundle, open_bundle
from runtime.engine import import_engine, wheel_problem
from runtime.errors import BundleError, EngineError, RequestError
from runtime.session import PROBE, Session, choose_provider, try_cuda


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(tiny_bundle.write(tmp_path_factory.mktemp("models")))


def session_with(bundle: Bundle, **changes: Any) -> Session:
    return Session(bundle, dataclasses.replace(bundle.graph("unet"), **changes))


def test_the_probe_is_the_identity() -> None:
    session = import_engine().InferenceSession(PROBE, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.array([3.0, -1.0], np.float32)})
    assert y.tolist() == [3.0, -1.0]


def test_outputs_come_by_name(bundle: Bundle) -> None:
    session = session_with(bundle)
    sample = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    labels = np.array([0, 3])
    out = session.run(sample=sample, timestep=np.full(2, 4.5, np.float32), class_labels=labels)["out_sample"]
    np.testing.assert_allclose(out, tiny_bundle.network(sample, 4.5, labels), rtol=0, atol=1e-6)


def test_every_node_runs_on_the_cpu_and_is_counted(bundle: Bundle) -> None:
    session = session_with(bundle)
    assert session.placement == {"CPUExecutionProvider": 8}  # as many as ``tiny_bundle.graph`` has
    assert session.fallback() == ""
    session.provider = "cuda"  # what it would say had another provider been asked for
    assert session.fallback() == "8 of 8 nodes of unet.onnx run on the CPU"


SPECS = {
    "another name": lambda specs: [dataclasses.replace(specs[0], name="latents"), *specs[1:]],
    "another dtype": lambda specs: [dataclasses.replace(specs[0], dtype="float16"), *specs[1:]],
    "another rank": lambda specs: [dataclasses.replace(specs[0], shape=("batch", 1, 8)), *specs[1:]],
    "another size": lambda specs: [dataclasses.replace(specs[0], shape=("batch", 1, 8, 9)), *specs[1:]],
    "fixed for dynamic": lambda specs: [dataclasses.replace(specs[0], shape=(1, 1, 8, 8)), *specs[1:]],
    "dynamic for fixed": lambda specs: [dataclasses.replace(specs[0], shape=("batch", 1, "h", "w")), *specs[1:]],
    "one less": lambda specs: specs[1:],
}


@pytest.mark.parametrize("difference", SPECS)
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_graph_that_is_not_its_manifests_is_refused(bundle: Bundle, kind: str, difference: str) -> None:
    specs = list(getattr(bundle.graph("unet"), kind))
    with pytest.raises(BundleError, match=rf"has {kind} .* where the manifest says"):
        session_with(bundle, **{kind: tuple(SPECS[difference](specs))})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a graph at all", "is no ONNX file"),
        (b"\x08\x08", "is not a graph that this ONNX Runtime can load"),  # an IR version, and nothing else
        (b"\x12\x34\x00\x00ORTM", "is cut off"),  # another format, by its fifth to eighth byte
    ],
)
def test_a_file_that_is_no_graph_is_one_line(bundle: Bundle, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "unet.onnx").write_bytes(data)
    file = dataclasses.replace(bundle.graph("unet").file, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(BundleError, match=message) as error:
        Session(dataclasses.replace(bundle, folder=tmp_path), dataclasses.replace(bundle.graph("unet"), file=file))
    assert "\n" not in str(error.value)


def test_inputs_of_a_wrong_shape_are_one_line(bundle: Bundle) -> None:
    sample, timestep = np.zeros((2, 1, 8, 9), np.float32), np.zeros(2, np.float32)
    with pytest.raises(RequestError, match=r"unet\.onnx failed on") as error:
        session_with(bundle).run(sample=sample, timestep=timestep, class_labels=np.zeros(2, np.int64))
    assert "\n" not in str(error.value)


def test_providers_are_promises() -> None:
    assert choose_provider("cpu") == ("cpu", "provider cpu, as asked")
    with pytest.raises(RequestError, match="provider 'tpu' is unknown; choose auto, cpu, cuda"):
        choose_provider("tpu")


def test_cuda_where_there_is_none_says_why() -> None:
    problem = try_cuda()
    if problem is None:
        pytest.skip("CUDA works on this machine; tests marked cuda cover it")
    assert "pip install" in problem  # the cure
    assert choose_provider("auto")[0] == "cpu"
    with pytest.raises(EngineError, match="provider cuda cannot be used: ") as error:
        choose_provider("cuda")
    assert problem in str(error.value)


@pytest.mark.cuda
def test_cuda_really_runs_there(bundle: Bundle) -> None:
    if try_cuda() is not None:
        pytest.skip(f"needs an NVIDIA GPU: {try_cuda()}")
    session = Session(bundle, bundle.graph("unet"), "cuda")
    assert session.placement["CUDAExecutionProvider"] > 0
    sample, labels = np.ones((2, 1, 8, 8), np.float32), np.array([0, 3])
    out = session.run(sample=sample, timestep=np.full(2, 4.5, np.float32), class_labels=labels)["out_sample"]
    np.testing.assert_allclose(out, tiny_bundle.network(sample, 4.5, labels), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wheels", "message"),
    [
        ({}, "ONNX Runtime is not installed; choose one: pip install"),
        ({"onnxruntime": "1.30", "onnxruntime-gpu": "1.30"}, "are both installed and overwrite each other; run: pip"),
    ],
)
def test_wheels_that_cannot_work(wheels: dict[str, str], message: str) -> None:
    assert message in str(wheel_problem(wheels))


def test_one_wheel_is_right() -> None:
    assert wheel_problem({"onnxruntime-gpu": "1.30"}) is None
