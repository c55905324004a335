"""The networks of diffusers and transformers, made from our configurations: what ours are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from training.stable_diffusion.config import TextEncoderConfig, UNetConfig, VAEConfig


def text_encoder_settings(config: TextEncoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def unet_settings(config: UNetConfig) -> dict[str, Any]:
    down = [f"{'CrossAttn' if level.cross_attention else ''}DownBlock2D" for level in config.levels]
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": [level.channels for level in config.levels],
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.num_attention_heads,
        "cross_attention_dim": config.cross_attention_dim,
        "norm_num_groups": config.norm_num_groups,
        "sample_size": 64,
    }


def vae_settings(config: VAEConfig) -> dict[str, Any]:
    levels = len(config.block_out_channels)
    return {
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_num_groups,
    }


def reference_text_encoder(config: TextEncoderConfig, state: dict[str, Tensor]) -> CLIPTextModel:
    model = CLIPTextModel(CLIPTextConfig(**text_encoder_settings(config), attn_implementation="eager"))
    # transformers 5 has dropped the inner name.
    if not any(name.startswith("text_model.") for name in model.state_dict()):
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return filled(model, state)


def reference_unet(config: UNetConfig, state: dict[str, Tensor]) -> UNet2DConditionModel:
    with torch.device("meta"):
        model = UNet2DConditionModel(**unet_settings(config))
    return filled(model, state)


def reference_vae(config: VAEConfig, state: dict[str, Tensor]) -> AutoencoderKL:
    with torch.device("meta"):
        model = AutoencoderKL(**vae_settings(config))
    return filled(model, state)


def filled(model: nn.Module, state: dict[str, Tensor]) -> Any:
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Pocket-sized networks wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def part(state: dict[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors of one of the three networks, under their names inside it."""
    return {n.removeprefix(f"{network}."): tensor for n, tensor in state.items() if n.startswith(f"{network}.")}


def assert_parity(mine: Tensor, reference: Tensor) -> None:
    """The bound on every network: a difference of 1e-5 of the largest value, plus 1e-5."""
    assert mine.shape == reference.shape
    assert reference.isfinite().all()
    difference, bound = (mine - reference).abs().max().item(), 1e-5 * reference.abs().max().item() + 1e-5
    assert difference <= bound, f"maximum difference {difference:.3g} exceeds {bound:.3g}"
