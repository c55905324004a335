"""Merges LoRA files into a model's weights: small changes that others have trained, as Hu et al. 2021 write them.

Files are read in every layout that is in use; ``names`` lists how they call the layers, ``factors`` how they store what
is added to a weight. Nothing is guessed: a tensor that belongs nowhere is an error, and nothing is merged before
everything has been checked.
"""

from training.stable_diffusion.lora.merge import LoraFile, apply_loras

__all__ = ["LoraFile", "apply_loras"]
