"""A whole picture by three networks in NumPy, for the programs that bring no pipeline of their own.

It is diffusers' ``StableDiffusionPipeline`` with its DDIM scheduler, without PyTorch, diffusers and transformers, which
Optimum's pipelines load, too: seconds and hundreds of megabytes that are not counted here, in these peers' favour.
Noise is PyTorch's own on a CPU, so that pictures can be compared with those of all others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from runtime.benchmark.process import FIRST_STEP
from runtime.benchmark.protocol import Float32, Int64
from runtime.noise import noise_generator

TOKENIZER, SCHEDULER, VAE = "tokenizer.json", "scheduler_config.json", "vae_config.json"
FILES = (TOKENIZER, SCHEDULER, VAE)
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 77


class Networks(Protocol):
    """What a peer computes with; float32 at the boundary."""

    def encode(self, ids: Int64) -> Float32:
        """Ids (1, 77) -> last hidden state (1, 77, D)."""

    def predict(self, sample: Float32, timestep: float, states: Float32) -> Float32:
        """Samples (B, C, h, w) and hidden states (B, 77, D) -> noise (B, C, h, w)."""

    def decode(self, latents: Float32) -> Float32:
        """Latents (1, C, h, w) by the scaling factor -> pixels (1, 3, H, W) in [-1, 1]."""


def draw(open_networks: Callable[[], Networks], folder: Path, request: argparse.Namespace) -> None:
    """Draw what ``arguments.add_picture_arguments`` has read, by the networks and the three ``FILES`` of a folder."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        sys.exit(f"error: {folder} holds no {missing[0]}, which whole pictures need; make it by peers.plain_export")
    networks = open_networks()
    facts: dict[str, dict[str, Any]] = {name: json.loads((folder / name).read_bytes()) for name in (SCHEDULER, VAE)}
    factor = 2 ** (len(facts[VAE]["block_out_channels"]) - 1)
    width, height = request.size
    read = tokenizer(folder / TOKENIZER)
    states = np.concatenate([networks.encode(read(text)) for text in ("", request.prompt)])
    shape = (facts[VAE]["latent_channels"], height // factor, width // factor)
    sample = noise_generator("torch", request.seed).draw(shape)[None]
    print(FIRST_STEP, file=sys.stderr, flush=True)
    for timestep, sample_weight, noise_weight in ddim(facts[SCHEDULER], request.steps):
        uncond, cond = np.split(networks.predict(np.concatenate([sample, sample]), timestep, states), 2)
        noise = uncond + np.float32(request.guidance_scale) * (cond - uncond)
        sample = (sample_weight * sample + noise_weight * noise).astype(np.float32)
    pixels = networks.decode(sample / np.float32(facts[VAE].get("scaling_factor", 0.18215)))[0]
    levels = ((pixels.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(levels).save(request.output)


def tokenizer(path: Path) -> Callable[[str], Int64]:
    """CLIP's: begin, what fits, and ends up to 77."""
    found = Tokenizer.from_file(str(path))
    begin, end = found.token_to_id(BEGIN), found.token_to_id(END)

    def ids(text: str) -> Int64:
        words = found.encode(text, add_special_tokens=False).ids[: TOKENS - 2]
        return np.array([[begin, *words, *[end] * (TOKENS - 1 - len(words))]], np.int64)

    return ids


def ddim(scheduler: dict[str, Any], steps: int) -> list[tuple[int, float, float]]:
    """Timestep, weight of the sample and weight of the noise for each step (Song et al. 2021, eq. 12, sigma = 0).

    Betas are "scaled_linear" and timesteps "leading", as in Stable Diffusion 1.x; before the first timestep
    alphas_cumprod is what it is at 0 (``set_alpha_to_one`` is false there).
    """
    train_steps = scheduler["num_train_timesteps"]
    betas = np.linspace(scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, train_steps) ** 2
    alphas = np.cumprod(1 - betas)
    stride = train_steps // steps
    rows = []
    for timestep in reversed(range(0, stride * steps, stride)):
        now = timestep + scheduler["steps_offset"]
        alpha, before = alphas[now], alphas[max(now - stride, 0)]
        # x0 = (x - sqrt(1 - a) e) / sqrt(a); the next sample is sqrt(b) x0 + sqrt(1 - b) e.
        sample_weight = float(before / alpha) ** 0.5
        rows.append((now, sample_weight, float(1 - before) ** 0.5 - sample_weight * float(1 - alpha) ** 0.5))
    return rows
