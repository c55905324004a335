"""``python -m training ddpm``: train the class-conditional DDPM."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from training import data, precision
from training.arguments import ArgumentParser
from training.ddpm.config import PRESETS, TrainConfig
from training.ddpm.model import UNetConfig
from training.ddpm.train import Trainer
from training.errors import TrainingError
from training.run import Run

# What a preset says and an option may say otherwise.
OVERRIDES = {"epochs": int, "batch_size": int, "learning_rate": float, "seed": int}


def parser() -> ArgumentParser:
    ddpm = ArgumentParser(
        prog="python -m training ddpm",
        description="Train the class-conditional DDPM.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data.add_arguments(ddpm)
    ddpm.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    ddpm.add_argument("--out", type=Path, help="folder of the run; without it runs/DATASET-PRESET")
    ddpm.add_argument("--resume", action="store_true", help="continue the run in that folder")
    ddpm.add_argument(
        "--features", type=int, default=64, help="channels at full resolution: time grows with the square"
    )
    ddpm.add_argument("--save-minutes", type=float, default=3.0, help="time between two saves")
    precision.add_option(ddpm)
    for name, kind in OVERRIDES.items():
        option = f"--{name.replace('_', '-')}"
        ddpm.add_argument(option, type=kind, default=argparse.SUPPRESS, help="instead of the preset's")
    return ddpm


def train_config(arguments: argparse.Namespace, dataset: data.Dataset) -> TrainConfig:
    """The preset for this data set, with what the options say instead."""
    overrides = {name: getattr(arguments, name) for name in OVERRIDES if name in arguments}
    mixed_precision = precision.chosen(arguments.mixed_precision)
    _, channels, side, _ = dataset.images.shape
    try:
        model = UNetConfig(channels, side, arguments.features, dataset.num_classes)
        preset = PRESETS[arguments.preset](dataset.name, model)
        return dataclasses.replace(preset, mixed_precision=mixed_precision, **overrides)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    if not arguments.save_minutes >= 0:
        raise TrainingError(f"--save-minutes is {arguments.save_minutes}; it must be 0 or more")
    dataset = data.load(arguments.dataset, "train", arguments.data)
    config = train_config(arguments, dataset)
    folder = arguments.out or Path("runs") / f"{dataset.name}-{arguments.preset}"
    run = Run(folder, resume=arguments.resume, save_every=60 * arguments.save_minutes, progress=sys.stderr.isatty())
    trainer = Trainer(config, dataset, run)
    finished = trainer.run()
    if finished and trainer.accelerator.is_main_process:
        print(
            f"{trainer.model_file}: trained for {trainer.step} steps; export it with: "
            f"python -m export ddpm {trainer.model_file} --out models_onnx/my-{dataset.name}"
        )
    trainer.accelerator.end_training()
    return 0 if finished else 130
