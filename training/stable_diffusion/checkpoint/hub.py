"""Fetches models by name from the model hub; needs huggingface_hub, which nothing else here does."""

from __future__ import annotations

import re
from pathlib import Path

from training.checkpoint import one_line
from training.errors import CheckpointError
from training.stable_diffusion.checkpoint.diffusers_folder import WEIGHTS

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)

# A repository may hold the weights several times over. They are looked for in this order, and only one kind is fetched.
KINDS = (("*.safetensors*", ("*.fp16*",)), ("*.fp16*safetensors*", ()), ("*.bin", ("*.fp16*",)))


def fetch(name: str) -> Path:
    """The folder into which a model in diffusers' layout has been fetched; what is there already is not fetched again.

    Raises:
        CheckpointError: huggingface_hub is not installed, there is no such model, or the hub cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{name} is no file or folder here; to fetch a model of that name from the model hub, "
            "install huggingface_hub: pip install 'diffusion-anywhere[hub]'"
        ) from error
    configs = ["model_index.json", "*/config.json", "scheduler/scheduler_config.json", "tokenizer/*"]
    folder = Path()
    for pattern, ignored in KINDS:
        weights = [f"{network}/{pattern}" for network in WEIGHTS]
        ignore = ["*.non_ema.*", *ignored]
        try:
            folder = Path(snapshot_download(name, allow_patterns=configs + weights, ignore_patterns=ignore))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{name} is no file or folder here and cannot be fetched from the model hub ({one_line(error)})"
            ) from error
        if all(any((folder / network / file).exists() for file in files) for network, files in WEIGHTS.items()):
            return folder
    raise CheckpointError(f"{name} on the model hub holds no model in diffusers' layout ({folder} is what it holds)")
