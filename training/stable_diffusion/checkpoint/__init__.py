"""Opens Stable Diffusion 1.x checkpoints of every layout that people have.

A single file (``.safetensors`` or ``.ckpt``), a folder in diffusers' layout, or a name on the model hub. Files are not
trusted: nothing in them is run, no size is believed before it is checked, and no path leads out of its folder. Weights
are mapped from their files, so that those in float32 are never copied.
"""

from training.errors import CheckpointError
from training.stable_diffusion.checkpoint.load import Provenance, StableDiffusion, load_checkpoint

__all__ = ["CheckpointError", "Provenance", "StableDiffusion", "load_checkpoint"]
