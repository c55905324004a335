"""diffusers in PyTorch, eager, as ``StableDiffusionPipeline`` runs its networks.

    --peer "diffusers fp32=python -m peers.diffusers_torch FOLDER"
    --peer "diffusers bf16=python -m peers.diffusers_torch FOLDER --dtype bf16"

FOLDER is a checkpoint in diffusers' layout. Whole pictures are drawn by ``StableDiffusionPipeline`` itself, with DDIM
and a CPU generator; the tokenizer is the folder's, or CLIP's own where it has none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from peers.arguments import add_picture_arguments, existing
from peers.checkpoint import tokenizer_file
from peers.picture import BEGIN, END, TOKENS
from runtime.benchmark.process import FIRST_STEP
from runtime.benchmark.protocol import (
    Float32,
    decode_inputs,
    image_input,
    serve,
    step_inputs,
    token_ids,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(folder: Path, dtype: torch.dtype, graph: str, threads: int | None) -> Any:
    """The network that holds a graph: for both halves of the VAE the same."""
    if threads is not None:
        torch.set_num_threads(threads)
    if graph == "text_encoder":
        return CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=dtype).eval()
    kind = UNet2DConditionModel if graph == "unet" else AutoencoderKL
    return kind.from_pretrained(folder / graph.partition("_")[0], torch_dtype=dtype).eval()


@torch.inference_mode()
def encode_text(encoder: CLIPTextModel, tokens: Sequence[int], vocab_size: int, seed: int) -> Float32:
    """The last hidden state."""
    states: Tensor = encoder(torch.from_numpy(token_ids(tokens, vocab_size, seed))).last_hidden_state
    return states.float().numpy()


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


@torch.inference_mode()
def encode_image(vae: AutoencoderKL, image: Sequence[int], seed: int) -> Float32:
    """The mean of one image's latents."""
    mean: Tensor = vae.encode(torch.from_numpy(image_input(image, seed)).to(vae.dtype)).latent_dist.mean
    return mean.float().numpy()


def draw(folder: Path, dtype: torch.dtype, request: argparse.Namespace) -> None:
    """One picture by the pipeline."""
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())
    pipeline = StableDiffusionPipeline(
        vae=load(folder, dtype, "vae_decoder", None),
        text_encoder=load(folder, dtype, "text_encoder", None),
        tokenizer=CLIPTokenizer(tokenizer_file=str(tokenizer_file(folder)), model_max_length=TOKENS, **special),
        unet=load(folder, dtype, "unet", None),
        scheduler=DDIMScheduler.from_config({k: v for k, v in scheduler.items() if not k.startswith("_")}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def begin(*_: Any) -> None:
        print(FIRST_STEP, file=sys.stderr, flush=True)
        hook.remove()

    hook = pipeline.unet.register_forward_pre_hook(begin)
    width, height = request.size
    # Drawn in float32 and then rounded: in bfloat16 PyTorch would draw other noise.
    shape = (1, pipeline.unet.config.in_channels, *(side // pipeline.vae_scale_factor for side in (height, width)))
    latents = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(request.seed)).to(dtype)
    pictures = pipeline(
        request.prompt,
        width=width,
        height=height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        latents=latents,
    )
    pictures.images[0].save(request.output)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.diffusers_torch", description=__doc__)
    parser.add_argument("folder", type=existing("unet/config.json", "vae/config.json"), help="a checkpoint's folder")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    add_picture_arguments(parser)
    arguments = parser.parse_args()
    dtype = DTYPES[arguments.dtype]
    if arguments.prompt is not None:
        draw(arguments.folder, dtype, arguments)
        return
    serve(
        f"diffusers {diffusers.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{arguments.dtype}",
        partial(load, arguments.folder, dtype),
        {"encode_text": encode_text, "step": step, "decode": decode, "encode_image": encode_image},
    )


if __name__ == "__main__":
    main()
