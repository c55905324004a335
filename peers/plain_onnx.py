"""A plain export in ONNX Runtime, as Optimum-ONNX runs it.

    --peer "plain ONNX=python -m peers.plain_onnx FOLDER"

FOLDER is one that ``python -m peers.plain_export`` made, or, but for whole pictures, Optimum-ONNX (``optimum-cli export
onnx``). Sessions are opened by path with default options on the CPU's provider and run without IO binding, as
``ORTStableDiffusionPipeline`` does there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

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

UNET, VAE_DECODER = "unet/model.onnx", "vae_decoder/model.onnx"


def load(folder: Path, graph: str, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(folder / graph / "model.onnx", options, providers=["CPUExecutionProvider"])


def encode_text(encoder: onnxruntime.InferenceSession, tokens: Sequence[int], vocab_size: int, seed: int) -> Float32:
    """The last hidden state."""
    return encode_ids(encoder, token_ids(tokens, vocab_size, seed))


def encode_ids(encoder: onnxruntime.InferenceSession, ids: Int64) -> Float32:
    dtype = np.int64 if encoder.get_inputs()[0].type == "tensor(int64)" else np.int32
    states: Float32 = encoder.run(["last_hidden_state"], {"input_ids": ids.astype(dtype)})[0]
    return states


def predict(unet: onnxruntime.InferenceSession, sample: Float32, timestep: float, states: Float32) -> Float32:
    inputs = {"sample": sample, "timestep": np.array(timestep, np.float32), "encoder_hidden_states": states}
    noise: Float32 = unet.run(None, inputs)[0]
    return noise


def step(
    unet: onnxruntime.InferenceSession,
    latents: Sequence[int],
    text: Sequence[int],
    timestep: float,
    guidance_scale: float,
    seed: int,
) -> Float32:
    """One guided step: the U-Net on both halves in one batch."""
    sample, uncond, cond = step_inputs(latents, text, seed)
    output = predict(unet, np.concatenate([sample, sample]), timestep, np.concatenate([uncond, cond]))
    uncond_output, cond_output = np.split(output, 2)
    guided: Float32 = uncond_output + np.float32(guidance_scale) * (cond_output - uncond_output)
    return guided


def decode(decoder: onnxruntime.InferenceSession, latents: Sequence[int], scaling_factor: float, seed: int) -> Float32:
    """One image's pixels."""
    output: Float32 = decoder.run(None, {"latent_sample": decode_inputs(latents, seed) / np.float32(scaling_factor)})[0]
    return output


def encode_image(encoder: onnxruntime.InferenceSession, image: Sequence[int], seed: int) -> Float32:
    """The mean of one image's latents."""
    parameters: Float32 = encoder.run(None, {"sample": image_input(image, seed)})[0]
    return parameters[:, : parameters.shape[1] // 2]


class Networks:
    """All three in memory, as a pipeline holds them."""

    def __init__(self, folder: Path) -> None:
        self.encoder, self.unet, self.decoder = (
            load(folder, graph, None) for graph in ("text_encoder", "unet", "vae_decoder")
        )

    def encode(self, ids: Int64) -> Float32:
        return encode_ids(self.encoder, ids)

    def predict(self, sample: Float32, timestep: float, states: Float32) -> Float32:
        return predict(self.unet, sample, timestep, states)

    def decode(self, latents: Float32) -> Float32:
        pixels: Float32 = self.decoder.run(None, {"latent_sample": latents})[0]
        return pixels


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.plain_onnx", description=__doc__)
    parser.add_argument("folder", type=existing(UNET, VAE_DECODER), help="an exported folder")
    add_picture_arguments(parser)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.prompt is not None:
        picture.draw(partial(Networks, folder), folder, arguments)
        return
    operations: dict[str, Operation] = {
        "encode_text": encode_text,
        "step": step,
        "decode": decode,
        "encode_image": encode_image,
    }
    serve(f"onnxruntime {onnxruntime.__version__}", partial(load, folder), operations)


if __name__ == "__main__":
    main()
