"""Proves that a variant for one engine is its portable graph: the same weights in the same file, the same answers to
rounding, the same picture in any batch, parity and conformance as for the others; that each fusion says in ONNX
Runtime's operators what standard ones said before; and that each provider is given a graph that it can run."""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import text_samples
import tiny_text_bundle as tiny
import torch
from random_weights import SMALLEST, random_state

from export import graph_writer
from export.__main__ import main, parser
from export.check import check_bundle
from export.engines import ENGINES, chosen_engines, write_variant
from export.errors import ExportError
from export.expansions import expand
from export.fusions import CPU_FUSIONS, fuse
from export.half import write_half
from export.parity import load_graph
from export.restore import torch_module
from export.rounded import load_rounded
from export.sd15 import export_sd15
from export.sd15_graphs import SPECS, modules
from export.survey import open_graph
from export.trace import TracedGraph, trace
from runtime import load
from runtime.bundle import MANIFEST, open_bundle
from runtime.check import left_out, replay
from runtime.conformance import read_conformance
from runtime.errors import BundleError
from runtime.networks import Networks
from training.stable_diffusion.checkpoint.networks import Networks as Modules
from training.stable_diffusion.config import UNetLevel

Array = npt.NDArray[Any]
POCKET = Path(__file__).parents[1] / "models_onnx" / "pocket"
FUSED = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
# Of the CUDA kernels' own sizes: a level of 320 channels, whose gated Gelu is 2,560 wide.
WIDE = replace(SMALLEST, unet=replace(SMALLEST.unet, levels=(UNetLevel(320, True),), num_attention_heads=8))
WIDE_SIZES = {"batch": 2, "h": 6, "w": 5, "length": 7}


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def inputs(path: Path, batch: int = 2, seed: int = 0) -> dict[str, Array]:
    """Numbers for each input of a graph: latents of 9 x 14, pictures of 36 x 40, 11 tokens of 50 known ones."""
    random = np.random.default_rng(seed)
    sizes = {"batch": batch, "h": 9, "w": 14, "height": 36, "width": 40, "length": 11, "extra": 2}
    drawn: dict[str, Array] = {}
    for value in ir.load(path).graph.inputs:
        shape = [size if isinstance(size, int) else sizes[str(size.value)] for size in value.shape or ()]
        whole = value.dtype == ir.DataType.INT64
        drawn[str(value.name)] = (
            random.integers(0, 50 if shape else 1, shape) if whole else random.standard_normal(shape, np.float32)
        )
    return drawn


def answer(model: ir.Model, path: Path, given: Mapping[str, Array]) -> Array:
    """What a graph says without any optimisation by ONNX Runtime."""
    return open_graph(model, path)(given)[0]


def largest_difference(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


# --- each fusion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", FUSED)
def test_all_attention_is_fused_and_says_what_it_said(role: str) -> None:
    path = POCKET / f"{role}-fp32.onnx"
    model, given = ir.load(path), inputs(path)
    expected = answer(model, path, given)
    attentions = operators(path)["Softmax"]
    assert attentions > 0
    assert fuse(model, CPU_FUSIONS) == attentions
    counts = Counter(node.op_type for node in model.graph)
    assert (counts["MultiHeadAttention"], counts["Softmax"]) == (attentions, 0)
    assert largest_difference(answer(model, path, given), expected) < 1e-6


@pytest.mark.parametrize("role", ["text_encoder", "vae_decoder"])
def test_expansion_says_what_the_kernel_says(role: str) -> None:
    """By attention, causal and not, the one fusion whose kernel is at hand; ``expand`` speaks for the others."""
    path = POCKET / f"{role}-fp32.onnx"
    model, given = ir.load(path), inputs(path)
    fuse(model, CPU_FUSIONS)
    by_kernel = answer(model, path, given)
    expand(model)
    assert {node.domain for node in model.graph} == {""}
    assert largest_difference(answer(model, path, given), by_kernel) < 1e-6


def set_constant(model: ir.Model, value: ir.Value | None, numbers: object) -> None:
    """Give one user's constant other numbers, and nobody else's."""
    assert value is not None
    assert value.const_value is not None
    value.const_value = ir.Tensor(np.asarray(numbers, value.const_value.numpy().dtype), name=value.name)


def only(model: ir.Model, kind: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == kind)


NEAR_MISSES: dict[str, tuple[str, Callable[[ir.Model], object]]] = {
    "softmax over the queries": (
        "vae_decoder",
        lambda model: only(model, "Softmax").attributes.add(ir.AttrInt64("axis", 1)),
    ),
    "one factor for each query": (
        "vae_decoder",
        lambda model: set_constant(model, only(model, "Softmax").inputs[0].producer().inputs[1], np.ones((1, 126, 1))),
    ),
    "a position does not see itself": (
        "text_encoder",
        lambda model: [set_constant(model, node.inputs[1], 0) for node in model.graph if node.op_type == "Trilu"],
    ),
    "later positions are hardly hidden": (
        "text_encoder",
        lambda model: [set_constant(model, node.inputs[0], -9) for node in model.graph if node.op_type == "Expand"],
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_what_is_not_quite_attention_stays_as_it_is(case: str) -> None:
    role, change = NEAR_MISSES[case]
    model = ir.load(POCKET / f"{role}-fp32.onnx")
    change(model)
    assert fuse(model, CPU_FUSIONS) == 0


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[TracedGraph, dict[str, Array]]:
    """The fp16 UNet of ``WIDE``, the fp32 one beside it, and inputs."""
    folder = tmp_path_factory.mktemp("wide")
    networks = Modules(WIDE)
    networks.load_state_dict(random_state(WIDE))
    made = modules(networks.text_encoder, networks.unet, networks.vae)["unet"]
    spec = SPECS["unet"](made, WIDE)
    traced = trace(spec, folder / "unet-fp32.onnx")
    drawn = spec.draw(WIDE_SIZES, torch.Generator().manual_seed(0))
    given = {name: tensor.numpy() for name, tensor in drawn.items()}
    half = write_half(traced.path, folder / "unet-fp16.onnx", [given], external_data_above=0)
    return replace(traced, path=half.path, external_data=half.external_data), given


@pytest.mark.slow
def test_what_is_fused_for_cuda_says_what_the_portable_graph_says(wide: tuple[TracedGraph, dict[str, Array]]) -> None:
    portable, given = wide
    made = write_variant(portable, "cuda")
    assert made is not None
    before, after = operators(portable.path), operators(made.path)
    assert after["MultiHeadAttention"] == before["Softmax"]
    assert after["GroupNorm"] == before["InstanceNormalization"]
    assert after["NhwcConv"] == before["Conv"]
    assert after["BiasSplitGelu"] == before["Gelu"]
    assert after["BiasAdd"] == before["Softmax"] + before["Gelu"]  # after each attention and each feed-forward layer
    assert not {"Softmax", "InstanceNormalization", "Conv", "Gelu"} & {*after}
    # Both are rounded to float16 at every step, the fused one at fewer: it may not be further from float32.
    expected = load_graph(portable.path.with_name("unet-fp32.onnx"))(given)["out_sample"]
    fused, unfused = (
        float(np.sqrt(np.mean((run(given)["out_sample"] - expected) ** 2)))
        for run in (load_rounded(made.path, expanded=True), load_rounded(portable.path))
    )
    assert 0 < fused < 1.1 * unfused < 0.002 * float(np.abs(expected).max())


@pytest.mark.slow
def test_onnx_runtime_finds_the_graph_for_cuda_well_formed(wide: tuple[TracedGraph, dict[str, Array]]) -> None:
    """It checks names, types and attributes of all nodes before it looks for kernels, which the CPU does not have."""
    made = write_variant(wide[0], "cuda")
    assert made is not None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED : Failed to find kernel for com\.microsoft"):
        onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    model = ir.load(made.path)
    only(model, "GroupNorm").attributes.pop("groups")
    ir.save(model, made.path)
    with pytest.raises(Exception, match="Required attribute 'groups' is missing"):
        onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])


# --- a file of its own ----------------------------------------------------------------------------------------------


def pocket_graph(folder: Path, role: str) -> TracedGraph:
    """A graph of the pocket model with its weights beside it."""
    model = ir.load(POCKET / f"{role}-fp32.onnx")
    path = folder / f"{role}-fp32.onnx"
    ir.save(model, path, external_data=f"{path.name}.data")
    return TracedGraph(path, path.with_name(f"{path.name}.data"), [], [], {})


@pytest.mark.parametrize("role", FUSED)
def test_a_variant_shares_the_file_with_the_weights(tmp_path: Path, role: str) -> None:
    portable = pocket_graph(tmp_path, role)
    assert portable.external_data is not None
    weights = portable.external_data.read_bytes()
    made = write_variant(portable, "cpu")
    assert made is not None
    assert made.path.name == f"{role}-fp32-cpu.onnx"
    assert made.external_data == portable.external_data
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in {*made.files, *portable.files}
    )
    assert portable.external_data.read_bytes() == weights
    assert made.path.stat().st_size < portable.path.stat().st_size
    before = ir.load(portable.path).graph.initializers
    for name, value in ir.load(made.path).graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), before[name].const_value.numpy(), err_msg=name)


def test_the_same_graph_gives_the_same_variant(tmp_path: Path) -> None:
    data = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        made = write_variant(pocket_graph(tmp_path / name, "vae_decoder"), "cpu")
        assert made is not None
        data.append(made.path.read_bytes())
        assert str(tmp_path).encode() not in data[-1]
    assert data[0] == data[1]


def test_a_graph_without_attention_has_no_variant(tmp_path: Path) -> None:
    path = POCKET.parent / "mnist-paper" / "unet-fp32.onnx"
    shutil.copy(path, tmp_path)
    assert write_variant(TracedGraph(tmp_path / path.name, None, [], [], {}), "cpu") is None
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("role", FUSED)
def test_a_row_is_the_same_in_any_batch(tmp_path: Path, role: str) -> None:
    made = write_variant(pocket_graph(tmp_path, role), "cpu")
    assert made is not None
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    together = inputs(made.path, batch=3)
    (rows,) = session.run(None, together)
    shared = ("extra_embeddings", "clip_skip")
    for index in range(3):
        alone = {name: x if name in shared else x[index : index + 1] for name, x in together.items()}
        np.testing.assert_array_equal(session.run(None, alone)[0][0], rows[index])


def test_variants_are_made_where_weights_lie_beside_the_graph_or_where_they_are_asked_for(tmp_path: Path) -> None:
    inside, beside = TracedGraph(tmp_path / "a", None, [], [], {}), TracedGraph(tmp_path / "a", tmp_path, [], [], {})
    assert chosen_engines(None, inside, "fp32") == []
    assert chosen_engines(None, beside, "fp32") == ["cpu"]
    assert chosen_engines(None, beside, "fp16") == []
    assert chosen_engines([], beside, "fp32") == []
    assert chosen_engines(["cpu"], inside, "fp32") == ["cpu"]
    assert chosen_engines(["cuda"], inside, "fp16") == ["cuda"]


def test_engines_without_a_name_are_none_and_unsaid_is_the_default() -> None:
    words = ["sd15", "model.safetensors", "--out", "bundle"]
    assert parser().parse_args(words).engines is None
    assert parser().parse_args([*words, "--engines"]).engines == []
    assert parser().parse_args([*words, "--engines", "cpu"]).engines == ["cpu"]


def test_an_engine_with_no_use_for_the_precision_is_refused(tmp_path: Path, refusal: Callable[..., str]) -> None:
    arguments = "sd15", tmp_path / "missing.safetensors", "--out", tmp_path / "made"
    assert "made of fp16 graphs, and these are fp32; export with --precision fp16" in refusal(
        main, *arguments, "--engines", "cuda"
    )
    assert "made of fp32 graphs" in refusal(main, *arguments, "--engines", "cpu", "--precision", "fp16")
    assert "invalid choice: 'tpu'" in refusal(main, *arguments, "--engines", "tpu")
    with pytest.raises(ExportError, match="engine 'tpu' is unknown; choose among cpu, cuda"):
        export_sd15("x", tmp_path / "made", engines=["tpu"])
    assert list(tmp_path.iterdir()) == []


# --- a bundle of them -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of ``text_samples`` with weights beside its graphs, as those of a large model are."""
    folder = tmp_path_factory.mktemp("engines")
    text_samples.write_checkpoint(folder / "model.safetensors")
    text_samples.write_tokenizer(folder / "tokenizer.json")
    beside = functools.partial(trace, external_data_above=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_writer, "trace", beside)
        export_sd15(
            folder / "model.safetensors",
            folder / "engines",
            config=text_samples.CONFIG,
            tokenizer=folder / "tokenizer.json",
            licence="none",
            report=lambda _: None,
        )
    return folder / "engines"


@pytest.mark.slow
def test_the_manifest_has_both_with_the_same_weights_and_the_same_bound(bundle: Path) -> None:
    graphs = json.loads((bundle / MANIFEST).read_text())["graphs"]
    assert {role: list(variants) for role, variants in graphs.items()} == {role: ["fp32", "fp32-cpu"] for role in SPECS}
    for role, variants in graphs.items():
        portable, made = variants["fp32"], variants["fp32-cpu"]
        for key in ("external_data", "inputs", "outputs", "initializers", "opset"):
            assert made[key] == portable[key], (role, key)
        assert (portable["providers"], made["providers"]) == (["any"], ["CPUExecutionProvider"])
        for key in ("seed", "sizes", "tolerance", "accepted"):
            assert made["parity"][key] == portable["parity"][key]
        assert made["parity"]["max_abs_diff"] <= made["parity"]["tolerance"]
    for role in SPECS:
        original, restored = (torch_module(bundle, role, variant).state_dict() for variant in ("fp32", "fp32-cpu"))
        assert all(torch.equal(restored[name], tensor) for name, tensor in original.items())


@pytest.mark.slow
def test_both_checks_cover_the_variants(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    lines: list[str] = []
    check_bundle(bundle, report=lines.append)
    outcomes = replay(opened, "cpu")
    assert all(outcome.passed for outcome in outcomes)
    for role in SPECS:
        assert any(line.startswith(f"{role} fp32-cpu: SHA-256 and weights as shipped") for line in lines)
        assert any(outcome.case.startswith(f"graph {role}/fp32-cpu ") for outcome in outcomes)
    cases, _ = read_conformance(opened)
    by_variant = {case["variant"]: case["outputs"] for case in cases if case.get("graph") == "unet"}
    assert by_variant["fp32"] == by_variant["fp32-cpu"]  # PyTorch's answers are kept once

    altered = shutil.copytree(bundle, tmp_path / "engines")
    name = opened.graph("vae_decoder", "fp32-cpu").file.name
    data = bytearray((altered / name).read_bytes())
    data[len(data) // 2] ^= 1
    (altered / name).write_bytes(data)
    with pytest.raises(ExportError, match=f"{name} does not have the SHA-256 of the manifest"):
        check_bundle(altered, report=lines.append)


@pytest.mark.slow
def test_it_draws_by_the_variant_what_the_portable_graphs_draw(bundle: Path) -> None:
    request = {"seed": 3, "num_inference_steps": 4, "width": 64, "height": 48}
    fused, portable = load(bundle, "cpu"), load(bundle, "cpu", variant="fp32")
    assert [pipeline.networks.variant_of("unet") for pipeline in (fused, portable)] == ["fp32-cpu", "fp32"]
    one, other = fused("a cat", **request), portable("a cat", **request)
    assert [result.metadata["variant"] for result in (one, other)] == ["fp32-cpu", "fp32"]
    assert largest_difference(one.sample, other.sample) < 1e-4
    several = fused("a cat", **{**request, "seed": 1}, num_images_per_prompt=3)
    np.testing.assert_array_equal(several.sample[2], one.sample[0])


# --- who is given which ---------------------------------------------------------------------------------------------


def with_variants(tmp_path: Path, **providers: list[str]) -> Path:
    """The tiny text bundle, whose UNet has variants (``_`` is a hyphen) for providers, and ``fp32`` if it is named."""

    def change(manifest: dict[str, Any]) -> None:
        variants = manifest["graphs"]["unet"]
        portable = variants.pop("fp32")
        for name, theirs in providers.items():
            variants[name.replace("_", "-")] = portable | {"providers": theirs}

    return tiny.changed(tiny.write(tmp_path), tmp_path, change)


ANY, CPU, CUDA = ["any"], [ENGINES["cpu"].provider], [ENGINES["cuda"].provider]
ALL = {"fp16_cuda": CUDA, "fp16": ANY, "fp32": ANY, "fp32_cpu": CPU}


@pytest.mark.parametrize(
    ("variants", "provider", "wanted", "used"),
    [
        (ALL, "cpu", None, "fp32-cpu"),
        (ALL, "cuda", None, "fp32"),
        (ALL, "cpu", "fp32", "fp32"),
        (ALL, "cuda", "fp16", "fp16"),
        (ALL, "cuda", "fp16-cuda", "fp16-cuda"),
        ({"fp16": ANY, "fp16_cuda": CUDA}, "cuda", None, "fp16-cuda"),
        ({"fp16_cuda": CUDA, "fp16": ANY}, "cpu", None, "fp16"),
        ({"fp32": ANY, "fp32_cpu": ["OpenVINOExecutionProvider"]}, "cpu", None, "fp32"),
        ({"int8": ANY, "int8_cpu": CPU}, "cpu", None, "int8-cpu"),
    ],
)
def test_a_provider_is_given_its_own_variant_unless_another_is_named(
    tmp_path: Path, variants: dict[str, list[str]], provider: str, wanted: str | None, used: str
) -> None:
    networks = Networks(open_bundle(with_variants(tmp_path, **variants)), provider, variant=wanted)
    assert networks.variant_of("unet") == used
    assert networks.graph("unet").file.name == "unet.onnx"
    assert networks.variant_of("vae_decoder") == "fp32"  # which has no other


def test_a_variant_for_another_provider_is_refused_by_name(tmp_path: Path) -> None:
    message = "unet.onnx is for CUDAExecutionProvider, not for CPUExecutionProvider; choose another"
    both = open_bundle(with_variants(tmp_path, **ALL))
    with pytest.raises(BundleError, match=message):
        Networks(both, "cpu", variant="fp16-cuda").session("unet")
    (tmp_path / "other").mkdir()
    alone = open_bundle(with_variants(tmp_path / "other", fp16_cuda=CUDA))
    with pytest.raises(BundleError, match=message):
        Networks(alone, "cpu").session("unet")


@pytest.mark.slow
def test_a_check_names_the_graphs_that_it_cannot_run(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "engines")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["graphs"]["unet"]["fp32-cpu"]["providers"] = CUDA
    (copy / MANIFEST).write_text(json.dumps(manifest))
    opened = open_bundle(copy)
    assert left_out(opened, "cpu") == [
        "----  unet-fp32-cpu.onnx: for CUDAExecutionProvider, not run on CPUExecutionProvider"
    ]
    outcomes = replay(opened, "cpu")
    assert all(outcome.passed for outcome in outcomes)
    names = {outcome.case.split()[1] for outcome in outcomes}
    assert "unet/fp32" in names
    assert "unet/fp32-cpu" not in names
