"""The reference in PyTorch as a program that ``python -m runtime benchmark`` can run beside the runtime.

    python -m runtime benchmark BUNDLE --peer "torch=python -m export.reference BUNDLE"

It takes the weights out of the bundle, so that both draw with the same ones, and speaks the protocol of
``runtime/benchmark.py``. Its noise is its own: what is measured is time and memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch

from export.errors import ExportError
from export.restore import torch_module, training_config
from runtime.bundle import open_bundle
from runtime.errors import DiffusionError
from training.ddpm.sampler import guided, sample_ddim


def serve(folder: Path) -> None:
    """Answer one line for each order on standard input."""
    bundle = open_bundle(folder)
    network = torch_module(folder)
    config = training_config(bundle)
    model, schedule = config.model, config.schedule
    for line in sys.stdin:
        order = json.loads(line)
        labels = torch.arange(order["batch"]) % model.num_classes
        begun = time.perf_counter()
        torch.manual_seed(order["seed"])
        start = torch.randn(len(labels), model.in_channels, model.image_size, model.image_size)
        steps = schedule.num_train_timesteps
        timesteps = [round(steps - k * steps / order["steps"]) - 1 for k in range(order["steps"])]
        predict = guided(network, labels, model.num_classes, bundle.defaults.guidance_scale)
        *_, images = sample_ddim(predict, schedule, start, timesteps)
        ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"seconds": time.perf_counter() - begun, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        serve(Path(sys.argv[1]))
    except (ExportError, DiffusionError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
