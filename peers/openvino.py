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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peers import picture
from peers.arguments import add_picture_arguments, existing
from runtime.benchmark.protocol import (
    Float32,
    Int64,
    Operation,
    decode_inputs,
    image_input,
    serve,
    step_inputs,
    token_ids,
)

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
UNET, VAE_DECODER = "unet/model.onnx", "vae_decoder/model.onnx"


def engine() -> Any:
    """OpenVINO, which is in an environment of its own, where nothing checks types."""
    return importlib.import_module("openvino")


def load(folder: Path, dtype: str, graph: str, threads: int | None) -> Any:
    """One graph, compiled for the CPU."""
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return engine().Core().compile_model(str(folder / graph / "model.onnx"), "CPU", options)


def encode_text(encoder: Any, tokens: Sequence[int], vocab_size: int, seed: int) -> Float32:
    """The last hidden state."""
    return encode_ids(encoder, token_ids(tokens, vocab_size, seed))


def encode_ids(encoder: Any, ids: Int64) -> Float32:
    dtype = np.int64 if "i64" in str(encoder.input("input_ids").element_type) else np.int32
    found = encoder({"input_ids": ids.astype(dtype)})[encoder.output("last_hidden_state")]
    return np.asarray(found, np.float32)


def predict(unet: Any, sample: Float32, timestep: float, states: Float32) -> Float32:
    inputs = {"sample": sample, "timestep": np.array(timestep, np.float32), "encoder_hidden_states": states}
    return np.asarray(unet(inputs)[0], np.float32)


def step(
    unet: Any, latents: Sequence[int], text: Sequence[int], timestep: float, guidance_scale: float, seed: int
) -> Float32:
    """One guided step: the U-Net on both halves in one batch."""
    sample, uncond, cond = step_inputs(latents, text, seed)
    output = predict(unet, np.concatenate([sample, sample]), timestep, np.concatenate([uncond, cond]))
    uncond_output, cond_output = np.split(output, 2)
    guided: Float32 = uncond_output + np.float32(guidance_scale) * (cond_output - uncond_output)
    return guided


def decode(decoder: Any, latents: Sequence[int], scaling_factor: float, seed: int) -> Float32:
    """One image's pixels."""
    return np.asarray(decoder({"latent_sample": decode_inputs(latents, seed) / np.float32(scaling_factor)})[0])


def encode_image(encoder: Any, image: Sequence[int], seed: int) -> Float32:
    """The mean of one image's latents."""
    parameters = np.asarray(encoder({"sample": image_input(image, seed)})[0])
    return parameters[:, : parameters.shape[1] // 2]


class Networks:
    """All three in memory, as a pipeline holds them."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.encoder, self.unet, self.decoder = (
            load(folder, dtype, graph, None) for graph in ("text_encoder", "unet", "vae_decoder")
        )

    def encode(self, ids: Int64) -> Float32:
        return encode_ids(self.encoder, ids)

    def predict(self, sample: Float32, timestep: float, states: Float32) -> Float32:
        return predict(self.unet, sample, timestep, states)

    def decode(self, latents: Float32) -> Float32:
        return np.asarray(self.decoder({"latent_sample": latents})[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.openvino", description=__doc__)
    parser.add_argument("folder", type=existing(UNET, VAE_DECODER), help="an exported folder")
    parser.add_argument("--dtype", choices=PRECISIONS, default="fp32")
    add_picture_arguments(parser)
    arguments = parser.parse_args()
    folder, dtype = arguments.folder, arguments.dtype
    try:
        version = engine().__version__
    except ImportError as error:
        parser.error(f"OpenVINO does not load here ({error}); make .venv/openvino/.ready, and run its Python")
    if arguments.prompt is not None:
        picture.draw(partial(Networks, folder, dtype), folder, arguments)
        return
    operations: dict[str, Operation] = {
        "encode_text": encode_text,
        "step": step,
        "decode": decode,
        "encode_image": encode_image,
    }
    serve(f"OpenVINO {version}, {dtype}", partial(load, folder, dtype), operations)


if __name__ == "__main__":
    main()
