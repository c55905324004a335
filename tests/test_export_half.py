"""Proves that fp16 graphs neither overflow nor stay float32 for nothing: networks built to overflow, openly or within
operators, are caught and others are left alone; names, boundary and bytes stay; and the networks of Stable Diffusion,
small and once at full size, come out finite and close to PyTorch where everything really is rounded to float16.

``naive`` is what these tests are measured against: the same graph in fp16 without a survey."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import full_size
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from random_weights import POCKET, SMALLEST, random_state
from torch import Tensor, nn

from export.errors import ExportError
from export.graphs import GraphSpec, Input, normal
from export.half import LIMIT, HalfReport, convert, write_half
from export.parity import load_graph, questions
from export.rounded import load_rounded, measure_half
from export.sd15_graphs import SPECS, modules
from export.stress import stress_inputs
from export.survey import load, survey
from export.trace import trace
from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.checkpoint.networks import Networks, without_weights
from training.stable_diffusion.config import SD15

Array = npt.NDArray[np.generic]
SHAPE = (2, 8, 6)
NODE = helper.make_node


def write(path: Path, nodes: Sequence[onnx.NodeProto], weights: Mapping[str, object] | None = None) -> Path:
    """A graph from ``x``, float32 (a, b, c), to ``y`` of any shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", "c"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(weight), name) for name, weight in (weights or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def floats(value: object) -> npt.NDArray[np.float32]:
    return np.asarray(value, np.float32)


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def naive(path: Path) -> Path:
    model = load(path)
    convert(model, kept=set())
    target = path.with_name("naive.onnx")
    ir.save(model, target)
    return target


def convert_with(path: Path, *samples: Array) -> HalfReport:
    return write_half(path, path.with_name("half.onnx"), [{"x": sample} for sample in samples])


def in_numpy(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of a graph, computed by the reference implementation of ONNX in NumPy's own float16."""
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(str(path)).run(None, dict(inputs), intermediate=True)
    return {name: value for name, value in values.items() if name}


def psnr(reference: Array, other: Array) -> float:
    error = np.sqrt(np.mean((reference.astype(np.float64) - other) ** 2))
    return float(20 * np.log10(np.abs(reference).max() / error))


def dtypes(path: Path) -> dict[str, int]:
    """Of initialisers."""
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


OVERFLOWING = {"up": 50_000 * noise((6, 6), seed=1).clip(-0.3, 0.3), "down": noise((6, 3), seed=2) / 100_000}


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Small numbers in, small numbers out, and up to 400,000 in the middle, through two nodes."""
    nodes = [
        NODE("MatMul", ["x", "up"], ["a"]),
        NODE("Relu", ["a"], ["large"]),
        NODE("Transpose", ["large"], ["turned"], perm=[0, 1, 2]),
        NODE("MatMul", ["turned", "down"], ["b"]),
        NODE("Tanh", ["b"], ["c"]),
        NODE("Mul", ["c", "c"], ["y"]),
    ]
    return write(tmp_path / "graph.onnx", nodes, OVERFLOWING)


def test_a_network_built_to_overflow_is_caught(overflowing: Path) -> None:
    sample = {"x": 4 * noise()}
    reference = load_graph(overflowing)(sample)["y"]
    report = convert_with(overflowing, sample["x"])
    assert (report.nodes, report.kept) == (6, 4)
    assert report.largest["large"] == pytest.approx(in_numpy(overflowing, sample)["large"].max())
    assert 65_504 < report.largest["large"] < 500_000
    assert report.max_magnitude < LIMIT

    careless = naive(overflowing)
    np.testing.assert_allclose(load_graph(careless)(sample)["y"], reference, atol=1e-2)  # the CPU provider hides it
    assert not np.isfinite(in_numpy(careless, sample)["b"]).all()  # NumPy's float16 does not
    assert not np.allclose(load_rounded(careless)(sample)["y"], reference, atol=1e-2)  # nor does rounding

    for result in (load_rounded(report.path)(sample)["y"], in_numpy(report.path, sample)["y"]):
        assert psnr(reference, result) > 60


class Overflowing(nn.Module):
    """The same in PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        up, down = (torch.from_numpy(weight) for weight in OVERFLOWING.values())
        return torch.tanh(torch.relu(x @ up) @ down) ** 2


def test_parity_is_that_of_rounded_values(overflowing: Path) -> None:
    spec = GraphSpec(
        role="unet",
        module=Overflowing(),
        inputs={"x": Input(("batch", 8, 6), normal)},
        outputs={"y": ("batch", 8, 3)},
        example_sizes={"batch": 2},
        parity_sizes=({"batch": 3}, {"batch": 5}),
    )
    report = convert_with(overflowing, 4 * noise())
    parity = measure_half(spec, report.path)
    assert parity.batch_sizes == [5]
    assert 60 < parity.psnr_db < 80
    assert parity.max_abs_diff < 0.01 < parity.tolerance < 0.11
    with pytest.raises(ExportError, match=r"^unet differs in fp16 from PyTorch by .* export it with --precision fp32$"):
        measure_half(spec, naive(overflowing))


def test_nothing_is_kept_without_a_reason(tmp_path: Path) -> None:
    nodes = [NODE("MatMul", ["x", "w"], ["a"]), NODE("Relu", ["a"], ["y"])]
    path = write(tmp_path / "graph.onnx", nodes, {"w": noise((6, 6))})
    report = convert_with(path, noise())
    assert report.kept == 0
    assert operators(report.path) == ["Cast", "MatMul", "Relu", "Cast"]
    assert dtypes(report.path) == {"w": TensorProto.FLOAT16}


def test_between_nodes_that_stay_float32_nothing_is_cast(overflowing: Path) -> None:
    report = convert_with(overflowing, 4 * noise())
    assert operators(report.path) == ["MatMul", "Relu", "Transpose", "MatMul", "Cast", "Tanh", "Mul", "Cast"]
    assert set(dtypes(report.path).values()) == {TensorProto.FLOAT}  # weights of such nodes stay as they are


@pytest.mark.parametrize("scale", [10.0, 200.0])
def test_squares_within_a_layer_normalisation_count(tmp_path: Path, scale: float) -> None:
    nodes = [NODE("LayerNormalization", ["x", "ones", "zeros"], ["y"])]
    path = write(tmp_path / "graph.onnx", nodes, {"ones": floats(np.ones(6)), "zeros": floats(np.zeros(6))})
    sample = {"x": scale * noise()}
    report = convert_with(path, sample["x"])
    assert report.kept == int(scale == 200)
    assert report.largest["y"] == pytest.approx(np.abs(sample["x"]).max() ** 2)
    assert psnr(load_graph(path)(sample)["y"], in_numpy(report.path, sample)["y"]) > 55
    # NumPy squares float16 in float16, as engines have done; the graph itself holds nothing beyond the range.
    assert (psnr(load_graph(path)(sample)["y"], in_numpy(naive(path), sample)["y"]) > 55) == (scale == 10)


def test_group_normalisation_stays_float32(tmp_path: Path) -> None:
    nodes = [NODE("InstanceNormalization", ["x", "ones", "zeros"], ["y"])]
    path = write(tmp_path / "graph.onnx", nodes, {"ones": floats(np.ones(2)), "zeros": floats(np.zeros(2))})
    sample = {"x": 3 * noise((1, 2, 60_000))}
    report = convert_with(path, sample["x"])
    assert operators(report.path) == ["InstanceNormalization"]
    assert np.abs(in_numpy(naive(path), sample)["y"]).max() == 0  # divided by an infinite sum of small squares


@pytest.mark.parametrize("factor", [0.9, 0.05])
def test_scores_count_as_they_are_before_scaling(tmp_path: Path, factor: float) -> None:
    nodes = [
        NODE("Mul", ["x", "factor"], ["query"]),
        NODE("Reshape", ["query", "shape"], ["queries"]),
        NODE("Mul", ["factor", "x"], ["key"]),
        NODE("Transpose", ["key"], ["keys"], perm=[0, 2, 1]),
        NODE("MatMul", ["queries", "keys"], ["scores"]),
        NODE("Softmax", ["scores"], ["y"]),
    ]
    path = write(tmp_path / "graph.onnx", nodes, {"factor": floats(factor), "shape": np.array(SHAPE)})
    sample = 100 * noise()
    report = convert_with(path, sample)
    scores = np.abs(sample @ sample.transpose(0, 2, 1)).max()
    assert report.largest["scores"] == pytest.approx(scores, rel=1e-5)
    assert scores > LIMIT > scores * factor**2 or factor == 0.9
    # Into the graph, twice into the product, and out of it; with 0.9, scores are too large for Softmax as well.
    assert (report.kept, operators(report.path).count("Cast")) == {0.05: (1, 5), 0.9: (2, 3)}[factor]


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
def test_masks_do_not_count(tmp_path: Path, hidden: float) -> None:
    nodes = [
        NODE("Add", ["x", "mask"], ["masked"]),
        NODE("Softmax", ["masked"], ["y"]),
    ]
    path = write(tmp_path / "graph.onnx", nodes, {"mask": np.triu(np.full((8, 6), hidden, np.float32), 1)})
    sample = {"x": 10 * noise()}
    report = convert_with(path, sample["x"])
    assert report.kept == 0
    assert report.max_magnitude == np.abs(sample["x"]).max()
    for result in (load_rounded(report.path)(sample)["y"], in_numpy(report.path, sample)["y"]):
        np.testing.assert_allclose(result, load_graph(path)(sample)["y"], atol=5e-3)
        assert (result[:, 0, 1:] == 0).all()


def test_what_lies_beside_a_mask_counts(tmp_path: Path) -> None:
    nodes = [NODE("Mul", ["x", "large"], ["scores"]), NODE("Where", ["seen", "scores", "hidden"], ["y"])]
    weights = {"large": floats(-1e5), "hidden": floats(-np.inf), "seen": np.array([True, False] * 3)}
    report = convert_with(write(tmp_path / "graph.onnx", nodes, weights), noise())
    assert report.kept == 2


def test_angles_stay_float32(tmp_path: Path) -> None:
    nodes = [
        NODE("Mul", ["x", "frequencies"], ["angles"]),
        NODE("Sin", ["angles"], ["sin"]),
        NODE("Cos", ["angles"], ["cos"]),
        NODE("Concat", ["sin", "cos"], ["both"], axis=-1),
        NODE("Neg", ["both"], ["y"]),
    ]
    path = write(tmp_path / "graph.onnx", nodes, {"frequencies": floats(np.geomspace(1, 1e-4, 6))})
    sample = {"x": floats([[[999.3]], [[431.7]]])}
    reference = load_graph(path)(sample)["y"]
    report = convert_with(path, sample["x"])
    assert (report.nodes, report.kept) == (5, 3)
    assert dtypes(report.path) == {"frequencies": TensorProto.FLOAT}
    np.testing.assert_allclose(load_rounded(report.path)(sample)["y"], reference, atol=5e-4)
    assert np.abs(load_rounded(naive(path))(sample)["y"] - reference).max() > 0.1


def test_weights_beyond_either_end_of_fp16(tmp_path: Path) -> None:
    nodes = [NODE("Mul", ["x", "huge"], ["a"]), NODE("Add", ["x", "tiny"], ["b"]), NODE("Sub", ["a", "b"], ["y"])]
    weights = {"huge": floats([1e5, 1, 1, 1, 1, 1]), "tiny": floats([1e-8, -1e-8, 0, 1e-7, 1, 2])}
    path = write(tmp_path / "graph.onnx", nodes, weights)
    report = convert_with(path, 1e-4 * noise())  # products are small
    assert report.kept == 1
    assert report.vanished == 2
    assert "2 weights became 0" in str(report)
    assert dtypes(report.path) == {"huge": TensorProto.FLOAT, "tiny": TensorProto.FLOAT16}


def test_what_the_standard_wants_in_float32_stays_so(tmp_path: Path) -> None:
    nodes = [
        NODE("Resize", ["x", "", "scales"], ["resized"], mode="nearest"),
        NODE("Range", ["zero", "six", "one"], ["range"]),
        NODE("Add", ["resized", "range"], ["sum"]),
        NODE("Shape", ["sum"], ["shape"]),
        NODE("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
        NODE("Div", ["sizes", "six"], ["y"]),
    ]
    weights = {"scales": floats([1, 2, 1]), "zero": floats(0), "one": floats(1), "six": floats(6)}
    path = write(tmp_path / "graph.onnx", nodes, weights)
    report = convert_with(path, noise())
    onnx.checker.check_model(onnx.load(report.path), full_check=True)
    np.testing.assert_allclose(load_graph(report.path)({"x": noise()})["y"], [1 / 3, 16 / 6, 1], atol=1e-3)
    assert dtypes(report.path)["scales"] == TensorProto.FLOAT


def test_the_survey_sees_every_value(overflowing: Path) -> None:
    """Against NumPy: inputs, weights and results, over all samples."""
    samples = [{"x": noise(seed=seed) * scale} for seed, scale in enumerate((0.5, 4, 1))]
    expected: dict[str, float] = {}
    for sample in samples:
        for name, value in in_numpy(overflowing, sample).items():
            expected[name] = max(expected.get(name, 0.0), float(np.abs(value).max()))
    magnitudes = survey(overflowing, samples).magnitudes
    assert set(magnitudes) == {"x", "up", "a", "large", "turned", "down", "b", "c", "y"}
    assert magnitudes == pytest.approx({name: expected[name] for name in magnitudes}, rel=1e-5)


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from export.survey import survey

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
survey(Path(sys.argv[1]), [{"x": np.ones((8, 1000, 1000), np.float32)}])
print(peak() - before)
"""


@pytest.mark.slow  # a process of its own
def test_the_survey_keeps_no_values(tmp_path: Path) -> None:
    names = ["x", *(f"v{index}" for index in range(30)), "y"]
    nodes = [NODE("Neg", [before], [after]) for before, after in pairwise(names)]
    path = write(tmp_path / "graph.onnx", nodes)  # 31 values of 32 MB
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200e6


def test_the_same_bytes_every_time_inside_or_beside(overflowing: Path, tmp_path: Path) -> None:
    samples = [{"x": noise()}]
    one, other, apart = (tmp_path / name for name in ("one.onnx", "other.onnx", "apart.onnx"))
    write_half(overflowing, one, samples)
    assert write_half(overflowing, other, samples).external_data is None
    assert one.read_bytes() == other.read_bytes()
    report = write_half(overflowing, apart, samples, external_data_above=100)
    assert report.external_data == tmp_path / "apart.onnx.data"
    np.testing.assert_array_equal(load_graph(apart)(samples[0])["y"], load_graph(one)(samples[0])["y"])


@pytest.mark.parametrize(
    ("nodes", "sample", "message"),
    [
        ([NODE("Relu", ["x"], ["y"])], None, r"^graph.onnx: a survey needs inputs, and none were given$"),
        ([NODE("Relu", ["x"], ["y"])], noise()[0], r"^graph.onnx fails in ONNX Runtime: .*[Ii]nvalid rank"),
        (
            [NODE("Gelu", ["x"], ["y"], domain="com.microsoft")],
            noise(),
            r"^graph.onnx: com.microsoft.Gelu is not in the ONNX standard$",
        ),
    ],
)
def test_what_cannot_be_converted_is_one_line(
    tmp_path: Path, nodes: list[onnx.NodeProto], sample: Array | None, message: str
) -> None:
    path = write(tmp_path / "graph.onnx", nodes)
    with pytest.raises(ExportError, match=message) as caught:
        convert_with(path, *([] if sample is None else [sample]))
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["graph.onnx"]


@pytest.mark.parametrize("role", SPECS)
@pytest.mark.slow  # the exporter takes seconds, however small the network
def test_the_networks_of_stable_diffusion(role: str, tmp_path: Path) -> None:
    networks = Networks(SMALLEST)
    networks.load_state_dict(random_state(SMALLEST))
    traced = modules(networks.text_encoder, networks.unet, networks.vae)
    spec = SPECS[role](traced[role], SMALLEST)
    path = tmp_path / "graph.onnx"
    initializers = trace(spec, path).initializers
    samples = stress_inputs(spec, spec.example_sizes, SMALLEST)
    report = write_half(path, tmp_path / "half.onnx", samples)

    onnx.checker.check_model(onnx.load(report.path), full_check=True)
    assert {name for name in dtypes(report.path) if name in initializers} == set(initializers)
    casts = [node for node in onnx.load(report.path).graph.node if node.op_type == "Cast"]
    assert not {name for cast in casts for name in cast.input} & {name for cast in casts for name in cast.output}
    assert report.kept == operators(path).count("InstanceNormalization") + (5 if role == "unet" else 0)

    inputs = spec.draw(spec.example_sizes, torch.Generator().manual_seed(1))
    for sample in ({name: tensor.numpy() for name, tensor in inputs.items()}, *samples):
        values = in_numpy(report.path, sample)
        assert not any(np.isposinf(value).any() or np.isnan(value).any() for value in values.values())
        for name, reference in spec.reference({key: torch.from_numpy(value) for key, value in sample.items()}).items():
            assert psnr(reference.numpy(), load_rounded(report.path)(sample)[name]) > 50
            assert psnr(reference.numpy(), values[name]) > 50
    assert 55 < measure_half(spec, report.path).psnr_db < 90


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphSpec, Path]:
    """An fp16 text encoder of three layers, some of whose channels are a hundred times larger than others."""
    networks = Networks(POCKET)
    networks.load_state_dict(random_state(POCKET))
    spec = SPECS["text_encoder"](networks.text_encoder, POCKET)
    folder = tmp_path_factory.mktemp("text_encoder")
    trace(spec, folder / "graph.onnx")
    write_half(folder / "graph.onnx", folder / "half.onnx", stress_inputs(spec, spec.example_sizes, POCKET))
    return spec, folder / "half.onnx"


def altered(path: Path, name: str, change: Callable[[Array], Array]) -> Path:
    """A copy of a graph with another weight."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            weight = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(change(weight).astype(weight.dtype), name))
    onnx.save(model, path.with_name("altered.onnx"))
    return path.with_name("altered.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.0, np.nan])
def test_every_layer_of_the_text_encoder_has_its_part(
    text_encoder: tuple[GraphSpec, Path], layer: int, factor: float
) -> None:
    spec, path = text_encoder
    assert measure_half(spec, path).sizes == [dict(sizes) for sizes in spec.parity_sizes[:2]]
    name = f"text_model.encoder.layers.{layer}.mlp.fc1.weight"
    with pytest.raises(ExportError, match="text_encoder differs in fp16 from PyTorch"):
        measure_half(spec, altered(path, name, lambda weight: weight * weight.dtype.type(factor)))


@pytest.mark.slow
def test_outlier_channels_do_not_hide_the_others(text_encoder: tuple[GraphSpec, Path]) -> None:
    """A quarter less in all ordinary channels is less than 40 dB below the outliers, but not below themselves."""
    spec, path = text_encoder
    reference = questions(spec, 0)[0][1]["last_hidden_state"]
    ordinary = np.abs(reference).max(axis=(0, 1)) < np.abs(reference).max() / 20
    assert ordinary.mean() > 0.5
    error = 0.27 * reference * ordinary
    assert psnr(reference, reference + error) > 40
    with pytest.raises(ExportError, match=r"text_encoder differs .* dB, of at least 40, in the median channel"):
        measure_half(
            spec,
            altered(path, "text_model.final_layer_norm.weight", lambda weight: weight * (1 - 0.27 * ordinary)),
        )


@pytest.mark.slow
def test_a_single_wrong_channel_is_refused(text_encoder: tuple[GraphSpec, Path]) -> None:
    spec, path = text_encoder
    one = np.arange(POCKET.text_encoder.hidden_size) == 5
    with pytest.raises(ExportError, match=r"of at least 35, in the worst"):
        measure_half(spec, altered(path, "text_model.final_layer_norm.weight", lambda weight: weight * (1 - 0.1 * one)))


@pytest.mark.slow
def test_a_file_that_engines_do_not_open_is_refused(text_encoder: tuple[GraphSpec, Path], tmp_path: Path) -> None:
    """The file as it is, not only with its values widened."""
    spec, path = text_encoder
    model = onnx.load(path)
    model.opset_import[0].version = 999
    onnx.save(model, tmp_path / "future.onnx")
    with pytest.raises(ExportError, match=r"^future.onnx does not load in ONNX Runtime"):
        measure_half(spec, tmp_path / "future.onnx")


@pytest.mark.parametrize("role", SPECS)
def test_stress_inputs_fit_and_reach_the_ends(role: str) -> None:
    networks = without_weights(SMALLEST)
    spec = SPECS[role](modules(networks.text_encoder, networks.unet, networks.vae)[role], SMALLEST)
    samples = stress_inputs(spec, spec.example_sizes, SMALLEST)
    usual = spec.draw(spec.example_sizes, torch.Generator())
    for sample in samples:
        assert {name: (array.dtype, array.shape) for name, array in sample.items()} == {
            name: (tensor.numpy().dtype, tensor.shape) for name, tensor in usual.items()
        }
    if role == "unet":
        assert {0, 999} <= {sample["timestep"][0] for sample in samples}
        assert max(np.abs(sample["sample"]).max() for sample in samples) > 12  # four times unit scale


def test_stress_inputs_follow_the_models_own_numbers() -> None:
    schedule = replace(SMALLEST.scheduler.noise_schedule, num_train_timesteps=60)
    scheduler = replace(SMALLEST.scheduler, noise_schedule=schedule)
    config = replace(SMALLEST, scheduler=scheduler, vae=replace(SMALLEST.vae, scaling_factor=1.0))
    networks = without_weights(config)
    parts = modules(networks.text_encoder, networks.unet, networks.vae)
    largest = {}
    for role, name in (("unet", "timestep"), ("vae_decoder", "latent_sample")):
        spec = SPECS[role](parts[role], config)
        largest[name] = max(np.abs(sample[name]).max() for sample in stress_inputs(spec, spec.example_sizes, config))
    assert largest == {"timestep": 59, "latent_sample": 5}


CONVERT = """
import resource, sys
from pathlib import Path
import numpy as np
from export.half import write_half

path = Path(sys.argv[1])
samples = [dict(np.load(file)) for file in sorted(path.parent.glob("*.npz"))]
report = write_half(path, path.with_name("half.onnx"), samples)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, report.kept, report.vanished)
"""


@pytest.fixture
def large_folder() -> Iterator[Path]:
    """For 5 GB of files; pytest would keep those of its last three runs."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.full
def test_the_unet_at_full_size(large_folder: Path) -> None:
    unet = load_checkpoint(full_size.single_file()).unet
    spec = replace(SPECS["unet"](unet, SD15), parity_sizes=({"batch": 1, "h": 32, "w": 32, "length": 77},))
    path = large_folder / "graph.onnx"
    trace(spec, path)
    for index, sample in enumerate(stress_inputs(spec, {"batch": 1, "h": 64, "w": 64, "length": 77}, SD15)[:2]):
        np.savez(large_folder / f"{index}.npz", **sample)
    done = subprocess.run([sys.executable, "-c", CONVERT, path], capture_output=True, text=True, check=True)
    peak, kept, vanished = map(int, done.stdout.split())
    assert peak < 14e9
    assert kept == 61 + 5  # group normalisations, and timestep to angles
    assert vanished < 1e-5 * sum(tensor.numel() for tensor in unet.state_dict().values())
    single, half = ((large_folder / f"{name}.onnx.data").stat().st_size for name in ("graph", "half"))
    assert half == pytest.approx(single / 2, rel=1e-5)
    assert 55 < measure_half(spec, large_folder / "half.onnx").psnr_db < 90
