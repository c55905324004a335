"""One full-size checkpoint of random weights, in both layouts, made once and shared by all tests that need one.

It lies in ``$DIFFUSION_ANYWHERE_CACHE``, or else in the folder for temporary files, and takes 8.5 GB there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import checkpoint_files
import random_weights
from safetensors.torch import save_file

from training.stable_diffusion.checkpoint import load_checkpoint
from training.stable_diffusion.config import SD15


def cache_folder() -> Path:
    """Where the checkpoint lies: under a name that changes with the code that makes it. Those of older code go."""
    sources = b"".join(Path(module.__file__).read_bytes() for module in (random_weights, checkpoint_files))
    above = Path(os.environ.get("DIFFUSION_ANYWHERE_CACHE") or tempfile.gettempdir())
    folder = above / f"diffusion-anywhere-full-size-{hashlib.sha256(sources).hexdigest()[:8]}"
    for older in above.glob("diffusion-anywhere-full-size-*"):
        if older != folder:
            shutil.rmtree(older)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def single_file() -> Path:
    """A single file as published: 1,130 tensors in float32 and CLIP's position_ids, 4.27 GB."""
    path = cache_folder() / "sd15.safetensors"
    if not path.exists():
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(checkpoint_files.original_layout(SD15, random_weights.random_state(SD15)), aside)
        aside.replace(path)
    return path


@cache
def folder() -> Path:
    """The same weights as a folder in diffusers' layout."""
    path = cache_folder() / "sd15"
    if not path.exists():
        model = load_checkpoint(single_file())
        state = {
            f"{network}.{name}": tensor
            for network in ("text_encoder", "unet", "vae")
            for name, tensor in getattr(model, network).state_dict().items()
        }
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        checkpoint_files.write_folder(aside, SD15, state).replace(path)
    return path
