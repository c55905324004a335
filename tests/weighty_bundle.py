"""A bundle whose graph has what ONNX Runtime rearranges for a processor: convolutions, and products with matrices.

The layout of convolutions' weights is part of the optimised graph; that of matrices is packed beside it. The graph is
that of ``tiny_bundle`` with a detour, so its inputs and outputs are the same.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tiny_bundle
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 32


def graph(seed: int = 0, dtype: npt.DTypeLike = np.float32, channels: int = CHANNELS) -> onnx.ModelProto:
    """The model, with about 70 kB of weights inside.

    Args:
        seed: of the weights.
        dtype: what the detour is computed in.
        channels: the weights grow with their square.
    """
    rng = np.random.default_rng(seed)
    shapes = {
        "conv_in": (channels, 1, 3, 3),
        "conv": (channels, channels, 3, 3),
        "up": (tiny_bundle.SIZE, 512),
        "down": (512, tiny_bundle.SIZE),
        "conv_out": (1, channels, 1, 1),
    }
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(dtype), name)
        for name, shape in shapes.items()
    ]
    model = onnx.load_model_from_string(tiny_bundle.graph())
    detour = [
        helper.make_node("Cast", ["scaled"], ["in"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
        helper.make_node("Conv", ["in", "conv_in"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["c", "up"], ["d"]),
        helper.make_node("Tanh", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "down"], ["f"]),
        helper.make_node("Conv", ["f", "conv_out"], ["g"]),
        helper.make_node("Cast", ["g"], ["out"], to=TensorProto.FLOAT),
    ]
    last = model.graph.node.pop()
    last.input[0] = "out"
    model.graph.node.extend([*detour, last])
    model.graph.initializer.extend(weights)
    onnx.checker.check_model(model)
    return model


def write(folder: Path, seed: int = 0, external: bool = False, **size: Any) -> Path:
    """Write the bundle into ``folder``/weighty, with its weights inside the graph or in a file beside it.

    ``size`` is what ``graph`` takes beside the seed.
    """
    target = folder / "weighty"
    target.mkdir(parents=True)
    path = target / "unet.onnx"
    data = f"{path.name}.data"
    onnx.save_model(graph(seed, **size), path, save_as_external_data=external, location=data, size_threshold=1024)
    manifest = tiny_bundle.manifest(path.read_bytes()) | {"name": "weighty"}
    if external:
        manifest["graphs"]["unet"]["fp32"]["external_data"] = [describe(target / data)]
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def describe(path: Path) -> dict[str, object]:
    contents = path.read_bytes()
    return {"file": path.name, "size": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}


def tensor_locations(model: bytes) -> set[str]:
    """Where the weights of a serialised model lie."""
    tensors = onnx.load_model_from_string(model).graph.initializer
    external = (tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL)
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
