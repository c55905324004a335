"""Writes checkpoints in the layouts that the web has, from a state dict of our networks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from reference_models import part, text_encoder_settings, unet_settings, vae_settings
from safetensors.torch import save_file
from torch import Tensor

from training.stable_diffusion.checkpoint.original_names import original_names
from training.stable_diffusion.config import StableDiffusionConfig

POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def original_layout(config: StableDiffusionConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original single file: renamed, the VAE's attention as 1x1 convolutions, with position_ids."""
    names = original_names(config, state)
    tensors = {names[key]: tensor for key, tensor in state.items()}
    for name, tensor in tensors.items():
        if ".mid.attn_1." in name and tensor.ndim == 2:
            tensors[name] = tensor[:, :, None, None]
    return tensors | {POSITION_IDS: torch.arange(config.text_encoder.max_position_embeddings)[None]}


def write_folder(folder: Path, config: StableDiffusionConfig, state: dict[str, Tensor]) -> Path:
    """A folder in diffusers' layout, as its first releases wrote it."""
    settings = {
        "text_encoder": text_encoder_settings(config.text_encoder) | {"hidden_act": "quick_gelu"},
        "unet": unet_settings(config.unet) | {"_class_name": "UNet2DConditionModel"},
        "vae": vae_settings(config.vae) | {"_class_name": "AutoencoderKL"},
    }
    for network, values in settings.items():
        (folder / network).mkdir(parents=True)
        (folder / network / "config.json").write_text(json.dumps(values))
        stem = "model" if network == "text_encoder" else "diffusion_pytorch_model"
        save_file(part(state, network), folder / network / f"{stem}.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder
