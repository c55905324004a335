"""Proves that ``python -m runtime check`` replays the cases of a bundle, that it notices what is wrong, and that
nothing in a stranger's conformance file makes it crash or go on for ever."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import tiny_text_bundle as tiny
from safetensors.numpy import save_file

from runtime import load
from runtime.__main__ import main
from runtime.bundle import open_bundle
from runtime.check import replay
from runtime.conformance import read_conformance
from runtime.errors import BundleError, DiffusionError
from runtime.noise import PhiloxGenerator, mersenne_words, philox_words

Case = dict[str, Any]
Tensors = dict[str, np.ndarray]
PROMPT = "a red circle on a white green square"  # two words too long


def write_conformance(bundle: Path, change: Callable[[Case, Case, Tensors], object]) -> None:
    """A conformance file with one case of tokens and one picture, both right but for ``change``."""
    result = load(bundle, "cpu")(PROMPT, negative_prompt="blue", width=6, height=4, seed=5)
    tensors = {"ids": np.array(tiny.ids(PROMPT)), "sample": result.sample, "image": result.images}
    tokens: Case = {"kind": "tokens", "prompt": PROMPT, "tensor": "ids"}
    picture: Case = {
        "kind": "picture",
        "plan": "ddim-10",
        "generator": "philox",
        "seed": "5",
        "guidance_scale": 3.0,
        "prompt": PROMPT,
        "negative_prompt": "blue",
        "width": 6,
        "height": 4,
        "sample": "sample",
        "image": "image",
        "tolerance": 1e-5,
    }
    change(tokens, picture, tensors)
    save_file(tensors, bundle / "conformance.safetensors", {"cases": json.dumps([tokens, picture])})


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize(
    ("change", "failures"),
    [
        (lambda tokens, picture, tensors: None, 0),
        (lambda tokens, picture, tensors: tensors.update(ids=tensors["ids"][::-1].copy()), 1),
        (lambda tokens, picture, tensors: tensors.update(ids=tensors["ids"][:-1]), 1),
        (lambda tokens, picture, tensors: picture.update(seed="6"), 2),
        (lambda tokens, picture, tensors: picture.update(negative_prompt=""), 2),
        (lambda tokens, picture, tensors: picture.update(width=8), 2),
        (lambda tokens, picture, tensors: tensors.update(image=255 - tensors["image"]), 1),
    ],
)
def test_cases_of_a_text_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Case, Case, Tensors], object], failures: int
) -> None:
    bundle = tiny.write(tmp_path)
    write_conformance(bundle, change)
    assert main(["check", str(bundle), "--provider", "cpu"]) == (1 if failures else 0)
    captured = capsys.readouterr()
    assert captured.err == ""  # a prompt that is cut off on purpose is no news
    assert "pass  tokenizer.json: SHA-256" in captured.out
    assert captured.out.count("FAIL  ") == failures
    assert captured.out.endswith(f"tiny-text: {3 - failures} of 3 cases pass\n")


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize(
    "change",
    [
        lambda tokens, picture, tensors: tokens.pop("prompt"),
        lambda tokens, picture, tensors: tokens.update(prompt=7),
        lambda tokens, picture, tensors: picture.pop("width"),
        lambda tokens, picture, tensors: picture.update(width="wide"),
        lambda tokens, picture, tensors: picture.update(prompt=[]),
        lambda tokens, picture, tensors: picture.update(plan="none"),
        lambda tokens, picture, tensors: picture.update(guidance_scale=None, seed="x"),
    ],
)
def test_a_malformed_case_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Case, Case, Tensors], object]
) -> None:
    bundle = tiny.write(tmp_path)
    write_conformance(bundle, change)
    assert main(["check", str(bundle), "--provider", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_bundle_of_classes_has_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle.write(tmp_path)
    cases = json.dumps([{"kind": "tokens", "prompt": "", "tensor": "ids"}])
    save_file({"ids": np.zeros(1)}, bundle / "conformance.safetensors", {"cases": cases})
    assert main(["check", str(bundle), "--provider", "cpu"]) == 2
    assert "has tokens, but tiny takes no text" in capsys.readouterr().err
    assert open_bundle(bundle).name == "tiny"


def class_cases(folder: Path) -> tuple[list[Case], Tensors]:
    """One case of each kind that bundles of classes have, all right."""
    bundle = open_bundle(folder)
    result = load(folder, "cpu")([2, 0], seed=5, num_inference_steps=10, sampler="ddim", rng="torch")
    plan = bundle.plans["ddim-10"]
    inputs = {
        "sample": np.ones((1, 1, 8, 8), np.float32),
        "timestep": np.array([3], np.float32),
        "class_labels": np.array([1]),
    }
    tensors: Tensors = {
        **inputs,
        "out": tiny_bundle.network(inputs["sample"], 3, inputs["class_labels"]),
        "philox": philox_words(7, 3, 4),
        "torch": mersenne_words(7, 4),
        "noise": PhiloxGenerator(7).draw((2, 3)),
        "weights": plan.weights,
        "timesteps": plan.timesteps,
        "last": result.sample,
        "image": result.images,
    }
    cases: list[Case] = [
        {
            "kind": "graph",
            "graph": "unet",
            "variant": "fp32",
            "inputs": {name: name for name in inputs},
            "outputs": {"out_sample": "out"},
            "tolerance": 1e-6,
        },
        {"kind": "bits", "generator": "philox", "seed": "7", "draw": 3, "tensor": "philox"},
        {"kind": "bits", "generator": "torch", "seed": "7", "draw": 0, "tensor": "torch"},
        {"kind": "noise", "generator": "philox", "seed": "7", "draw": 0, "tensor": "noise", "tolerance": 1e-6},
        {
            "kind": "plan",
            "plan": "ddim-10",
            "tensors": {"weights": "weights", "timesteps": "timesteps"},
            "tolerance": 1e-12,
        },
        {
            "kind": "picture",
            "plan": "ddim-10",
            "generator": "torch",
            "seed": "5",
            "guidance_scale": bundle.defaults.guidance_scale,
            "class_labels": [2, 0],
            "sample": "last",
            "image": "image",
            "tolerance": 1e-5,
        },
    ]
    return cases, tensors


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in children for found in [(*path, key), *nodes(child, (*path, key))]]


def replaced(case: Case, path: tuple[Any, ...], value: object) -> Case:
    changed = copy.deepcopy(case)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def save(folder: Path, cases: list[Any], tensors: Tensors) -> None:
    save_file(tensors, folder / "conformance.safetensors", {"cases": json.dumps(cases)})


def test_nothing_in_a_case_is_beyond_its_reader(tmp_path: Path) -> None:
    """Whatever stands in whatever place of a case: it passes, fails, or is refused as errors are."""
    folder = tiny_bundle.write(tmp_path)
    bundle = open_bundle(folder)
    cases, tensors = class_cases(folder)
    save(folder, cases, tensors)
    assert all(outcome.passed for outcome in replay(bundle, "cpu"))
    absurd = (None, True, -1, 10**12, 10**400, 1e999, "out", [], [None], {}, {"x": 1})
    for case in cases:
        for path in nodes(case):
            for value in absurd:
                save(folder, [replaced(case, path, value)], tensors)
                with contextlib.suppress(DiffusionError):
                    replay(bundle, "cpu")


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"inputs": []}, "case 0: inputs must be dict, not list"),
        (0, {"inputs": {"x": "out"}}, "case 0: inputs has x; there are sample, timestep, class_labels"),
        (0, {"tolerance": 10**400}, "case 0: tolerance is 1000"),
        (1, {"seed": str(2**64)}, "seed must be the digits of a whole number from 0 to 2**64 - 1"),
        (1, {"tensor": "missing"}, "names the tensor 'missing', which the file does not have"),
        (2, {"draw": 1}, "draw is 1; it must be a whole number from 0 to 0"),
        (3, {"draw": 10**12}, "draw is 1000000000000; it must be a whole number from 0 to 1000"),
        (4, {"tensors": {"__class__": "weights"}}, "tensors has __class__; there are signal_scales"),
        (5, {"more": 1}, "has unknown keys: more"),
        (5, {"kind": "dance"}, "kind is 'dance'; it must be one of graph, bits"),
    ],
)
def test_what_is_wrong_with_a_case_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, change: Case, message: str
) -> None:
    folder = tiny_bundle.write(tmp_path)
    cases, tensors = class_cases(folder)
    save(folder, [{**cases[number], **change}], tensors)
    assert main(["check", str(folder), "--provider", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def expected_values(case: Case) -> list[tuple[str, float]]:
    """The tensors that a case expects, and ten times what it tolerates; what is compared exactly moves by one."""
    if case["kind"] == "picture":
        return [(case["sample"], 10 * case["tolerance"]), (case["image"], 10)]
    names = case.get("outputs") or case.get("tensors") or {"": case["tensor"]}
    return [(name, 10 * case["tolerance"] if "tolerance" in case else 1) for name in names.values()]


@pytest.mark.slow
def test_no_expected_value_can_move_by_ten_times_its_tolerance_unnoticed(tmp_path: Path) -> None:
    """The JavaScript host's ``check.test.mjs`` proves the same of that host."""
    folder = tmp_path / "mnist-paper"
    shutil.copytree(Path(__file__).parents[1] / "models_onnx" / "mnist-paper", folder)
    bundle = open_bundle(folder)
    cases, tensors = read_conformance(bundle)
    looked = 0
    for case in cases:
        for name, amount in expected_values(case):
            for index in {0, tensors[name].size // 3, tensors[name].size - 1}:
                moved = tensors[name].copy()
                value = moved.reshape(-1)[index]
                moved.reshape(-1)[index] = value - amount if value > 100 else value + amount  # bytes end at 255
                save(folder, [case], {**tensors, name: moved})
                failed = [outcome for outcome in replay(bundle, "cpu") if not outcome.passed]
                assert len(failed) == 1, f"{case['kind']} {name}[{index}]"
                looked += 1
    assert looked > 20


def test_a_folder_of_others_has_nothing_to_replay(tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle.write(tmp_path))
    (bundle.folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"was exported by others and has no conformance\.safetensors to replay"):
        read_conformance(bundle)
