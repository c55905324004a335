"""How a sample looks that is not finished: at once, and without the decoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.bundle import Latents
from runtime.image import UInt8, to_uint8

Float32 = npt.NDArray[np.float32]


def preview_latents(latents: Latents, sample: Float32) -> UInt8 | None:
    """Latents, float32 (B, C, h, w), as images uint8 (B, h, w, 3), a pixel for each; None where there is no map."""
    if latents.preview is None:
        return None
    weights, biases = np.array(latents.preview.weights), np.array(latents.preview.biases)
    with np.errstate(over="ignore", invalid="ignore"):  # what is out of range is clipped, and what is none is grey
        colours = np.einsum("bchw,cd->bdhw", sample.astype(np.float64), weights) + biases[:, None, None]
    return to_uint8(np.nan_to_num(np.clip(colours, -1, 1)))
