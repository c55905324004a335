"""A plain export in ONNX Runtime, as Optimum-ONNX runs it.

    --peer "plain ONNX=python -m peers.plain_onnx FOLDER"

FOLDER is one that ``python -m peers.plain_export`` made, or, but for whole pictures, Optimum-ONNX (``optimum-cli export
onnx``). Sessions are opened by path with default options on the CPU's provider and run without IO binding, as
``ORTStableDiffusionPipeline`` does there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from peers.exported import STATES, Network, add_arguments, run
from runtime.benchmark.protocol import Float32

DTYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64}


def load(folder: Path, graph: str, threads: int | None) -> Network:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / graph / "model.onnx", options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    wanted = [STATES if STATES in outputs else outputs[0]]
    types = {each.name: DTYPES[each.type] for each in session.get_inputs()}

    def compute(inputs: Mapping[str, npt.NDArray[Any]]) -> Float32:
        found: Float32 = session.run(wanted, {name: np.asarray(value, types[name]) for name, value in inputs.items()})[
            0
        ]
        return found

    return Network(compute)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.plain_onnx", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    run(f"onnxruntime {onnxruntime.__version__}", partial(load, arguments.folder), arguments)


if __name__ == "__main__":
    main()
