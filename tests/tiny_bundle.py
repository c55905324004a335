"""A bundle of one kilobyte for tests of the runtime: a network whose answers are known in closed form.

    out_sample = sample · t / (t + 1) + class_labels / 10

Three classes (the null class is 3), images of 1 x 8 x 8, 100 training timesteps.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from runtime.plan import NoiseSchedule, compile_plan

CLASSES, SIZE, TRAIN_STEPS = 3, 8, 100


def network(sample: np.ndarray, timestep: float, class_labels: np.ndarray) -> np.ndarray:
    """What the graph computes, in NumPy."""
    t = np.float32(timestep)
    return sample * (t / (t + np.float32(1))) + (class_labels.astype(np.float32) / np.float32(10))[:, None, None, None]


def alphas_cumprod() -> np.ndarray:
    return np.cumprod(1 - np.linspace(1e-3, 0.1, TRAIN_STEPS))


def graph() -> bytes:
    nodes = [
        helper.make_node("Unsqueeze", ["timestep", "axes"], ["t"]),
        helper.make_node("Add", ["t", "one"], ["t_plus_one"]),
        helper.make_node("Div", ["t", "t_plus_one"], ["ratio"]),
        helper.make_node("Mul", ["sample", "ratio"], ["scaled"]),
        helper.make_node("Cast", ["class_labels"], ["labels_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["labels_float", "axes"], ["labels_4d"]),
        helper.make_node("Div", ["labels_4d", "ten"], ["shift"]),
        helper.make_node("Add", ["scaled", "shift"], ["out_sample"]),
    ]
    image = ["batch", 1, SIZE, SIZE]
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, image),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["batch"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0]),
    ]
    outputs = [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, image)]
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return model.SerializeToString()


def manifest(model: bytes) -> dict[str, Any]:
    schedule = NoiseSchedule(alphas_cumprod())
    image = ["batch", 1, SIZE, SIZE]
    return {
        "format_version": 1,
        "name": "tiny",
        "family": "class-conditional-ddpm",
        "provenance": {"source": "by hand", "sha256": "", "licence": "Apache-2.0", "training": None, "exporter": {}},
        "graphs": {
            "unet": {
                "fp32": {
                    "file": "unet.onnx",
                    "size": len(model),
                    "sha256": hashlib.sha256(model).hexdigest(),
                    "external_data": [],
                    "inputs": [
                        {"name": "sample", "dtype": "float32", "shape": image},
                        {"name": "timestep", "dtype": "float32", "shape": ["batch"]},
                        {"name": "class_labels", "dtype": "int64", "shape": ["batch"]},
                    ],
                    "outputs": [{"name": "out_sample", "dtype": "float32", "shape": image}],
                    "providers": ["any"],
                    "opset": 20,
                    "parity": {},
                    "initializers": {},
                }
            }
        },
        "noise_schedule": {
            "num_train_timesteps": TRAIN_STEPS,
            "alphas_cumprod": schedule.alphas_cumprod.tolist(),
            "prediction_type": "epsilon",
            "final_alpha_cumprod": 1.0,
            "timestep_spacing": "trailing",
            "steps_offset": 0,
            "betas": {},
        },
        "pixels": {"channels": 1, "height": SIZE, "width": SIZE},
        "latents": None,
        "unet_input": [{"name": "sample", "channels": 1}],
        "conditioning": {
            "kind": "class",
            "num_classes": CLASSES,
            "null_class": CLASSES,
            "names": ["cat", "dog", "owl"],
        },
        "defaults": {
            "sampler": "ddim",
            "num_inference_steps": 10,
            "guidance_scale": 2.0,
            "width": SIZE,
            "height": SIZE,
        },
        "plans": {"ddim-10": compile_plan(schedule, "ddim", 10).to_json()},
    }


def write(folder: Path) -> Path:
    """Write the bundle into ``folder``/tiny."""
    target = folder / "tiny"
    target.mkdir(parents=True)
    model = graph()
    (target / "unet.onnx").write_bytes(model)
    (target / "manifest.json").write_text(json.dumps(manifest(model)))
    return target
