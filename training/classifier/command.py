"""``python -m training classifier``: train the classifier that judges samples."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from training import atomic, data, precision
from training.arguments import ArgumentParser
from training.classifier.checkpoint import save_classifier
from training.classifier.config import ClassifierConfig, NetworkConfig, preset
from training.classifier.reading import agreement_on, check_fits
from training.classifier.train import Trainer, train
from training.errors import OutputError, TrainingError
from training.progress import stage
from training.run import Run

# What the data set's preset says and an option may say otherwise.
OVERRIDES = {"epochs": int, "batch_size": int, "learning_rate": float, "seed": int}


def parser() -> ArgumentParser:
    classifier = ArgumentParser(
        prog="python -m training classifier",
        description="Train the classifier that judges samples, and test it on the real test set.",
    )
    data.add_arguments(classifier)
    classifier.add_argument("--out", type=Path, help="folder of the run; without it runs/classifier-DATASET")
    classifier.add_argument("--resume", action="store_true", help="continue the run in that folder")
    classifier.add_argument("--save-minutes", type=float, default=3.0, help="time between two saves (default: 3)")
    precision.add_option(classifier)
    classifier.add_argument(
        "--features", type=int, help="channels at full resolution, instead of those for the data set"
    )
    for name, kind in OVERRIDES.items():
        option = f"--{name.replace('_', '-')}"
        classifier.add_argument(option, type=kind, default=argparse.SUPPRESS, help="instead of the data set's")
    return classifier


def classifier_config(arguments: argparse.Namespace, dataset: data.Dataset) -> ClassifierConfig:
    """The preset for this data set, with what the options say instead."""
    overrides = {name: getattr(arguments, name) for name in OVERRIDES if name in arguments}
    _, channels, side, _ = dataset.images.shape
    try:
        known = preset(dataset.name, NetworkConfig(channels, side, num_classes=dataset.num_classes))
        features = known.network.features if arguments.features is None else arguments.features
        network = dataclasses.replace(known.network, features=features)
        mixed_precision = precision.chosen(arguments.mixed_precision)
        return dataclasses.replace(known, network=network, mixed_precision=mixed_precision, **overrides)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def started(config: ClassifierConfig, dataset: data.Dataset, run: Run) -> Trainer:
    """A new run, or the one that is to be resumed.

    Raises:
        OutputError: the folder holds a finished classifier, or a run that is not to be resumed, or cannot be written.
        CheckpointError: the state to resume from is damaged or of another run.
    """
    if run.model_file.exists():
        raise OutputError(f"{run.model_file} exists already; choose another --out")
    run.refuse_to_overwrite()
    atomic.make_folder(run.folder)
    trainer = Trainer(config, dataset)
    if run.resume and run.state_file.exists():
        trainer.load(run)
    return trainer


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    if not arguments.save_minutes >= 0:
        raise TrainingError(f"--save-minutes is {arguments.save_minutes}; it must be 0 or more")
    dataset, real_test = (data.load(arguments.dataset, split, arguments.data) for split in ("train", "test"))
    config = classifier_config(arguments, dataset)
    check_fits(config.network, real_test)
    folder = arguments.out or Path("runs") / f"classifier-{dataset.name}"
    run = Run(folder, arguments.resume, 60 * arguments.save_minutes, progress=sys.stderr.isatty())
    trainer = started(config, dataset, run)
    if not train(trainer, run):
        return 130
    with stage("reading the test set", len(real_test.images)) as advance:
        agreement = agreement_on(trainer.model.eval(), real_test, advance)
    facts = {"dataset_sha256": dataset.sha256, "test": json.dumps(agreement.to_json())}
    save_classifier(run.model_file, trainer.model, config, facts)
    run.state_file.unlink()
    right = agreement.overall
    print(f"{run.model_file}: {100 * right.rate:.2f} % of {right.count} test images read rightly")
    print(agreement.table(dataset.class_names))
    return 0
