"""What the U-Net says of a sample, led away from what it says without the condition.

Shapes: B images in a batch, C H W the shape of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from runtime.arithmetic import guided
from runtime.conditioning import Between, Told
from runtime.plan import Plan
from runtime.session import Array, Session, as_inputs

Float32 = npt.NDArray[np.float32]


def predict(
    unet: Session,
    sample: Float32,
    timestep: float,
    conditioning: Told,
    scale: float,
    plan: Plan,
    in_turn: bool = False,
) -> Float32:
    """The guided output of the network for x, float32 (B, C, H, W) (Ho & Salimans 2022, eq. 6, with s = w + 1).

    Args:
        unet: the network.
        sample: what it takes, float32 (B, channels, H, W).
        timestep: of the row.
        conditioning: its other inputs, B rows.
        scale: s in uncond + s · (cond - uncond); at 1 the network is asked once.
        plan: says how the result is rescaled.
        in_turn: evaluate the two halves one after the other, which takes half the memory.
    """
    if isinstance(conditioning, Between):
        both = conditioning.first, conditioning.second
        return conditioning.mix(*(predict(unet, sample, timestep, each, scale, plan, in_turn) for each in both))
    if scale == 1:
        return evaluate(unet, sample, timestep, conditioning.cond)
    if in_turn:
        uncond = evaluate(unet, sample, timestep, conditioning.uncond)
        cond = evaluate(unet, sample, timestep, conditioning.cond)
    else:
        outputs = evaluate(unet, np.concatenate([sample, sample]), timestep, conditioning.both())
        uncond, cond = np.split(outputs, 2)
    return guided(uncond, cond, scale, plan.guidance_rescale)


def evaluate(unet: Session, sample: Float32, timestep: float, conditions: Mapping[str, Array]) -> Float32:
    """One run of the U-Net."""
    inputs: dict[str, Array] = {"sample": sample, "timestep": np.full(len(sample), timestep, np.float32), **conditions}
    output: Float32 = unet.run(**as_inputs(unet, inputs))["out_sample"]
    return output
