"""This runtime as a program under test, through its public functions."""

from __future__ import annotations

from functools import partial

import numpy as np

from runtime import load, vae
from runtime.benchmark.protocol import (
    Float32,
    Operation,
    decode_inputs,
    image_input,
    serve,
    step_inputs,
    token_ids,
)
from runtime.bundle import TextConditioning, open_bundle
from runtime.class_to_image import ClassToImage
from runtime.conditioning import Conditioning
from runtime.engine import installed_wheels
from runtime.pipeline import Pipeline
from runtime.prediction import predict
from runtime.prompt import Chunk
from runtime.session import choose_provider
from runtime.text_encoder import encode_chunks


def run(model: str, provider: str) -> int:
    """Answer orders until standard input ends.

    Raises:
        DiffusionError: as ``load`` does.
    """
    open_bundle(model)
    engine = ", ".join(f"{name} {version}" for name, version in installed_wheels().items())
    operations: dict[str, Operation] = {
        "draw": draw,
        "encode_text": encode_text,
        "step": step,
        "decode": decode,
        "encode_image": encode_image,
    }
    serve(f"{engine}, provider {choose_provider(provider)[0]}", partial(load_graph, model, provider), operations)
    return 0


def load_graph(model: str, provider: str, graph: str, threads: int | None) -> Pipeline:
    """A pipeline that has loaded one graph; the others it would load when they are needed, which they are not."""
    pipeline = load(model, provider, threads)
    pipeline.networks.session(graph)
    return pipeline


def draw(pipeline: ClassToImage, batch: int, steps: int, seed: int) -> None:
    """Images of every class in turn."""
    labels = [k % pipeline.conditioning.num_classes for k in range(batch)]
    pipeline(labels, sampler="ddim", num_inference_steps=steps, seed=seed, batch_size=batch)


def encode_text(pipeline: Pipeline, tokens: list[int], vocab_size: int, seed: int) -> Float32:
    """The last hidden state, (B, L, D)."""
    assert isinstance(pipeline.bundle.conditioning, TextConditioning)
    no_words = np.zeros((1, pipeline.bundle.conditioning.embedding_dim), np.float32)
    chunk = Chunk(token_ids(tokens, vocab_size, seed), np.ones(tokens[1]), no_words)
    return encode_chunks(pipeline.networks.session("text_encoder"), [chunk], clip_skip=0)


def step(
    pipeline: Pipeline, latents: list[int], text: list[int], timestep: float, guidance_scale: float, seed: int
) -> Float32:
    """One guided output of the U-Net, (B, C, h, w)."""
    sample, uncond, cond = step_inputs(latents, text, seed)
    conditioning = Conditioning({"encoder_hidden_states": cond}, {"encoder_hidden_states": uncond})
    networks = pipeline.networks
    unet = networks.session("unet")
    return predict(unet, sample, timestep, conditioning, guidance_scale, pipeline.plan(), networks.in_turn)


def decode(pipeline: Pipeline, latents: list[int], scaling_factor: float, seed: int) -> Float32:
    """The pixels of one image, (3, H, W)."""
    assert pipeline.bundle.latents
    decoder = pipeline.networks.session("vae_decoder")
    return vae.decode(decoder, decode_inputs(latents, seed), scaling_factor, pipeline.bundle.latents.factor)


def encode_image(pipeline: Pipeline, image: list[int], seed: int) -> Float32:
    """The mean of the latents' distribution, (C, h, w)."""
    assert pipeline.bundle.latents
    return vae.encode(
        pipeline.networks.session("vae_encoder"), image_input(image, seed), 1.0, pipeline.bundle.latents.factor
    )
