"""stable-diffusion.cpp on the CPU, by stable-diffusion-cpp-python: whole pictures only.

    --pictures --peer "stable-diffusion.cpp=.venv/sdcpp/bin/python -m peers.stable_diffusion_cpp CHECKPOINT"

CHECKPOINT is a single file in the published layout. The library has no way in for one step or one decode, so that the
time of a step is that of more steps less that of fewer. It samples by Euler, having DDIM only in another spacing, so
that its picture is another one; a step costs the same.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from peers.arguments import add_picture_arguments


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m peers.stable_diffusion_cpp", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a single file, .safetensors")
    add_picture_arguments(parser)
    request = parser.parse_args()
    if request.prompt is None:
        parser.error("stable-diffusion.cpp draws whole pictures only; measure it with --pictures")
    if not request.checkpoint.is_file():
        parser.error(f"{request.checkpoint} is no file")
    try:
        library = importlib.import_module("stable_diffusion_cpp")
    except ImportError as error:
        parser.error(f"stable-diffusion.cpp does not load here ({error}); make .venv/sdcpp/.ready, and run its Python")
    # By itself it would take half of the processors, and keep weights in whatever type the file has.
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = library.StableDiffusion(model_path=str(request.checkpoint), wtype="f32", n_threads=threads, verbose=False)
    width, height = request.size
    pictures = model.generate_image(
        prompt=request.prompt,
        width=width,
        height=height,
        sample_method="euler",
        sample_steps=request.steps,
        cfg_scale=request.guidance_scale,
        seed=request.seed,
    )
    pictures[0].save(request.output)


if __name__ == "__main__":
    main()
