"""This runtime as a program under test, through its public functions."""

from __future__ import annotations

from functools import partial

from runtime import load, vae
from runtime.benchmark.protocol import Float32, Operation, decode_inputs, serve, step_inputs
from runtime.class_to_image import ClassToImage
from runtime.conditioning import Conditioning
from runtime.engine import installed_wheels
from runtime.pipeline import Pipeline
from runtime.plan import Plan
from runtime.prediction import predict

ROLES = ("unet", "vae_decoder")


def run(model: str, provider: str) -> int:
    """Load a bundle and answer orders until standard input ends.

    Raises:
        DiffusionError: as ``load`` does.
    """
    pipeline = load(model, provider)
    for role in ROLES:
        if role in pipeline.bundle.graphs:
            pipeline.networks.session(role)
    engine = ", ".join(f"{name} {version}" for name, version in installed_wheels().items())
    operations: dict[str, Operation] = {}
    if isinstance(pipeline, ClassToImage):
        operations["draw"] = partial(draw, pipeline)
    else:
        operations["step"] = partial(step, pipeline, pipeline.plan())
        operations["decode"] = partial(decode, pipeline)
    serve(f"{engine}, provider {pipeline.networks.provider}", operations)
    return 0


def draw(pipeline: ClassToImage, batch: int, steps: int, seed: int) -> None:
    """Images of every class in turn."""
    labels = [k % pipeline.conditioning.num_classes for k in range(batch)]
    pipeline(labels, sampler="ddim", num_inference_steps=steps, seed=seed, batch_size=batch)


def step(
    pipeline: Pipeline,
    plan: Plan,
    latents: list[int],
    text: list[int],
    timestep: float,
    guidance_scale: float,
    seed: int,
) -> Float32:
    """One guided output of the U-Net, (B, C, h, w)."""
    sample, uncond, cond = step_inputs(latents, text, seed)
    conditioning = Conditioning({"encoder_hidden_states": cond}, {"encoder_hidden_states": uncond})
    unet = pipeline.networks.session("unet")
    return predict(unet, sample, timestep, conditioning, guidance_scale, plan, pipeline.networks.low_memory)


def decode(pipeline: Pipeline, latents: list[int], scaling_factor: float, seed: int) -> Float32:
    """The pixels of one image, (3, H, W)."""
    assert pipeline.bundle.latents
    decoder = pipeline.networks.session("vae_decoder")
    return vae.decode(decoder, decode_inputs(latents, seed), scaling_factor, pipeline.bundle.latents.factor)
