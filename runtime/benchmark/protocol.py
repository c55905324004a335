"""What a program under test speaks: one line of JSON for each order, on standard input and output.

Once it can take orders it says ``{"ready": "what it is, with versions"}``. Then it answers each order with
``{"seconds": s, "peak_bytes": m, "probe": [...]}``: the time the order took, the peak memory of the process so far, and
up to 64 values of the output, evenly spaced, by which two programs can be seen to do the same work. Orders are

- ``{"op": "load", "graph": G, "threads": N}``: make ready one graph, of ``GRAPHS`` or "unet" of a class-conditional
  model, to be computed by N threads, or by as many as the program chooses where N is null. It comes first;
- ``{"op": "draw", "batch": B, "steps": N, "seed": S}``: B images of a class-conditional model by N DDIM steps with the
  bundle's default guidance; the programs' noises differ, so there is no probe;
- ``{"op": "encode_text", "tokens": [B, L], "vocab_size": V, "seed": S}``: the text encoder's last hidden state;
- ``{"op": "step", "latents": [B, C, h, w], "text": [B, L, D], "timestep": t, "guidance_scale": g, "seed": S}``: one
  guided step, which is the U-Net on 2B samples and uncond + g · (cond - uncond);
- ``{"op": "decode", "latents": [1, C, h, w], "scaling_factor": f, "seed": S}``: latents / f through the VAE decoder;
- ``{"op": "encode_image", "image": [1, 3, H, W], "seed": S}``: pixels through the VAE encoder, to the mean of the
  latents' distribution, (C, h, w).

The tensors of the last four come from ``token_ids``, ``step_inputs``, ``decode_inputs`` and ``image_input``.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Load = Callable[[str, int | None], Any]
Operation = Callable[..., Float32 | None]

PROBE_SIZE = 64
GRAPHS = {"text_encoder": "encode_text", "unet": "step", "vae_decoder": "decode", "vae_encoder": "encode_image"}
"""The graphs of a text bundle, in the order in which a picture from a picture would need them, and what is ordered."""


def serve(ready: str, load: Load, operations: Mapping[str, Operation]) -> None:
    """Be a program under test, until standard input ends.

    Args:
        ready: what the program is, with versions.
        load: from a graph's name and a number of threads to the network.
        operations: for each ``op`` a function of the network and the order's other values; it returns the output, or
            None.
    """
    print(json.dumps({"ready": ready}), flush=True)
    network: Any = None
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        name = order.pop("op")
        if name not in {"load", *operations}:
            sys.exit(f"error: there is no order {name!r} here; this program knows {', '.join(operations)}")
        begun = time.perf_counter()
        output = None
        if name == "load":
            network = load(order["graph"], order["threads"])
        else:
            output = operations[name](network, **order)
        seconds = time.perf_counter() - begun
        if output is not None and not output.size:  # as OpenVINO gives where sizes do not fit together
            sys.exit(f"error: {name} gave nothing")
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "probe": probe(output)}), flush=True)


def token_ids(tokens: Sequence[int], vocab_size: int, seed: int) -> Int64:
    """Ids of tokens (B, L), any of the vocabulary's; nothing that a text encoder does depends on which."""
    return np.random.RandomState(seed).randint(0, vocab_size, tokens).astype(np.int64)


def step_inputs(latents: Sequence[int], text: Sequence[int], seed: int) -> tuple[Float32, Float32, Float32]:
    """Sample (B, C, h, w) and the embeddings of the negative and of the prompt, (B, L, D) each; all of unit scale."""
    random = np.random.RandomState(seed)
    sample, uncond, cond = (random.standard_normal(shape).astype(np.float32) for shape in (latents, text, text))
    return sample, uncond, cond


def decode_inputs(latents: Sequence[int], seed: int) -> Float32:
    """Latents (1, C, h, w) of unit scale, as a sampler ends with."""
    return np.random.RandomState(seed).standard_normal(latents).astype(np.float32)


def image_input(image: Sequence[int], seed: int) -> Float32:
    """Pixels (1, 3, H, W) in [-1, 1]."""
    return np.random.RandomState(seed).uniform(-1, 1, image).astype(np.float32)


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
    held = highest_resident("self")
    if held is not None:
        return held
    import resource  # Unix has it alone, and `python -m runtime` imports this module wherever it runs

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def highest_resident(process: int | str) -> int | None:
    """Peak resident memory of a process as Linux notes it, in bytes; None elsewhere, and of one that has ended.

    ``getrusage`` and ``wait4`` say another thing there: the largest that the process has been *or been started from*,
    since it begins as a copy of its parent.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
