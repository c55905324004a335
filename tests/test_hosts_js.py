"""Proves that the JavaScript host is this package in another language: its own tests pass, its pictures are Python's
for the same seed, they carry what Python's carry, and Python draws them again from that; and that the numbers which
its tests compare with are this package's."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import js_vectors
import numpy as np
import onnx
import pytest
from PIL import Image
from text_samples import sample_bundle
from web_page import needed

from runtime import load
from runtime.__main__ import main
from runtime.image import METADATA_KEY, PARAMETERS_KEY
from runtime.parameters import parameters
from runtime.plan import Plan
from runtime.replay import OF_MACHINE
from runtime.samplers import KNOWN_AS
from runtime.version import __version__

ROOT = Path(__file__).parents[1]
JS = ROOT / "runtime" / "hosts" / "js"
CLI = JS / "diffuse-cli.mjs"
NODE = os.environ.get("NODE", "node")
TEST_FILES = sorted(JS.glob("test/*.test.mjs"))
CLASSES = ("mnist-paper", "fashion-mnist-paper")
SAME_DB = 50.0
PROMPT = "a (red:1.4) cat on [a mat], " + "very old, " * 12


@pytest.fixture
def node() -> str:
    """Node, where the host's packages are installed."""
    if not NODE:
        pytest.skip("NODE is empty: without Node")
    found = shutil.which(NODE) if (JS / "node_modules" / ".ready").exists() else None
    needed(found, "Node or the packages of runtime/hosts/js are not there; make test installs these")
    return NODE


def run(*words: str | Path, **environment: str) -> str:
    """Run a command that must succeed; what it says on standard output."""
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    assert first.shape == second.shape
    error = np.square(first.astype(np.float64) - second).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        array = np.asarray(picture)
    return array if array.ndim == 3 else array[..., None]


def text_bundles() -> list[Path]:
    return [sample_bundle(), ROOT / "models_onnx" / "pocket"]


def comparable(value: Any) -> Any:
    """JSON in which numbers compare within a float32's rounding, since processors differ in the last digit."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-6, abs=1e-6)
    if isinstance(value, dict):
        return {name: comparable(each) for name, each in value.items()}
    return [comparable(each) for each in value] if isinstance(value, list) else value


def test_the_numbers_that_its_tests_compare_with_are_this_packages() -> None:
    committed = json.loads(js_vectors.FILE.read_text("utf-8"))
    assert json.loads(js_vectors.text()) == comparable(committed), "run: python tests/js_vectors.py"


def test_it_has_this_packages_version() -> None:
    assert json.loads((JS / "package.json").read_text("utf-8"))["version"] == __version__


def test_it_calls_samplers_what_they_are_called_here() -> None:
    table = (JS / "recipe.mjs").read_text("utf-8").partition("const KNOWN_AS = {")[2].partition("};")[0]
    assert dict(re.findall(r'(\w+): "(.*)",', table)) == KNOWN_AS


@pytest.mark.slow
@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.name)
def test_its_own_tests_pass(node: str, file: Path) -> None:
    said = run(node, "--test", "--test-reporter=tap", file, DIFFUSION_ANYWHERE_TEXT_BUNDLE=str(sample_bundle()))
    assert "\n# skipped 0\n" in said
    assert "\n# pass 0\n" not in said


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_digits_and_garments_are_pythons(node: str, name: str, tmp_path: Path) -> None:
    bundle = ROOT / "models_onnx" / name
    run(node, CLI, "--model", bundle, "--label", "3", "--seed", "5", "--steps", "10", "-o", tmp_path / "js.png")
    expected = load(bundle, "cpu")(3, seed=5, num_inference_steps=10)
    assert psnr(pixels(tmp_path / "js.png"), expected.images[0]) >= SAME_DB
    check_carried(tmp_path / "js.png", expected.metadata_of(0))
    assert main(["replay", str(tmp_path / "js.png"), "--model", str(bundle)]) == 0
    run(node, CLI, "check", bundle)


@pytest.mark.slow
def test_a_sneaker_of_the_model_that_comes_along_is_pythons(node: str, tmp_path: Path) -> None:
    bundle, sentence = ROOT / "models_onnx" / "pocket", "a red sneaker on a white background"
    run(node, CLI, "--model", bundle, sentence, "--seed", "7", "-o", tmp_path / "js.png")
    expected = load(bundle, "cpu")(sentence, seed=7)
    assert psnr(pixels(tmp_path / "js.png"), expected.images[0]) >= SAME_DB
    assert main(["replay", str(tmp_path / "js.png"), "--model", str(bundle)]) == 0
    run(node, CLI, "check", bundle)


@pytest.mark.slow
def test_pictures_of_prompts_are_pythons(node: str, tmp_path: Path) -> None:
    for k, bundle in enumerate(text_bundles()):
        path = tmp_path / f"{k}.png"
        factor = json.loads((bundle / "manifest.json").read_text())["latents"]["factor"]
        size = {"width": 6 * factor, "height": 4 * factor}
        asked = ["--negative", "grey", "--seed", str(2**64 - 2), "--size", f"{size['width']}x{size['height']}"]
        run(node, CLI, "--model", bundle, PROMPT, *asked, "--guidance-scale", "5", "-o", path)
        expected = load(bundle, "cpu")(PROMPT, negative_prompt="grey", seed=2**64 - 2, guidance_scale=5, **size)
        assert psnr(pixels(path), expected.images[0]) >= SAME_DB
        check_carried(path, expected.metadata_of(0))
        assert main(["replay", str(path), "--model", str(bundle)]) == 0
        run(node, CLI, "check", bundle)


def check_carried(path: Path, expected: dict[str, Any]) -> None:
    """A picture carries what Python's carries, but for the machine."""
    with Image.open(path) as picture:
        texts = dict(picture.info)
    carried = json.loads(texts[METADATA_KEY])
    assert set(OF_MACHINE) <= carried.keys()
    assert carried | {name: expected[name] for name in OF_MACHINE} == expected
    assert texts.get(PARAMETERS_KEY) == parameters(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--sampler", "Euler a"],  # draws noise in its rows
        ["--sampler", "dpmpp_2m", "--sigma-spacing", "karras", "--guidance-interval", "0.5,5"],  # guides in some rows
        ["--sampler", "ddim", "--clip-sample", "1", "--guidance-rescale", "0.7"],  # what is not linear
        ["--sampler", "pndm"],  # looks back four outputs
    ],
    ids=lambda flags: flags[1],
)
@pytest.mark.parametrize("rng", ["philox", "torch"])
def test_plans_of_python_are_drawn_as_there(node: str, flags: list[str], rng: str, tmp_path: Path) -> None:
    bundle, plan, path = ROOT / "models_onnx" / "mnist-paper", tmp_path / "plan.json", tmp_path / "js.png"
    assert main(["plan", "--model", str(bundle), *flags, "--steps", "8", "--json", "-o", str(plan)]) == 0
    run(node, CLI, "--model", bundle, "--label", "8", "--seed", "5", "--rng", rng, "--plan", plan, "-o", path)
    given = Plan.from_json(json.loads(plan.read_text()))
    expected = load(bundle, "cpu")(8, seed=5, rng=rng, plan=given)
    assert psnr(pixels(path), expected.images[0]) >= SAME_DB
    check_carried(path, expected.metadata_of(0))
    assert main(["replay", str(path), "--model", str(bundle), "--plan", str(plan)]) == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize("missing", ["/no/node", "false"])
def test_make_says_what_is_missing_and_where_to_get_it(missing: str) -> None:
    target = "runtime/hosts/js/node_modules/.ready"
    done = subprocess.run(["make", "-B", target, f"NODE={missing}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Node 20 or later: apt-get install nodejs npm, or https://nodejs.org" in said


# Draws as the command line does, with weights read by the engine from their file, and handed to it.
BUFFERS = """
const [folder] = process.argv.slice(1);
const { load } = await import(process.env.HOST + "/diffuse.mjs");
const { folderFiles } = await import(process.env.HOST + "/node-files.mjs");
const { createRequire } = await import("node:module");
const ort = createRequire(process.env.HOST + "/package.json")("onnxruntime-node");
const { path, ...buffers } = folderFiles(folder);
for (const files of [folderFiles(folder), buffers]) {
  const pipeline = await load(files, ort, { threads: 1 });
  const { images } = await pipeline({ classLabels: 3, seed: 5, numInferenceSteps: 4 });
  console.log(Buffer.from(images[0].data).toString("hex"));
}
"""


def with_external_data(folder: Path, target: Path) -> Path:
    """A copy of a bundle of classes whose weights are in a file of their own."""
    shutil.copytree(folder, target)
    manifest = json.loads((target / "manifest.json").read_text())
    graph = manifest["graphs"]["unet"]["fp32"]
    model = onnx.load(target / graph["file"])
    path = target / graph["file"]
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    graph["external_data"] = [{"file": "weights.bin"}]
    for entry in (graph, *graph["external_data"]):
        data = (target / entry["file"]).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


@pytest.mark.slow
def test_weights_in_a_file_of_their_own_are_read_by_path_and_from_memory(node: str, tmp_path: Path) -> None:
    bundle = with_external_data(ROOT / "models_onnx" / "mnist-paper", tmp_path / "apart")
    arguments = ["--input-type=module", "-e", BUFFERS, bundle]
    drawn = run(node, *arguments, HOST=str(JS), ORT_DISABLE_TELEMETRY="1").split()
    expected = load(bundle, "cpu")(3, seed=5, num_inference_steps=4).images[0]
    assert len(drawn) == 2
    for each in drawn:
        assert psnr(np.frombuffer(bytes.fromhex(each), np.uint8).reshape(expected.shape), expected) >= SAME_DB
    weights = bytearray((bundle / "weights.bin").read_bytes())
    weights[0] ^= 1
    (bundle / "weights.bin").write_bytes(weights)
    refused = subprocess.run([node, CLI, "check", bundle], capture_output=True, text=True)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: .*weights\.bin does not have the SHA-256 of the manifest; .*\n", refused.stderr)


SAMPLE = """
const [folder, plan, target] = process.argv.slice(1);
const { load, readPlan } = await import(process.env.HOST + "/diffuse.mjs");
const { folderFiles } = await import(process.env.HOST + "/node-files.mjs");
const { createRequire } = await import("node:module");
const { readFile, writeFile } = await import("node:fs/promises");
const installed = createRequire(process.env.HOST + "/package.json");
const ort = installed("onnxruntime-node");
const { Tokenizer } = installed("@huggingface/tokenizers");
const pipeline = await load(folderFiles(folder), ort, { tokenizer: Tokenizer });
const settings = { seed: 7, width: 256, height: 256, guidanceScale: 7.5, plan: await readPlan(await readFile(plan)) };
const { images, sample } = await pipeline({ prompt: "a photo of a cat", negativePrompt: "blurry", ...settings });
await writeFile(target, Buffer.concat([Buffer.from(sample.data.buffer), images[0].data]));
"""


@pytest.mark.full
def test_a_guided_step_at_full_size_is_pythons(node: str, tmp_path: Path) -> None:
    """Stable Diffusion 1.5, its U-Net's weights in a file of their own, 256 x 256."""
    from full_size_bundle import exported_bundle

    bundle, plan, target = exported_bundle(), tmp_path / "plan.json", tmp_path / "sample"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["graphs"]["unet"]["fp32"]["external_data"]
    assert main(["plan", "--model", str(bundle), "--sampler", "ddim", "--steps", "1", "--json", "-o", str(plan)]) == 0
    arguments = ["--input-type=module", "-e", SAMPLE, bundle, plan, target]
    run(node, *arguments, HOST=str(JS), ORT_DISABLE_TELEMETRY="1")
    made = target.read_bytes()
    latents = np.frombuffer(made[: 4 * 4 * 32 * 32], np.float32).reshape(1, 4, 32, 32)
    image = np.frombuffer(made[latents.nbytes :], np.uint8).reshape(256, 256, 3)
    settings = {"negative_prompt": "blurry", "seed": 7, "width": 256, "height": 256, "guidance_scale": 7.5}
    given = Plan.from_json(json.loads(plan.read_text()))
    expected = load(bundle, "cpu", low_memory=True)("a photo of a cat", plan=given, **settings)
    difference = float(np.abs(latents - expected.sample).max() / np.abs(expected.sample).max())
    print(f"largest difference {difference:.2g} of the largest latent, {psnr(image, expected.images[0]):.1f} dB")
    assert difference < 1e-4
    assert psnr(image, expected.images[0]) >= SAME_DB
