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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peers.exported import Network, add_arguments, run

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
    ids = np.int64 if "i64" in str(model.input(0).element_type) else np.int32
    return Network(lambda inputs: np.asarray(model(inputs)[0], np.float32), ids)


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
