"""``python -m training classifier``: train the classifier that judges samples."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from training import atomic, data
from training.arguments import ArgumentParser
from training.classifier.checkpoint import save_classifier
from training.classifier.config import ClassifierConfig, NetworkConfig
from training.classifier.train import Progress, agreement_on, check_fits, train
from training.errors import OutputError, TrainingError

DEFAULTS = ClassifierConfig("")


def parser() -> ArgumentParser:
    classifier = ArgumentParser(
        prog="python -m training classifier",
        description="Train the classifier that judges samples, and test it on the real test set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data.add_arguments(classifier)
    classifier.add_argument("--out", type=Path, help="folder for model.safetensors; without it runs/classifier-DATASET")
    classifier.add_argument(
        "--features", type=int, default=DEFAULTS.network.features, help="channels at full resolution"
    )
    classifier.add_argument("--epochs", type=int, default=DEFAULTS.epochs)
    classifier.add_argument("--batch-size", type=int, default=DEFAULTS.batch_size)
    classifier.add_argument("--learning-rate", type=float, default=DEFAULTS.learning_rate, help="its peak")
    classifier.add_argument("--seed", type=int, default=DEFAULTS.seed)
    return classifier


def classifier_config(arguments: argparse.Namespace, dataset: data.Dataset) -> ClassifierConfig:
    _, channels, side, _ = dataset.images.shape
    try:
        return ClassifierConfig(
            dataset.name,
            NetworkConfig(channels, side, arguments.features, dataset.num_classes),
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise TrainingError(str(error)) from error


def shown_on(bar: tqdm[NoReturn], epochs: int) -> Progress:
    """Show steps on a bar; or, where there is no terminal for one, a line after every epoch."""

    def progress(step: int, total: int, loss: float) -> None:
        bar.total = total
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update()
        if bar.disable and step % (total // epochs) == 0:
            bar.write(f"step {step} of {total}, loss {loss:.4f}", file=sys.stderr)

    return progress


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    dataset = data.load(arguments.dataset, "train", arguments.data)
    real_test = data.load(arguments.dataset, "test", arguments.data)
    config = classifier_config(arguments, dataset)
    check_fits(config.network, real_test)
    file = (arguments.out or Path("runs") / f"classifier-{dataset.name}") / "model.safetensors"
    if file.exists():
        raise OutputError(f"{file} exists already; choose another --out")
    atomic.make_folder(file.parent)

    with tqdm(unit="step", disable=not sys.stderr.isatty()) as bar:
        model = train(config, dataset, shown_on(bar, config.epochs))
    agreement = agreement_on(model, real_test)
    facts = {"dataset_sha256": dataset.sha256, "test": json.dumps(agreement.to_json())}
    save_classifier(file, model, config, facts)
    print(f"{file}: {100 * agreement.overall.rate:.2f} % of {agreement.overall.count} test images read rightly")
    print(agreement.table())
    return 0
