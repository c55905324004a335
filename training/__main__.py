"""``python -m training``: train models."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from training.ddpm import data
from training.ddpm.checkpoint import CheckpointError
from training.ddpm.config import PRESETS, TrainConfig
from training.ddpm.model import UNetConfig
from training.ddpm.train import Run, Trainer


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m training", description="Train diffusion models in PyTorch.")
    commands = main.add_subparsers(dest="command", required=True)
    ddpm = commands.add_parser("ddpm", help="train the class-conditional DDPM", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    ddpm.add_argument("--dataset", required=True, help="mnist, or the path of an .npz with x_train and y_train")
    ddpm.add_argument("--data", type=Path, help=f"folder with the official files; else ${data.DATA_VARIABLE}, else they are fetched")
    ddpm.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    ddpm.add_argument("--out", type=Path, help="folder of the run; without it runs/DATASET-PRESET")
    ddpm.add_argument("--resume", action="store_true", help="continue the run in that folder")
    ddpm.add_argument("--features", type=int, default=64, help="channels at full resolution: time grows with the square")
    ddpm.add_argument("--save-minutes", type=float, default=3.0, help="time between two saves")
    ddpm.add_argument("--mixed-precision", choices=("auto", "no", "bf16"), default="auto", help="auto: bf16 where the processor has it")
    for name, kind in (("epochs", int), ("batch-size", int), ("learning-rate", float), ("seed", int)):
        ddpm.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help="instead of the preset's")
    return main


def bf16_is_faster() -> bool:
    """Whether the processor multiplies in bfloat16 natively; elsewhere autocast emulates it and is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def train_ddpm(arguments: argparse.Namespace) -> int:
    dataset = data.load(arguments.dataset, "train", arguments.data)
    _, channels, side, _ = dataset.images.shape
    model = UNetConfig(in_channels=channels, image_size=side, features=arguments.features, num_classes=dataset.num_classes)
    precision = arguments.mixed_precision
    overrides = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "learning_rate", "seed") if name in arguments}
    overrides["mixed_precision"] = ("bf16" if bf16_is_faster() else "no") if precision == "auto" else precision
    config: TrainConfig = dataclasses.replace(PRESETS[arguments.preset](dataset.name, model), **overrides)

    folder = arguments.out or Path("runs") / f"{dataset.name}-{arguments.preset}"
    if not arguments.resume and (folder / "state.safetensors").exists():
        raise CheckpointError(f"{folder} holds a run already; continue it with --resume, or choose another --out")
    trainer = Trainer(config, dataset, Run(folder, resume=arguments.resume, save_every=60 * arguments.save_minutes, progress=sys.stderr.isatty()))
    finished = trainer.run()
    if finished and trainer.accelerator.is_main_process:
        print(f"{trainer.model_file}: trained for {trainer.step} steps; export it with: "
              f"python -m export ddpm {trainer.model_file} --out models_onnx/{folder.name}")
    return 0 if finished else 130


def main(arguments: list[str] | None = None) -> int:
    parsed = parser().parse_args(arguments)
    try:
        return train_ddpm(parsed)
    except (data.DataError, CheckpointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
