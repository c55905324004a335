"""The reference sampler in PyTorch, for class-conditional bundles.

    python -m runtime benchmark BUNDLE --peer "torch=python -m peers.ddpm_torch BUNDLE"

It takes the weights out of the bundle, so that both draw with the same ones. Its noise is its own: what is measured
is time and memory.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from export.errors import ExportError
from export.restore import torch_module, training_config
from runtime.benchmark.protocol import serve
from runtime.bundle import Bundle, open_bundle
from runtime.errors import DiffusionError
from training.ddpm.sampler import guided, sample_ddim


def draw(network: nn.Module, bundle: Bundle, batch: int, steps: int, seed: int) -> None:
    """Images of every class in turn, from noise to bytes."""
    config = training_config(bundle)
    model, schedule = config.model, config.schedule
    labels = torch.arange(batch) % model.num_classes
    torch.manual_seed(seed)
    start = torch.randn(batch, model.in_channels, model.image_size, model.image_size)
    train_steps = schedule.num_train_timesteps
    timesteps = [round(train_steps - k * train_steps / steps) - 1 for k in range(steps)]
    predict = guided(network, labels, model.num_classes, bundle.defaults.guidance_scale)
    *_, images = sample_ddim(predict, schedule, start, timesteps)
    ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def main() -> int:
    if len(sys.argv) != 2:
        print(f"error: give one bundle, and not {len(sys.argv) - 1} arguments", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    try:
        bundle, network = open_bundle(folder), torch_module(folder)
    except (ExportError, DiffusionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def load(_: str, threads: int | None) -> nn.Module:
        if threads is not None:
            torch.set_num_threads(threads)
        return network

    operations = {"draw": partial(draw, bundle=bundle)}
    serve(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads", load, operations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
