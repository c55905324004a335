"""What a program under test speaks: one line of JSON for each order, on standard input and output.

Once it has loaded it says ``{"ready": "what it is, with versions"}``. Then it answers each order with ``{"seconds": s,
"peak_bytes": m, "probe": [...]}``: the time the order took, the peak memory of the process so far, and up to 64 values
of the output, evenly spaced, by which two programs can be seen to do the same work. Orders are

- ``{"op": "draw", "batch": B, "steps": N, "seed": S}``: B images of a class-conditional model by N DDIM steps with the
  bundle's default guidance; the programs' noises differ, so there is no probe;
- ``{"op": "step", "latents": [B, C, h, w], "text": [B, L, D], "timestep": t, "guidance_scale": g, "seed": S}``: one
  guided step, which is the U-Net on 2B samples and uncond + g · (cond - uncond);
- ``{"op": "decode", "latents": [1, C, h, w], "scaling_factor": f, "seed": S}``: latents / f through the VAE decoder.

The tensors of the last two come from ``step_inputs`` and ``decode_inputs``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Operation = Callable[..., Float32 | None]

PROBE_SIZE = 64


def serve(ready: str, operations: Mapping[str, Operation]) -> None:
    """Be a program under test, until standard input ends.

    Args:
        ready: what the program is, with versions.
        operations: for each ``op`` a function of the order's other values; it returns the output, or None.
    """
    print(json.dumps({"ready": ready}), flush=True)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        name = order.pop("op")
        if name not in operations:
            sys.exit(f"error: there is no order {name!r} here; this program knows {', '.join(operations)}")
        operation = operations[name]
        begun = time.perf_counter()
        output = operation(**order)
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "probe": probe(output)}), flush=True)


def step_inputs(latents: Sequence[int], text: Sequence[int], seed: int) -> tuple[Float32, Float32, Float32]:
    """Sample (B, C, h, w) and the embeddings of the negative and of the prompt, (B, L, D) each; all of unit scale."""
    random = np.random.RandomState(seed)
    sample, uncond, cond = (random.standard_normal(shape).astype(np.float32) for shape in (latents, text, text))
    return sample, uncond, cond


def decode_inputs(latents: Sequence[int], seed: int) -> Float32:
    """Latents (1, C, h, w) of unit scale, as a sampler ends with."""
    return np.random.RandomState(seed).standard_normal(latents).astype(np.float32)


def probe(output: Float32 | None) -> list[float]:
    """Up to 64 values of an output, evenly spaced."""
    if output is None:
        return []
    values = output.ravel()
    spaced = np.linspace(0, values.size - 1, min(PROBE_SIZE, values.size)).round().astype(np.int64)
    chosen: list[float] = values[spaced].astype(np.float64).tolist()
    return chosen


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    import resource  # Unix has it alone, and `python -m runtime` imports this module wherever it runs

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
