"""Proves that fp16 graphs neither overflow nor stay float32 for nothing: networks built to overflow, openly or within
operators, are caught and others are left alone; names, boundary and bytes stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from half_graphs import (
    NODE,
    SHAPE,
    Array,
    convert_with,
    dtypes,
    floats,
    in_numpy,
    naive,
    noise,
    operators,
    overflowing_graph,
    psnr,
    write,
)
from onnx import TensorProto

from export.errors import ExportError
from export.half import LIMIT, write_half
from export.parity import load_graph
from export.rounded import load_rounded


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    return overflowing_graph(tmp_path / "graph.onnx")


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
