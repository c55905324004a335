"""The networks of a plain export, whatever engine computes them: what one order asks, and what a picture needs.

An engine gives a ``Network`` for a graph; all that programs for the same folder have in common is here, so that they do
the same work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
STATES = "last_hidden_state"  # of a text encoder, beside the pooled one


@dataclass(frozen=True)
class Network:
    """One graph, ready to compute.

    Attributes:
        compute: takes its inputs by name, in types that can be cast to the graph's, and gives the output that counts:
            that called ``STATES``, or else the first.
    """

    compute: Callable[[Mapping[str, npt.NDArray[Any]]], Float32]

    def encode(self, ids: Int64) -> Float32:
        """Ids (1, 77) -> last hidden state (1, 77, D)."""
        return self.compute({"input_ids": ids})

    def predict(self, sample: Float32, timestep: float, states: Float32) -> Float32:
        """Samples (B, C, h, w) and hidden states (B, 77, D) -> noise (B, C, h, w)."""
        inputs = {"sample": sample, "timestep": np.array(timestep, np.float32), "encoder_hidden_states": states}
        return self.compute(inputs)

    def decode(self, latents: Float32) -> Float32:
        """Latents (1, C, h, w) by the scaling factor -> pixels (1, 3, H, W) in [-1, 1]."""
        return self.compute({"latent_sample": latents})


Load = Callable[[str, int | None], Network]  # the graph of a role, for so many threads


def encode_text(encoder: Network, tokens: Sequence[int], vocab_size: int, seed: int) -> Float32:
    """The last hidden state."""
    return encoder.encode(token_ids(tokens, vocab_size, seed))


def step(
    unet: Network, latents: Sequence[int], text: Sequence[int], timestep: float, guidance_scale: float, seed: int
) -> Float32:
    """One guided step: the U-Net on both halves in one batch."""
    sample, uncond, cond = step_inputs(latents, text, seed)
    output = unet.predict(np.concatenate([sample, sample]), timestep, np.concatenate([uncond, cond]))
    uncond_output, cond_output = np.split(output, 2)
    guided: Float32 = uncond_output + np.float32(guidance_scale) * (cond_output - uncond_output)
    return guided


def decode(decoder: Network, latents: Sequence[int], scaling_factor: float, seed: int) -> Float32:
    """One image's pixels."""
    return decoder.decode(decode_inputs(latents, seed) / np.float32(scaling_factor))


def encode_image(encoder: Network, image: Sequence[int], seed: int) -> Float32:
    """The mean of one image's latents."""
    parameters = encoder.compute({"sample": image_input(image, seed)})
    return parameters[:, : parameters.shape[1] // 2]


OPERATIONS: dict[str, Operation] = {
    "encode_text": encode_text,
    "step": step,
    "decode": decode,
    "encode_image": encode_image,
}


class Networks:
    """All three in memory, as a pipeline holds them."""

    def __init__(self, load: Load) -> None:
        encoder, unet, decoder = (load(graph, None) for graph in ("text_encoder", "unet", "vae_decoder"))
        self.encode, self.predict, self.decode = encoder.encode, unet.predict, decoder.decode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A plain export's folder, and the words of a picture."""
    parser.add_argument("folder", type=existing(UNET, VAE_DECODER), help="an exported folder")
    add_picture_arguments(parser)


def run(title: str, load: Load, arguments: argparse.Namespace) -> None:
    """Draw the picture that was asked for, or answer orders.

    Args:
        title: what computes, with its version.
        load: makes one network ready.
        arguments: what ``add_arguments`` has read.
    """
    folder: Path = arguments.folder
    if arguments.prompt is not None:
        picture.draw(lambda: Networks(load), folder, arguments)
    else:
        serve(title, load, OPERATIONS)
