"""Proves that tracing is general, on a network of a few hundred weights: several inputs and dynamic dimensions, weights
that the exporter likes to transpose and rename, weights in a file of their own; and that a graph which came out
otherwise than its spec says is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.errors import ExportError
from export.graphs import GraphSpec, Input, integers, normal
from export.parity import measure
from export.trace import TracedGraph, trace

pytestmark = pytest.mark.slow  # the exporter takes seconds, however small the network

WIDTH, TOKENS = 8, 11


class TextToImage(nn.Module):
    """Tokens of any number modulate an image of any size; layers that are awkward to export."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)  # leaves exporters as an anonymous transposed matrix
        self.norm = nn.LayerNorm(WIDTH)
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.group_norm = nn.GroupNorm(2, WIDTH)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, sample: Tensor, input_ids: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.query(self.embedding(input_ids)))  # (B, L, D)
        image = self.group_norm(self.conv(sample)) * self.scale  # (B, D, H, W)
        return image + hidden.mean(1)[:, :, None, None] + skip, hidden


@pytest.fixture(scope="module")
def spec() -> GraphSpec:
    torch.manual_seed(0)
    return GraphSpec(
        role="text_to_image",
        module=TextToImage(),
        inputs={
            "sample": Input(("batch", 3, "height", "width"), normal),
            "input_ids": Input(("batch", "length"), integers(0, TOKENS - 1)),
            "skip": Input((), normal),
        },
        outputs={"out_sample": ("batch", WIDTH, "height", "width"), "hidden": ("batch", "length", WIDTH)},
        example_sizes={"batch": 2, "height": 6, "width": 5, "length": 7},
        parity_sizes=(
            {"batch": 1, "height": 5, "width": 8, "length": 3},
            {"batch": 3, "height": 9, "width": 4, "length": 21},
        ),
    )


@pytest.fixture(scope="module")
def traced(spec: GraphSpec, tmp_path_factory: pytest.TempPathFactory) -> TracedGraph:
    return trace(spec, tmp_path_factory.mktemp("traced") / "graph.onnx")


def test_every_dimension_that_is_named_is_dynamic(spec: GraphSpec, traced: TracedGraph) -> None:
    assert [(entry["name"], entry["dtype"], entry["shape"]) for entry in traced.inputs] == [
        ("sample", "float32", ["batch", 3, "height", "width"]),
        ("input_ids", "int64", ["batch", "length"]),
        ("skip", "float32", []),
    ]
    assert [entry["shape"] for entry in traced.outputs] == [
        ["batch", WIDTH, "height", "width"],
        ["batch", "length", WIDTH],
    ]
    assert measure(spec, traced.path).batch_sizes == [1, 3]  # at sizes that it was not traced with


def test_weights_keep_their_names_and_are_found_again(spec: GraphSpec, traced: TracedGraph) -> None:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(traced.path).graph.initializer}
    weights = spec.module.state_dict()
    turned = {"query.weight"}  # as MatMul wants it; nothing is left to be transposed when the graph is loaded
    assert traced.initializers == {name: {"name": name, "transposed": name in turned} for name in weights}
    for name, weight in weights.items():
        expected = weight.T if name in turned else weight
        np.testing.assert_array_equal(stored[name], expected.numpy(), err_msg=name)
    assert not any(node.op_type == "Transpose" for node in onnx.load(traced.path).graph.node)


def test_weights_above_the_limit_lie_beside_the_graph(spec: GraphSpec, traced: TracedGraph, tmp_path: Path) -> None:
    assert traced.external_data is None
    apart = trace(spec, tmp_path / "graph.onnx", external_data_above=1000)
    assert apart.external_data is not None
    assert apart.external_data == tmp_path / "graph.onnx.data"
    assert apart.initializers == traced.initializers
    inputs = {name: tensor.numpy() for name, tensor in spec.draw(spec.example_sizes, torch.Generator()).items()}
    one, other = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
        for path in (traced.path, apart.path)
    )
    np.testing.assert_array_equal(one[0], other[0])
    apart.external_data.unlink()
    with pytest.raises(ExportError, match=r"^graph.onnx does not load in ONNX Runtime"):  # they really were there
        measure(spec, apart.path)


@pytest.mark.parametrize("external_data_above", [0, 2**30])
def test_a_full_disk_is_told(spec: GraphSpec, small_disk: Path, external_data_above: int) -> None:
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OSError, match=r"[Ss]pace"):
        trace(spec, small_disk / "graph.onnx", external_data_above)


class Awkward(nn.Module):
    """Means over an image, by a body that the test chooses."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, sample: Tensor, input_ids: Tensor, skip: Tensor) -> Tensor:
        return self.body(sample) + skip + input_ids.sum()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        # The exporter itself takes this one, and says nothing of the batch size that it has frozen.
        (lambda sample: sample.mean((2, 3)).reshape(2, 3), r"sample came out as \[2, 3, 'height', 'width'\] where"),
        (lambda sample: sample.mean((2, 3)) if sample.sum() > 0 else sample.amax((2, 3)), "cannot be traced: "),
    ],
)
def test_a_network_that_cannot_be_traced_as_specified_is_refused(
    spec: GraphSpec, tmp_path: Path, body: Callable[[Tensor], Tensor], message: str
) -> None:
    awkward = replace(spec, module=Awkward(body), outputs={"out_sample": ("batch", 3)})
    with pytest.raises(ExportError, match=f"^text_to_image(:)? {message}") as caught:
        trace(awkward, tmp_path / "graph.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_as_specified_are_refused(spec: GraphSpec, tmp_path: Path) -> None:
    wrong = replace(
        spec, outputs={"out_sample": ("batch", WIDTH + 1, "height", "width"), "hidden": (2, "length", WIDTH)}
    )
    with pytest.raises(
        ExportError, match=r"out_sample came out as \['batch', 8, 'height', 'width'\] where \['batch', 9"
    ):
        trace(wrong, tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []
