"""Proves that what a session runs is what was checked: hashes, sizes, and weights in files that the manifest names."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_bundle
from onnx import helper, numpy_helper

import runtime.session
from runtime.bundle import Bundle, File, GraphVariant, TensorSpec, open_bundle
from runtime.errors import BundleError
from runtime.session import Session
from runtime.verified import CACHE_FILE, CACHE_VARIABLE, SETTLED_NS

WEIGHTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
GRAPH, DATA = "product.onnx", "product.onnx.data"
Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / CACHE_FILE


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose U-Net is y = x · WEIGHTS, with the weights in a file of their own."""
    folder = tiny_bundle.write(tmp_path)
    values = [
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])]
        for name, size in (("x", 4), ("y", 3))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", *values, [numpy_helper.from_array(WEIGHTS, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / GRAPH, save_as_external_data=True, location=DATA, size_threshold=0)
    time.sleep(2 * SETTLED_NS / 10**9)
    return open_bundle(folder)


def described(folder: Path, name: str) -> File:
    data = (folder / name).read_bytes()
    return File(name, len(data), hashlib.sha256(data).hexdigest())


def variant(bundle: Bundle) -> GraphVariant:
    """The manifest's entry for the graph as it lies in the folder now."""
    return dataclasses.replace(
        bundle.graph("unet"),
        file=described(bundle.folder, GRAPH),
        external_data=(described(bundle.folder, DATA),),
        inputs=(TensorSpec("x", "float32", ("n", 4)),),
        outputs=(TensorSpec("y", "float32", ("n", 3)),),
    )


def in_bytes_and_by_path(monkeypatch: pytest.MonkeyPatch, by_path: bool) -> None:
    if by_path:
        monkeypatch.setattr(runtime.session, "MAX_MODEL_BYTES", 0)


@pytest.mark.parametrize("by_path", [False, True])
def test_weights_in_another_file_are_used(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, by_path: bool) -> None:
    in_bytes_and_by_path(monkeypatch, by_path)
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    y = Session(bundle, variant(bundle)).run(x=x)["y"]
    np.testing.assert_allclose(y, x @ WEIGHTS, rtol=0, atol=1e-6)


def test_the_working_folder_does_not_matter(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.folder.parent)
    relative = dataclasses.replace(bundle, folder=Path(bundle.folder.name))
    assert Session(relative, variant(bundle)).run(x=np.ones((1, 4), np.float32))["y"].shape == (1, 3)


def relocate(location: str) -> Change:
    def change(folder: Path) -> None:
        model = onnx.load(folder / GRAPH, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        (folder / GRAPH).write_bytes(model.SerializeToString())

    return change


def leave_the_folder(folder: Path) -> None:
    (folder.parent / DATA).write_bytes((folder / DATA).read_bytes())
    relocate(f"../{DATA}")(folder)


def make_hard_to_see(folder: Path) -> None:
    """The place is not in the first initializer but in an attribute of a node of a branch."""
    tensor = onnx.load(folder / GRAPH, load_external_data=False).graph.initializer[0]
    tensor.external_data[0].value = "../secret"
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "then", [], [])
    model = onnx.load(folder / GRAPH, load_external_data=False)
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    (folder / GRAPH).write_bytes(model.SerializeToString())


# Files that were changed before their manifest was written: only the walk over the graph sees what is wrong.
CHANGES: dict[str, tuple[Change, str]] = {
    "above": (leave_the_folder, "lies in '../product.onnx.data'; it may lie only in product.onnx.data"),
    "absolute": (relocate("/etc/passwd"), "lies in '/etc/passwd'; it may lie only in"),
    "another file of the folder": (relocate("manifest.json"), "lies in 'manifest.json'; it may lie only in"),
    "inside a branch": (make_hard_to_see, "lies in '../secret'; it may lie only in"),
    "cut off": (lambda folder: os.truncate(folder / DATA, 40), "at bytes 0 to 48 of product.onnx.data, which has 40"),
}


@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_weights_elsewhere_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, by_path: bool, name: str
) -> None:
    in_bytes_and_by_path(monkeypatch, by_path)
    change, message = CHANGES[name]
    change(bundle.folder)
    with pytest.raises(BundleError) as error:
        Session(bundle, variant(bundle))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def linked(folder: Path) -> None:
    (folder / DATA).rename(folder.parent / "elsewhere")
    (folder / DATA).symlink_to(folder.parent / "elsewhere")


def flipped(name: str) -> Change:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return change


# Files that were changed after their manifest was written.
ALTERED: dict[str, tuple[Change, str]] = {
    "missing": (lambda folder: (folder / DATA).unlink(), "product.onnx.data is not there"),
    "cut off": (lambda folder: os.truncate(folder / DATA, 40), "has 40 bytes where the manifest says 48"),
    "a link": (linked, "product.onnx.data is a symbolic link"),
    "one bit of the weights": (flipped(DATA), "product.onnx.data does not have the SHA-256 of the manifest"),
    "one bit of the graph": (flipped(GRAPH), "product.onnx does not have the SHA-256 of the manifest"),
}


@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize("name", ALTERED)
def test_altered_files_are_refused_also_after_they_were_good(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, by_path: bool, name: str, cache: Path
) -> None:
    in_bytes_and_by_path(monkeypatch, by_path)
    graph = variant(bundle)
    Session(bundle, graph)
    assert cache.exists()  # from here on the hash of the weights is remembered
    change, message = ALTERED[name]
    change(bundle.folder)
    with pytest.raises(BundleError) as error:
        Session(bundle, graph)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
