"""Proves that parity means something: a graph that says what PyTorch says passes with the difference stated, one whose
weights, shapes or numbers are off fails, and a looser bound counts only when it was asked for."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.errors import ExportError
from export.graphs import GraphSpec, Input, integers, normal, uniform
from export.parity import PSNR_CEILING, measure

WIDTH = 4


def linear_spec(module: nn.Module, tolerance: float = 1e-5) -> GraphSpec:
    return GraphSpec(
        role="linear",
        module=module,
        inputs={"input": Input(("batch", WIDTH), normal)},
        outputs={"output": ("batch", WIDTH)},
        example_sizes={"batch": 2},
        parity_sizes=({"batch": 1}, {"batch": 2}, {"batch": 7}),
        tolerance=tolerance,
    )


def write_linear(path: Path, module: nn.Linear, output: str = "output", keep_rows: int | None = None) -> Path:
    """The graph of a linear layer, written by hand and not by the exporter under test."""
    nodes = [helper.make_node("Gemm", ["input", "weight", "bias"], ["product"], transB=1)]
    weights = [
        numpy_helper.from_array(module.weight.detach().numpy(), "weight"),
        numpy_helper.from_array(module.bias.detach().numpy(), "bias"),
    ]
    if keep_rows is None:
        nodes.append(helper.make_node("Identity", ["product"], [output]))
    else:
        weights += [
            numpy_helper.from_array(np.array([value]), name) for name, value in (("from", 0), ("to", keep_rows))
        ]
        nodes.append(helper.make_node("Slice", ["product", "from", "to"], [output]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", WIDTH])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(WIDTH, WIDTH)


def test_the_same_weights_pass(linear: nn.Linear, tmp_path: Path) -> None:
    parity = measure(linear_spec(linear), write_linear(tmp_path / "linear.onnx", linear), seed=5)
    assert (parity.seed, parity.batch_sizes, parity.accepted) == (5, [1, 2, 7], None)
    assert parity.max_abs_diff <= 1e-6
    assert parity.tolerance == pytest.approx(1e-5 * parity.max_abs_reference + 1e-5, rel=1e-12)


def test_the_reference_is_that_of_the_recorded_seed(linear: nn.Linear, tmp_path: Path) -> None:
    path = write_linear(tmp_path / "linear.onnx", linear)
    generator = torch.Generator().manual_seed(5)
    largest = max(
        float(linear(torch.randn(batch, WIDTH, generator=generator)).detach().abs().max()) for batch in (1, 2, 7)
    )
    assert measure(linear_spec(linear), path, seed=5).max_abs_reference == largest
    assert measure(linear_spec(linear), path, seed=6).max_abs_reference != largest


def test_a_shifted_bias_is_measured_exactly(linear: nn.Linear, tmp_path: Path) -> None:
    path = write_linear(tmp_path / "linear.onnx", linear)
    with torch.no_grad():
        linear.bias.add_(0.5)
    parity = measure(linear_spec(linear), path, accepted=0.6)
    assert parity.max_abs_diff == pytest.approx(0.5, abs=1e-5)
    assert parity.psnr_db == pytest.approx(20 * math.log10(parity.max_abs_reference / 0.5), abs=1e-3)
    assert parity.accepted == 0.6


@pytest.mark.parametrize(("accepted", "allowed"), [(None, "e-05"), (0.01, "1.000e-02")])
def test_a_perturbed_weight_fails(linear: nn.Linear, tmp_path: Path, accepted: float | None, allowed: str) -> None:
    path = write_linear(tmp_path / "linear.onnx", linear)
    with torch.no_grad():
        linear.weight[2, 1] += 0.1
    with pytest.raises(ExportError, match=r"^linear differs from PyTorch by .* where .* is allowed") as caught:
        measure(linear_spec(linear), path, accepted=accepted, option="--accept-parity linear:")
    assert f"{allowed} is allowed" in str(caught.value)
    assert re.search(r"; to accept that, add --accept-parity linear:\d\.\de-\d\d$", str(caught.value))
    with pytest.raises(ExportError, match=r"dB\)$"):
        measure(linear_spec(linear), path, accepted=accepted)  # where nothing accepts it, nothing is suggested


def test_an_accepted_bound_never_makes_the_usual_one_tighter(linear: nn.Linear, tmp_path: Path) -> None:
    path = write_linear(tmp_path / "linear.onnx", linear)
    with torch.no_grad():
        linear.bias.add_(1e-6)
    assert measure(linear_spec(linear), path, accepted=1e-9).max_abs_diff > 1e-9


def test_equal_to_the_last_bit_has_a_finite_psnr(tmp_path: Path) -> None:
    module = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        module.weight.copy_(torch.eye(WIDTH))
        module.bias.zero_()
    parity = measure(linear_spec(module), write_linear(tmp_path / "linear.onnx", module))
    assert (parity.max_abs_diff, parity.psnr_db) == (0.0, PSNR_CEILING)


def test_a_nan_on_one_side_fails(linear: nn.Linear, tmp_path: Path) -> None:
    sound = nn.Linear(WIDTH, WIDTH)
    sound.load_state_dict(linear.state_dict())
    with torch.no_grad():
        linear.bias[0] = math.nan
    broken = write_linear(tmp_path / "broken.onnx", linear)
    with pytest.raises(ExportError, match="differs from PyTorch by nan"):
        measure(linear_spec(sound), broken, accepted=1e9)
    with pytest.raises(ExportError, match="not finite in PyTorch itself"):
        measure(linear_spec(linear), broken, accepted=1e9)


def test_another_shape_fails(linear: nn.Linear, tmp_path: Path) -> None:
    path = write_linear(tmp_path / "linear.onnx", linear, keep_rows=1)
    with pytest.raises(ExportError, match=r"output has shape \(1, 4\) at \{'batch': 2\}, not \(2, 4\)"):
        measure(linear_spec(linear), path)


def test_a_file_that_is_no_graph_is_one_line(linear: nn.Linear, tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_text("not a graph\n")
    with pytest.raises(ExportError, match=r"^linear.onnx does not load in ONNX Runtime: ") as caught:
        measure(linear_spec(linear), path)
    assert "\n" not in str(caught.value)


def test_inputs_are_drawn_in_their_order_shape_and_range() -> None:
    inputs = {
        "sample": Input(("batch", 1, "width"), normal),
        "timestep": Input(("batch",), uniform(0, 399)),
        "class_labels": Input(("batch",), integers(0, 10)),
        "clip_skip": Input((), integers(1, 1)),
    }
    spec = GraphSpec("unet", nn.Identity(), inputs, {}, {"batch": 2, "width": 3}, ())
    drawn = spec.draw({"batch": 500, "width": 5}, torch.Generator().manual_seed(0))
    assert list(drawn) == list(inputs)
    assert [tuple(tensor.shape) for tensor in drawn.values()] == [(500, 1, 5), (500,), (500,), ()]
    assert [tensor.dtype for tensor in drawn.values()] == [torch.float32, torch.float32, torch.int64, torch.int64]
    assert 0 <= drawn["timestep"].min() < drawn["timestep"].max() <= 399
    assert (drawn["timestep"] != drawn["timestep"].round()).any()  # fractions are promised, so they are tried
    assert set(drawn["class_labels"].tolist()) == set(range(11))  # the null class is among them
