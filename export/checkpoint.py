"""A checkpoint back out of a bundle, to train it further or to open it in other tools."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from export.errors import ExportError
from export.restore import load_weights, read_weights, stable_diffusion_config
from export.sd15 import FAMILY
from export.sd15_graphs import modules
from runtime.bundle import Bundle, TextConditioning, open_bundle
from training import checkpoint, configuration
from training.paths import exists
from training.stable_diffusion.checkpoint.networks import Networks, without_weights
from training.stable_diffusion.checkpoint.original_names import original_names
from training.stable_diffusion.config import StableDiffusionConfig
from training.stable_diffusion.pocket.checkpoint import CONFIG_KEY, KNOWN_WORDS_KEY, MODEL

VARIANT = "fp32"


def write_checkpoint(folder: Path, out: Path) -> None:
    """Write the weights of a Stable Diffusion bundle as a single file in the published layout, in float32.

    They are what the graphs compute with: with LoRAs merged, and rounded where the bundle keeps them in half precision.
    A model of a small world says in the file's metadata, as after its training, how large it is and what it knows.

    Args:
        folder: the bundle.
        out: the file, which must not exist yet.

    Raises:
        BundleError: the bundle is missing or damaged, or has no float32 graph for a network.
        ExportError: it is of another family, its weights do not fit its configuration, or ``out`` is there or cannot
            be written.
        TrainingError: a small world's file cannot be written.
    """
    if out.suffix != ".safetensors":
        raise ExportError(f"--out {out} does not end in .safetensors, as a checkpoint does")
    if exists(out):
        raise ExportError(f"{out} is there already; choose another --out")
    bundle = open_bundle(folder)
    if bundle.family != FAMILY:
        raise ExportError(f"{folder} is of the family {bundle.family}; checkpoints are written of {FAMILY}")
    config = stable_diffusion_config(bundle)
    state = state_dict(restored_networks(bundle, config))
    names = original_names(config, state)
    tensors = {names[key]: tensor for key, tensor in state.items()}
    conditioning = bundle.conditioning
    if isinstance(conditioning, TextConditioning) and conditioning.known_words is not None:
        facts = {CONFIG_KEY: configuration.to_json(config), KNOWN_WORDS_KEY: json.dumps(conditioning.known_words)}
        checkpoint.write(out, MODEL, tensors, facts)
    else:
        write_large(out, tensors)


def restored_networks(bundle: Bundle, config: StableDiffusionConfig) -> Networks:
    """The three networks, with the weights of the graphs that they were cut into."""
    networks = without_weights(config)
    for role, module in modules(networks.text_encoder, networks.unet, networks.vae).items():
        graph = bundle.graph(role, VARIANT)
        load_weights(module, read_weights(bundle, graph), bundle.path(graph.file))
    return networks


def state_dict(networks: Networks) -> dict[str, Tensor]:
    """All weights, by network and name."""
    parts = {"text_encoder": networks.text_encoder, "unet": networks.unet, "vae": networks.vae}
    return {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()}


def write_large(out: Path, tensors: dict[str, Tensor]) -> None:
    """Write gigabytes without a second copy of them in memory; the file appears when it is whole.

    Raises:
        ExportError: it cannot be written.
    """
    aside = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, {"format": "pt"})
        os.replace(aside, out)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{out} cannot be written ({error})") from error
    finally:
        aside.unlink(missing_ok=True)
