"""What the U-Net is told of a prompt: the text encoder's words on it, chunk by chunk, some louder than others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.prompt import Chunk
from runtime.session import Array, Session, as_inputs

Float32 = npt.NDArray[np.float32]

LEAST_MEAN = 0.01  # of the root mean square: means below are not restored


def encode_chunks(encoder: Session, chunks: Sequence[Chunk], clip_skip: int) -> Float32:
    """Chunks of a prompt as encoder_hidden_states, float32 (1, chunks · max_length, D).

    Each is read by itself, so that what it becomes depends on nothing else.
    """
    read = []
    for chunk in chunks:
        inputs: dict[str, Array] = {
            "input_ids": chunk.ids,
            "extra_embeddings": chunk.extra_embeddings,
            "clip_skip": np.array(clip_skip),
        }
        read.append(weighted(encoder.run(**as_inputs(encoder, inputs))["last_hidden_state"], chunk.weights))
    return np.concatenate(read, axis=1)


def weighted(states: Float32, weights: npt.NDArray[np.float64]) -> Float32:
    """States of a chunk, float32 (1, L, D), each token's times its weight (L,), and then all scaled to their old mean.

    z' = w·z · mean(z) / mean(w·z), in float64 and rounded once, as the web interfaces do; unscaled where one of the
    means is below ``LEAST_MEAN`` of the root mean square of z: it is then the rest of what cancels, and the quotient
    of two such says nothing of scale. (CLIP's own states have a tenth.)
    """
    if (weights == 1).all():
        return states
    before = states.astype(np.float64)
    after = before * weights[:, None]
    means = before.mean(), after.mean()
    least = LEAST_MEAN * np.sqrt(np.square(before).mean())
    ratio = means[0] / means[1] if min(map(abs, means)) > least else 1.0
    scaled: Float32 = (after * ratio).astype(np.float32)
    return scaled


def followed_by(states: Float32, empty: Float32 | None, length: int) -> Float32:
    """States (1, l, D) with as many chunks of the empty prompt behind them as make it (1, length, D)."""
    if empty is None:
        return states
    return np.concatenate([states, *[empty] * ((length - states.shape[1]) // empty.shape[1])], axis=1)
