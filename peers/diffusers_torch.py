"""diffusers in PyTorch, eager, as ``StableDiffusionPipeline`` runs its networks.

    --peer "diffusers fp32=python -m peers.diffusers_torch FOLDER"
    --peer "diffusers bf16=python -m peers.diffusers_torch FOLDER --dtype bf16"

FOLDER is a checkpoint in diffusers' layout, of which ``unet`` and ``vae`` are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from peers.arguments import existing
from runtime.benchmark.protocol import Float32, decode_inputs, serve, step_inputs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.inference_mode()
def step(
    unet: UNet2DConditionModel,
    latents: Sequence[int],
    text: Sequence[int],
    timestep: float,
    guidance_scale: float,
    seed: int,
) -> Float32:
    """One guided step: the U-Net on both halves in one batch."""
    sample, uncond, cond = (torch.from_numpy(array).to(unet.dtype) for array in step_inputs(latents, text, seed))
    output: Tensor = unet(torch.cat([sample, sample]), timestep, torch.cat([uncond, cond]), return_dict=False)[0]
    uncond_output, cond_output = output.chunk(2)
    return (uncond_output + guidance_scale * (cond_output - uncond_output)).float().numpy()


@torch.inference_mode()
def decode(vae: AutoencoderKL, latents: Sequence[int], scaling_factor: float, seed: int) -> Float32:
    """One image's pixels."""
    scaled = torch.from_numpy(decode_inputs(latents, seed)).to(vae.dtype) / scaling_factor
    output: Tensor = vae.decode(scaled, return_dict=False)[0]
    return output.float().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.diffusers_torch", description=__doc__)
    parser.add_argument("folder", type=existing("unet/config.json", "vae/config.json"), help="a checkpoint's folder")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    arguments = parser.parse_args()
    dtype = DTYPES[arguments.dtype]
    unet = UNet2DConditionModel.from_pretrained(arguments.folder / "unet", torch_dtype=dtype).eval()
    vae = AutoencoderKL.from_pretrained(arguments.folder / "vae", torch_dtype=dtype).eval()
    serve(
        f"diffusers {diffusers.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{arguments.dtype}",
        {"step": partial(step, unet), "decode": partial(decode, vae)},
    )


if __name__ == "__main__":
    main()
