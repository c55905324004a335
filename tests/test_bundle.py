"""Proves that the bundle reader refuses what it does not know, with one line, and that files stay in the folder."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_bundle

from runtime.bundle import find_bundle, open_bundle
from runtime.errors import BundleError
from runtime.manifest import read_manifest

Manifest = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle.write(tmp_path)


def rewrite(bundle: Path, change: Callable[[Manifest], object]) -> None:
    path = bundle / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def unet(value: Manifest) -> Manifest:
    graph: Manifest = value["graphs"]["unet"]["fp32"]
    return graph


def test_a_good_bundle_is_read_whole(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.name == "tiny"
    assert opened.conditioning.names == ("cat", "dog", "owl")
    assert opened.noise_schedule.num_train_timesteps == tiny_bundle.TRAIN_STEPS
    assert opened.graph("unet").inputs[1].shape == ("batch",)
    assert opened.read(opened.graph("unet").file) == tiny_bundle.graph()


CHANGES: list[tuple[Callable[[Manifest], object], str]] = [
    (lambda m: m.update(format_version=2), "has format_version 2; this program reads 1"),
    (lambda m: m.update(format_version=True), "format_version must be int, not bool"),
    (lambda m: m.pop("plans"), "lacks the key 'plans'"),
    (lambda m: m.update(colour="red"), "has unknown keys: colour"),
    (lambda m: m.update(name="../x"), "may hold letters, digits"),
    (lambda m: m.update(name=".."), "'..' may hold letters, digits, '.', '_' and '-' only, and begin with no '.'"),
    (lambda m: m.update(name=".x"), "begin with no"),
    (lambda m: m.update(family="gan"), "family is 'gan'; it must be one of"),
    (lambda m: unet(m).update(file="../unet.onnx"), "must be a plain name inside the bundle's folder"),
    (lambda m: unet(m).update(file="/etc/passwd"), "must be a plain name inside the bundle's folder"),
    (lambda m: unet(m).update(file=".."), "must be a plain name inside the bundle's folder"),
    (lambda m: unet(m).update(file="a\\b.onnx"), "must be a plain name inside the bundle's folder"),
    (lambda m: unet(m).update(file="missing.onnx"), "is not there"),
    (lambda m: unet(m).update(size=17), "where the manifest says 17"),
    (lambda m: unet(m).update(size="big"), "size must be int, not str"),
    (lambda m: unet(m).update(sha256="abc"), "must be 64 hexadecimal digits"),
    (lambda m: unet(m).update(extra=1), "graphs: unet.fp32 has unknown keys: extra"),
    (lambda m: unet(m)["inputs"][0].update(dtype="complex64"), "dtype is 'complex64'; it must be one of"),
    (lambda m: unet(m)["inputs"][0].update(shape=[1, -1]), "must hold positive numbers and names only"),
    (lambda m: unet(m).update(external_data=[{"file": "../w", "size": 1, "sha256": "0" * 64}]), "plain name"),
    (lambda m: m["noise_schedule"].update(alphas_cumprod=[0.5]), "alphas_cumprod must be 100 numbers"),
    (lambda m: m["noise_schedule"]["alphas_cumprod"].reverse(), "alphas_cumprod must decrease"),
    (lambda m: m["noise_schedule"].update(prediction_type="score"), "prediction_type is 'score'"),
    (
        lambda m: m.update(latents={"channels": 4, "factor": 8, "scaling_factor": 0.18}),
        "exactly one of pixels and latents must be null",
    ),
    (lambda m: m["conditioning"].update(kind="audio"), "kind 'audio' is not known to this version"),
    (lambda m: m["conditioning"].update(names=["a", "a", "b"]), "names must be 3 different strings"),
    (lambda m: m["plans"]["ddim-10"].update(timesteps=[]), "plans: the plan has no rows"),
    (lambda m: m["pixels"].update(height=0), "height is 0; it must be a whole number from 1"),
    (lambda m: m.update(pixels=[1, 8, 8]), "pixels must be dict or NoneType, not list"),
    (lambda m: m["pixels"].update(height=65536), "must have the inputs sample float32 (batch, 1, 65536, 8)"),
    (lambda m: m["pixels"].update(channels=2), "channels is 2; pictures are grey, with 1, or red-green-blue, with 3"),
    (lambda m: m["pixels"].update(channels=3), "unet_input has 1 channels of sample where the model has 3"),
    (lambda m: m["conditioning"].update(null_class=99), "null_class is 99; it must be num_classes"),
    (lambda m: unet(m)["inputs"].pop(), "graphs: unet.fp32 must have"),
    (lambda m: unet(m)["inputs"][0].update(name="x"), "graphs: unet.fp32 must have"),
    (lambda m: m["defaults"].update(guidance_scale=10**400), "guidance_scale is 1"),
    (lambda m: m["plans"]["ddim-10"].update(initial_scale=10**400), "initial_scale is 1"),
    (lambda m: m["plans"]["ddim-10"].update(clip_sample=-1), "plans: the plan's clip_sample is -1"),
    (lambda m: m["plans"]["ddim-10"].update(guidance_rescale=2), "plans: the plan's guidance_rescale is 2"),
    (lambda m: m.update(plans={}), "plans lacks 'ddim-10', which is the default sampler at its default steps"),
    (lambda m: m["defaults"].update(num_inference_steps=9), "plans lacks 'ddim-9'"),
    (lambda m: m["defaults"].update(sampler="pndm"), "plans lacks 'pndm-10'"),
    (lambda m: m["plans"].update({"ddim-9": m["plans"]["ddim-10"]}), "'ddim-9' must be SAMPLER-STEPS, and it has 10"),
    (lambda m: m["plans"].update({"10": m["plans"]["ddim-10"]}), "'10' must be SAMPLER-STEPS"),
    (lambda m: m["plans"].update({"a b-10": m["plans"]["ddim-10"]}), "'a b-10' must be SAMPLER-STEPS"),
    (lambda m: m["plans"]["ddim-10"].update(timesteps=[10**400] * 10), "timesteps must be finite"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_every_wrong_manifest_is_one_clear_line(
    bundle: Path, change: Callable[[Manifest], object], message: str
) -> None:
    rewrite(bundle, change)
    with pytest.raises(BundleError) as error:
        open_bundle(bundle)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node below a JSON value; of long lists of numbers the first only."""
    if isinstance(value, dict):
        return [p for key, child in value.items() for p in [(*path, key), *paths(child, (*path, key))]]
    if isinstance(value, list) and value:
        return [(*path, 0), *paths(value[0], (*path, 0))]
    return []


def test_no_node_of_the_manifest_can_be_something_absurd(tmp_path: Path) -> None:
    """Each node in turn becomes a nested list: an error, but where the format leaves a place free."""
    manifest = tiny_bundle.manifest(tiny_bundle.graph())
    free = {("provenance", "exporter"), ("noise_schedule", "betas"), ("graphs", "unet", "fp32", "parity")}
    for path in paths(manifest):
        value = copy.deepcopy(manifest)
        node: Any = value
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = [[]]
        is_free_inside = any(path[: len(prefix)] == prefix and len(path) > len(prefix) for prefix in free)
        is_plan_origin = path[:1] == ("plans",) and path[2:3] in {("sampler",), ("num_inference_steps",), ("options",)}
        if is_free_inside or is_plan_origin:
            continue
        with pytest.raises(BundleError):
            read_manifest(value, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\x00\xff"])
def test_what_is_not_a_json_object_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError) as error:
        open_bundle(bundle)
    assert "\n" not in str(error.value)


def test_an_altered_file_of_the_same_size_is_noticed(bundle: Path) -> None:
    path = bundle / "unet.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    opened = open_bundle(bundle)
    with pytest.raises(BundleError, match="does not have the SHA-256 of the manifest"):
        opened.read(opened.graph("unet").file)


@pytest.mark.parametrize("name", ["unet.onnx", "manifest.json"])
def test_a_symbolic_link_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    os.replace(bundle / name, tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is a symbolic link; the bundle needs it as a plain file"):
        open_bundle(bundle)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind everybody but root")
@pytest.mark.parametrize(("locked", "mode"), [(".", 0o000), (".", 0o400), ("manifest.json", 0o000)])
def test_what_may_not_be_read_is_one_line(bundle: Path, locked: str, mode: int) -> None:
    (bundle / locked).chmod(mode)
    try:
        with pytest.raises(BundleError, match=r"cannot be (read|looked into) \(Permission denied\)"):
            open_bundle(bundle)
    finally:
        (bundle / locked).chmod(0o755)


def test_a_folder_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "unet.onnx").unlink()
    (bundle / "unet.onnx").mkdir()
    with pytest.raises(BundleError, match=r"unet\.onnx is no file; the bundle needs it as a plain file"):
        open_bundle(bundle)


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / "manifest.json").open("ab") as stream:
        stream.truncate(10**9)  # sparse: takes no space
    with pytest.raises(BundleError, match="has 1000000000 bytes"):
        open_bundle(bundle)


def test_bundles_are_found_by_name(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("DIFFUSION_ANYWHERE_MODELS", str(bundle.parent))
    assert find_bundle("tiny") == bundle
    with pytest.raises(BundleError, match=r"there is no bundle 'tinny'; known here: .*tiny"):
        find_bundle("tinny")


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it holds no manifest\.json"):
        find_bundle(tmp_path)
