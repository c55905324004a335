"""``python -m training evaluate``: draw from a bundle and let a classifier judge."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training import atomic, data
from training.arguments import ArgumentParser
from training.errors import OutputError, TrainingError
from training.evaluate.draw import Request, draw, read_bundle
from training.evaluate.judge import Verdict, judge_samples, load_judge
from training.evaluate.pictures import disagreements, grid_by_class, png
from training.evaluate.samples import read_samples

COUNT, SEED = 1000, 0
REPORT = "evaluation.json"
IMAGES = "images.npz"


def parser() -> ArgumentParser:
    evaluate = ArgumentParser(
        prog="python -m training evaluate",
        description="Draw from a bundle through the torch-free runtime and let a classifier judge. "
        "What is not given is left to the bundle's defaults.",
    )
    evaluate.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="the bundle's folder")
    data.add_arguments(evaluate)
    evaluate.add_argument("--classifier", type=Path, help="without it runs/classifier-DATASET/model.safetensors")
    evaluate.add_argument("--count", type=int, help=f"images, over all classes together (default: {COUNT})")
    evaluate.add_argument("--steps", type=int, help="rows of the plan")
    evaluate.add_argument("--sampler", help="its name, such as ddim or ddpm")
    evaluate.add_argument("--guidance-scale", type=float, help="1 is off")
    evaluate.add_argument("--seed", type=int, help=f"of the first image (default: {SEED})")
    evaluate.add_argument("--images", type=Path, help="judge what was drawn before, an .npz, instead of drawing")
    evaluate.add_argument("--out", type=Path, help="folder for the report; without it runs/evaluate-NAME")
    return evaluate


def request(arguments: argparse.Namespace) -> Request | None:
    """What to draw, or None where images are given.

    Raises:
        TrainingError: both a bundle and images, or neither; or options for drawing where nothing is drawn.
    """
    if (arguments.bundle is None) == (arguments.images is None):
        raise TrainingError("give either a bundle to draw from or --images, and not both")
    drawing = ("count", "steps", "sampler", "guidance_scale", "seed")
    given = {name: getattr(arguments, name) for name in drawing if getattr(arguments, name) is not None}
    if arguments.images is None:
        return Request(**{"count": COUNT, "seed": SEED, **given})
    if given:
        raise TrainingError(f"--{next(iter(given)).replace('_', '-')} is for drawing; leave it out with --images")
    return None


def write_report(folder: Path, verdict: Verdict, drawn: dict[str, Any]) -> None:
    """Pictures first and the report last: where there is a report, the rest is there too."""
    num_classes = verdict.judge.config.network.num_classes
    atomic.write(folder / "grid.png", png(grid_by_class(verdict.samples, num_classes)))
    wrong = disagreements(verdict.samples, verdict.read_as)
    if wrong:
        atomic.write(folder / "disagreements.png", png(wrong))
    atomic.write(folder / REPORT, json.dumps(drawn | verdict.to_json(), indent=2).encode() + b"\n")


def summary(verdict: Verdict, dataset: data.Dataset) -> str:
    """The table, and how far to trust it."""
    judge, tested = verdict.judge, verdict.tested.overall
    return (
        f"{verdict.agreement.table()}\n"
        f"judge: {judge.file}, SHA-256 {judge.sha256}, "
        f"reads {100 * tested.rate:.2f} % of {tested.count} test images of {dataset.name} rightly"
    )


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    wanted = request(arguments)
    real_test = data.load(arguments.dataset, "test", arguments.data)
    judge = load_judge(arguments.classifier or Path(f"runs/classifier-{real_test.name}/model.safetensors"), real_test)
    images, drawn = arguments.images, {}
    name = images.stem if images else arguments.bundle.resolve().name
    folder = arguments.out or Path("runs") / f"evaluate-{name}"
    if (folder / REPORT).exists():
        raise OutputError(f"{folder} holds an evaluation already; choose another --out")
    if wanted:
        bundle = read_bundle(arguments.bundle)
        judge.check(bundle)
        images = folder / IMAGES
        status = draw(bundle, wanted, images)
        if status:
            return status
        drawn = {"bundle": bundle.facts(), "request": asdict(wanted)}
    samples = read_samples(images, judge.config.network)
    atomic.make_folder(folder)
    verdict = judge_samples(judge, samples, real_test)
    write_report(folder, verdict, drawn)
    print(summary(verdict, real_test))
    print(f"report and pictures: {folder}")
    return 0
