"""``python -m training stable-diffusion``: train the pocket model, VAE and text encoder by themselves first, then text
encoder and UNet; and by itself its judge."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from training import atomic, data, precision
from training.arguments import ArgumentParser
from training.errors import OutputError, TrainingError
from training.stable_diffusion.pocket.autoencoder import VAEStage
from training.stable_diffusion.pocket.checkpoint import (
    JUDGE_NAME,
    MODEL_NAME,
    STATE_NAME,
    TEXT_NAME,
    VAE_NAME,
    begin_with,
)
from training.stable_diffusion.pocket.config import PRESETS, TrainConfig
from training.stable_diffusion.pocket.diffusion import DiffusionStage
from training.stable_diffusion.pocket.judge import JudgeStage
from training.stable_diffusion.pocket.sources import Sources
from training.stable_diffusion.pocket.text import TextStage
from training.stable_diffusion.pocket.train import Run, Stage, Trainer

# What each stage is, and what it leaves behind.
STAGES: dict[str, tuple[Callable[..., Stage], str]] = {
    "vae": (VAEStage, VAE_NAME),
    "text": (TextStage, TEXT_NAME),
    "diffusion": (DiffusionStage, MODEL_NAME),
    "judge": (JudgeStage, JUDGE_NAME),
}
ALL = ("vae", "text", "diffusion")
NEXT = {
    "vae": "the VAE has learned; the text encoder is next",
    "text": "the text encoder can read; it and the UNet are next",
    "diffusion": "export it with: python -m export sd15 {file} --out models_onnx/my-pocket",
    "judge": "judge a bundle with: python -m training evaluate BUNDLE --classifier {file}",
}


def parser() -> ArgumentParser:
    command = ArgumentParser(
        prog="python -m training stable-diffusion",
        description="Train a Stable Diffusion from nothing: its VAE and its text encoder, then text encoder and UNet.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--preset", choices=sorted(PRESETS), default="pocket")
    command.add_argument("--out", type=Path, help="folder of the run; without it runs/PRESET")
    command.add_argument("--resume", action="store_true", help="continue the run in that folder")
    command.add_argument(
        "--from",
        dest="model",
        type=Path,
        metavar="FILE",
        help="begin with the networks of this model.safetensors: its VAE stays, text encoder and UNet learn on",
    )
    command.add_argument(
        "--stage",
        choices=("all", *STAGES),
        default="all",
        help="train only this; diffusion needs VAE and text, and the judge, which is not among all, needs nothing",
    )
    command.add_argument("--minutes", type=float, default=math.inf, help="stop by itself after this time")
    command.add_argument(
        "--data", type=Path, help=f"folder with the data sets; else ${data.DATA_VARIABLE}, else they are fetched"
    )
    command.add_argument("--save-minutes", type=float, default=5.0, help="time between two saves")
    command.add_argument("--sample-minutes", type=float, default=10.0, help="time between two sheets of samples")
    for stage in STAGES:
        option = f"--{stage}-steps"
        command.add_argument(option, type=int, default=argparse.SUPPRESS, help="instead of the preset's")
    command.add_argument("--seed", type=int, default=0)
    precision.add_option(command)
    return command


def train_config(arguments: argparse.Namespace) -> TrainConfig:
    """The preset, with what the options say instead.

    Raises:
        TrainingError: an option's value fits nothing.
    """
    for name in ("minutes", "save_minutes", "sample_minutes"):
        if not getattr(arguments, name) >= 0:
            raise TrainingError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be 0 or more")
    config = PRESETS[arguments.preset]()
    try:
        for stage in STAGES:
            steps = getattr(arguments, f"{stage}_steps", None)
            if steps is not None:
                section = getattr(config, stage)
                section = dataclasses.replace(section, optimizer=dataclasses.replace(section.optimizer, steps=steps))
                config = dataclasses.replace(config, **{stage: section})
        mixed_precision = precision.chosen(arguments.mixed_precision)
        return dataclasses.replace(config, mixed_precision=mixed_precision, seed=arguments.seed)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def main(argv: list[str]) -> int:
    started = time.monotonic()
    arguments = parser().parse_args(argv)
    config = train_config(arguments)
    run = Run(
        folder=arguments.out or Path("runs") / arguments.preset,
        resume=arguments.resume,
        deadline=started + 60 * arguments.minutes,
        save_every=60 * arguments.save_minutes,
        preview_every=60 * arguments.sample_minutes,
        progress=sys.stderr.isatty(),
    )
    if arguments.model and (arguments.resume or arguments.stage not in ("all", "diffusion")):
        raise TrainingError(
            "--from is for the beginning of a run of text encoder and UNet; leave out --resume and --stage"
        )
    refuse_to_overwrite(run, arguments.stage)
    sources = Sources.load("train", arguments.data)
    atomic.make_folder(run.folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.model:
        begin_with(arguments.model, config, run.folder)
    for name in stages(arguments.stage):
        stage, file = STAGES[name]
        if name in ("vae", "text") and (run.folder / file).exists():  # as a run that is resumed finds it
            continue
        trainer = Trainer(stage(config, sources, device, run.folder), run)
        if not trainer.run():
            return 130 if trainer.interrupted else 0
        print(f"{run.folder / file}: {NEXT[name].format(file=run.folder / file)}")
    return 0


def stages(chosen: str) -> tuple[str, ...]:
    return ALL if chosen == "all" else (chosen,)


def refuse_to_overwrite(run: Run, stage: str) -> None:
    """Say so where there is something of an earlier run that was not to be continued.

    Raises:
        OutputError: there is.
    """
    names = [name for each in stages(stage) for name in (STATE_NAME.format(stage=each), STAGES[each][1])]
    if not run.resume and any((run.folder / name).exists() for name in names):
        raise OutputError(f"{run.folder} holds a run already; continue it with --resume, or choose another --out")
