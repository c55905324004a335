"""A plain export in ONNX Runtime, as Optimum-ONNX runs it.

    --peer "plain ONNX=python -m peers.plain_onnx FOLDER"

FOLDER is one that Optimum-ONNX (``optimum-cli export onnx``) or ``python -m peers.plain_export`` made. Sessions
are opened by path with default options on the CPU's provider and run without IO binding, as
``ORTStableDiffusionPipeline`` does there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnxruntime

from peers.arguments import existing
from runtime.benchmark.protocol import Float32, decode_inputs, serve, step_inputs

UNET, VAE_DECODER = "unet/model.onnx", "vae_decoder/model.onnx"


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
    output = unet.run(
        None,
        {
            "sample": np.concatenate([sample, sample]),
            "timestep": np.array(timestep, np.float32),
            "encoder_hidden_states": np.concatenate([uncond, cond]),
        },
    )[0]
    uncond_output, cond_output = np.split(output, 2)
    guided: Float32 = uncond_output + np.float32(guidance_scale) * (cond_output - uncond_output)
    return guided


def decode(decoder: onnxruntime.InferenceSession, latents: Sequence[int], scaling_factor: float, seed: int) -> Float32:
    """One image's pixels."""
    output: Float32 = decoder.run(None, {"latent_sample": decode_inputs(latents, seed) / np.float32(scaling_factor)})[0]
    return output


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.plain_onnx", description=__doc__)
    parser.add_argument("folder", type=existing(UNET, VAE_DECODER), help="an exported folder")
    folder = parser.parse_args().folder
    unet, decoder = (
        onnxruntime.InferenceSession(folder / graph, providers=["CPUExecutionProvider"])
        for graph in (UNET, VAE_DECODER)
    )
    serve(f"onnxruntime {onnxruntime.__version__}", {"step": partial(step, unet), "decode": partial(decode, decoder)})


if __name__ == "__main__":
    main()
