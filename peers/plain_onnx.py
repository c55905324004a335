"""A plain export in ONNX Runtime, as Optimum-ONNX runs it.

    --peer "plain ONNX=python -m peers.plain_onnx FOLDER"

FOLDER is one that ``python -m peers.plain_export`` made, or, but for whole pictures, Optimum-ONNX (``optimum-cli export
onnx``). Sessions are opened by path with default options on the CPU's provider and run without IO binding, as
``ORTStableDiffusionPipeline`` does there.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

from peers.exported import Network, add_arguments, run


def load(folder: Path, graph: str, threads: int | None) -> Network:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / graph / "model.onnx", options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    ids = np.int64 if session.get_inputs()[0].type == "tensor(int64)" else np.int32
    return Network(lambda inputs: session.run([first], inputs)[0], ids)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.plain_onnx", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    run(f"onnxruntime {onnxruntime.__version__}", partial(load, arguments.folder), arguments)


if __name__ == "__main__":
    main()
