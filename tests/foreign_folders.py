"""Folders as others export them: the networks of transformers and diffusers, reduced in size, by torch.onnx.export.

Two conventions. diffusers' conversion script types ids int32 and ``timestep`` as a vector of floats, draws the VAE's
latents inside the graph, puts the U-Net's weights into ``weights.pb`` and writes no configuration files for the parts.
optimum types ids and a scalar ``timestep`` int64 (later versions float), gives ``latent_parameters``, calls external
data ``model.onnx_data`` and puts a ``config.json`` beside each graph.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from random_weights import POCKET, random_state
from reference_models import (
    part,
    reference_text_encoder,
    reference_unet,
    reference_vae,
    text_encoder_settings,
    unet_settings,
    vae_settings,
)
from torch import Tensor, nn

from training.stable_diffusion.config import StableDiffusionConfig, VAEConfig
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

CONFIG: StableDiffusionConfig = dataclasses.replace(
    POCKET,
    text_encoder=dataclasses.replace(POCKET.text_encoder, vocab_size=49_408),
    vae=VAEConfig(block_out_channels=(16, 24, 32, 32), layers_per_block=1, norm_num_groups=8),
)
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.42.1",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@dataclass(frozen=True)
class Reference:
    """The networks that were exported."""

    text_encoder: Any
    unet: Any
    vae: Any


def reference() -> Reference:
    state = random_state(CONFIG)
    return Reference(
        reference_text_encoder(CONFIG.text_encoder, part(state, "text_encoder")),
        reference_unet(CONFIG.unet, part(state, "unet")),
        reference_vae(CONFIG.vae, part(state, "vae")),
    )


class Call(nn.Module):
    """A function of a network's inputs as something that can be exported."""

    def __init__(self, network: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.network, *inputs)


def export(
    path: Path,
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    axes: dict[str, list[str]],
    external_data: str | None = None,
) -> None:
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: dict(enumerate(names)) for name, names in axes.items()},
            opset_version=14,
            do_constant_folding=True,
            dynamo=False,
        )
    if external_data:
        model = onnx.load(path)
        path.unlink()
        onnx.save(model, path, save_as_external_data=True, location=external_data, size_threshold=0)


IMAGE = ["batch", "channels", "height", "width"]


def export_text_encoder(folder: Path, networks: Reference, ids: torch.dtype, axes: list[str]) -> None:
    export(
        folder / "text_encoder/model.onnx",
        Call(networks.text_encoder, lambda network, ids: tuple(network(input_ids=ids, return_dict=False))),
        {"input_ids": torch.ones(1, CONFIG.text_encoder.max_position_embeddings, dtype=ids)},
        ["last_hidden_state", "pooler_output"],
        {"input_ids": axes},
    )


def write_diffusers(folder: Path, networks: Reference) -> Path:
    """As ``convert_stable_diffusion_checkpoint_to_onnx.py`` leaves a folder."""
    length, dim = CONFIG.text_encoder.max_position_embeddings, CONFIG.unet.cross_attention_dim
    export_text_encoder(folder, networks, torch.int32, ["batch", "sequence"])
    export(
        folder / "unet/model.onnx",
        Call(networks.unet, lambda network, *inputs: network(*inputs, return_dict=False)[0]),
        {
            "sample": torch.randn(2, 4, 16, 16),
            "timestep": torch.randn(2),
            "encoder_hidden_states": torch.randn(2, length, dim),
        },
        ["out_sample"],
        {"sample": IMAGE, "timestep": ["batch"], "encoder_hidden_states": ["batch", "sequence"]},
        external_data="weights.pb",
    )
    export(
        folder / "vae_encoder/model.onnx",
        Call(networks.vae, lambda network, sample: network.encode(sample, return_dict=False)[0].sample()),
        {"sample": torch.randn(1, 3, 32, 32)},
        ["latent_sample"],
        {"sample": IMAGE},
    )
    export_decoder(folder, networks)
    write_json(folder / "model_index.json", {"_class_name": "OnnxStableDiffusionPipeline"} | index())
    return finish(folder)


def write_optimum(folder: Path, networks: Reference) -> Path:
    """As ``optimum-cli export onnx`` leaves a folder."""
    length, dim = CONFIG.text_encoder.max_position_embeddings, CONFIG.unet.cross_attention_dim
    export_text_encoder(folder, networks, torch.int64, ["batch_size", "sequence_length"])
    export(
        folder / "unet/model.onnx",
        Call(networks.unet, lambda network, *inputs: network(*inputs, return_dict=False)[0]),
        {
            "sample": torch.randn(2, 4, 16, 16),
            "timestep": torch.tensor(5),
            "encoder_hidden_states": torch.randn(2, length, dim),
        },
        ["out_sample"],
        {"sample": ["batch_size"], "encoder_hidden_states": ["batch_size", "sequence_length"]} | {"sample": IMAGE},
        external_data="model.onnx_data",
    )
    export(
        folder / "vae_encoder/model.onnx",
        Call(networks.vae, lambda network, sample: network.quant_conv(network.encoder(sample))),
        {"sample": torch.randn(1, 3, 32, 32)},
        ["latent_parameters"],
        {"sample": IMAGE},
    )
    export_decoder(folder, networks)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"} | index())
    write_json(folder / "text_encoder/config.json", text_encoder_settings(CONFIG.text_encoder))
    write_json(folder / "unet/config.json", unet_settings(CONFIG.unet) | {"sample_size": 16})
    for name in ("vae_encoder", "vae_decoder"):
        write_json(folder / name / "config.json", vae_settings(CONFIG.vae) | {"scaling_factor": 0.5})
    return finish(folder)


def export_decoder(folder: Path, networks: Reference) -> None:
    export(
        folder / "vae_decoder/model.onnx",
        Call(networks.vae, lambda network, sample: network.decode(sample, return_dict=False)[0]),
        {"latent_sample": torch.randn(1, 4, 16, 16)},
        ["sample"],
        {"latent_sample": IMAGE},
    )


def index() -> dict[str, Any]:
    networks = {name: ["diffusers", "OnnxRuntimeModel"] for name in ("unet", "vae_encoder", "vae_decoder")}
    return {
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["diffusers", "OnnxRuntimeModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    } | networks


def finish(folder: Path) -> Path:
    """What both have: the scheduler's configuration, and the tokenizer's vocabulary and merges."""
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    model = json.loads(TOKENIZER_FILE.read_bytes())["model"]
    write_json(folder / "tokenizer/vocab.json", model["vocab"])
    merges = (" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {"bos_token": {"content": "<|startoftext|>"}, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer/special_tokens_map.json", special)
    write_json(folder / "tokenizer/tokenizer_config.json", {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    return folder


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
