"""Proves that fp16 is measured where everything really is rounded to it: the networks of Stable Diffusion, small and
once at full size, come out finite and close to PyTorch, and what is wrong with one layer or channel is refused."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import full_size
import numpy as np
import onnx
import pytest
import torch
from half_graphs import (
    OVERFLOWING,
    Array,
    convert_with,
    dtypes,
    in_numpy,
    naive,
    noise,
    operators,
    overflowing_graph,
    psnr,
)
from onnx import numpy_helper
from random_weights import POCKET, SMALLEST, random_state
from torch import Tensor, nn

from export.errors import ExportError
from export.graphs import GraphSpec, Input, normal
from export.half import write_half
from export.parity import questions
from export.rounded import load_rounded, measure_half
from export.sd15_graphs import SPECS, modules
from export.stress import stress_inputs
from export.trace import trace
from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.checkpoint.networks import Networks
from training.stable_diffusion.config import SD15


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    return overflowing_graph(tmp_path / "graph.onnx")


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
