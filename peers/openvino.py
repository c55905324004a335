"""The plain export in OpenVINO's own runtime, on the CPU.

    --peer "OpenVINO fp32=.venv/openvino/bin/python -m peers.openvino FOLDER"
    --peer "OpenVINO bf16=.venv/openvino/bin/python -m peers.openvino FOLDER --dtype bf16"

FOLDER is one that ``python -m peers.plain_export`` made. The graphs are read as ONNX and compiled with the hints that a
user would give: inference precision f32 or bf16 (without one OpenVINO chooses bfloat16 wherever the processor has it),
and latency. Its own conversion tools, which report their use, are not loaded.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from peers.exported import STATES, Network, add_arguments, run
from runtime.benchmark.protocol import Float32

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def engine() -> Any:
    """OpenVINO, which is in an environment of its own, where nothing checks types."""
    return importlib.import_module("openvino")


def load(folder: Path, dtype: str, graph: str, threads: int | None) -> Network:
    """One graph, compiled for the CPU."""
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    model = engine().Core().compile_model(str(folder / graph / "model.onnx"), "CPU", options)
    wanted = next((output for output in model.outputs if STATES in output.names), model.outputs[0])
    types = {name: each.element_type.to_dtype() for each in model.inputs for name in each.names}

    def compute(inputs: Mapping[str, npt.NDArray[Any]]) -> Float32:
        cast = {name: np.asarray(value, types[name]) for name, value in inputs.items()}
        return np.asarray(model(cast)[wanted], np.float32)

    return Network(compute)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.openvino", description=__doc__)
    parser.add_argument("--dtype", choices=PRECISIONS, default="fp32")
    add_arguments(parser)
    arguments = parser.parse_args()
    try:
        version = engine().__version__
    except ImportError as error:
        parser.error(f"OpenVINO does not load here ({error}); make .venv/openvino/.ready, and run its Python")
    run(f"OpenVINO {version}, {arguments.dtype}", partial(load, arguments.folder, arguments.dtype), arguments)


if __name__ == "__main__":
    main()
