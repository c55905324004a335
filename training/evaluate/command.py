"""``python -m training evaluate``: draw from a bundle, let a classifier judge, and compare with real images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from training import atomic, data
from training.arguments import ArgumentParser
from training.errors import OutputError, TrainingError
from training.evaluate.curves import read_curve
from training.evaluate.draw import Bundle, Request, draw, read_bundle
from training.evaluate.figures import Figures, Yardstick, check_enough
from training.evaluate.judge import Judge, load_judge
from training.evaluate.report import REPORT, Report
from training.evaluate.samples import Samples, read_samples
from training.evaluate.sweeps import Sweep

__all__ = ["REPORT", "main", "parser"]

COUNT, SEED = 1000, 0
IMAGES = "images.npz"
SWEEPS = {"guidance_scales": "guidance_scale", "step_counts": "steps"}  # options, and what they vary of a request

Number = TypeVar("Number", int, float)


def several(kind: type[Number]) -> Callable[[str], tuple[Number, ...]]:
    """What reads numbers with commas between them."""

    def numbers(text: str) -> tuple[Number, ...]:
        found = tuple(kind(word) for word in text.split(","))
        if len(set(found)) != len(found):
            raise ValueError
        return found

    numbers.__name__ = "list of different numbers"  # as argparse calls what it is not
    return numbers


def parser() -> ArgumentParser:
    evaluate = ArgumentParser(
        prog="python -m training evaluate",
        description="Draw from a bundle through the torch-free runtime, let a classifier judge, and compare with real "
        "images. What is not given is left to the bundle's defaults.",
    )
    evaluate.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="the bundle's folder")
    data.add_arguments(evaluate)
    evaluate.add_argument("--classifier", type=Path, help="without it runs/classifier-DATASET/model.safetensors")
    evaluate.add_argument("--count", type=int, help=f"images, over all classes together (default: {COUNT})")
    evaluate.add_argument("--steps", type=int, help="of the sampler")
    evaluate.add_argument("--sampler", help="its name, such as ddim or ddpm")
    evaluate.add_argument("--guidance-scale", type=float, help="1 is off")
    evaluate.add_argument("--seed", type=int, help=f"of the first image (default: {SEED})")
    evaluate.add_argument(
        "--guidance-scales", type=several(float), metavar="S,S,...", help="draw as many at each of these as well"
    )
    evaluate.add_argument("--step-counts", type=several(int), metavar="N,N,...", help="and with so many steps each")
    evaluate.add_argument("--images", type=Path, help="judge what was drawn before, an .npz, instead of drawing")
    evaluate.add_argument("--run", type=Path, help="folder of the training run, for a picture of its loss")
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
    for name in (*given, *(name for name in SWEEPS if getattr(arguments, name))):
        raise TrainingError(f"--{name.replace('_', '-')} is for drawing; leave it out with --images")
    return None


def draw_all(bundle: Bundle, wanted: Request, sweeps: list[Sweep], folder: Path) -> tuple[int, dict[Sweep, list[Path]]]:
    """Draw what is wanted, and then each setting of the sweeps, unless it is what was wanted.

    Returns:
        The runtime's exit status, of which anything but 0 ends the work; and where each setting's images are.
    """
    status = draw(bundle, wanted, folder / IMAGES)
    files: dict[Sweep, list[Path]] = {}
    for sweep in sweeps:
        files[sweep] = []
        for value, setting in zip(sweep.values, sweep.requests(wanted), strict=True):
            same = setting.filled(bundle.defaults) == wanted.filled(bundle.defaults)
            files[sweep].append(folder / IMAGES if same else sweep.file(folder, value))
            if not (status or same):
                print(f"{sweep.name} {value:g}", file=sys.stderr)
                status = draw(bundle, setting, files[sweep][-1])
    return status, files


def measure_all(
    judge: Judge, yardstick: Yardstick, samples: Samples, figures: Figures, files: dict[Sweep, list[Path]], main: Path
) -> dict[Sweep, list[Figures]]:
    """The figures of every setting of the sweeps; the images of one are in each file, those of ``main`` known."""
    found: dict[Sweep, list[Figures]] = {}
    for sweep, paths in files.items():
        found[sweep] = [
            figures if path == main else yardstick.measure(read_samples(path, judge.config.network), path.stem)
            for path in paths
        ]
    return found


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    wanted = request(arguments)
    name = arguments.images.stem if arguments.images else arguments.bundle.resolve().name
    folder = arguments.out or Path("runs") / f"evaluate-{name}"
    if (folder / REPORT).exists():
        raise OutputError(f"{folder} holds an evaluation already; choose another --out")
    curve = (arguments.run.resolve().name, read_curve(arguments.run)) if arguments.run else None
    train, test = (data.load(arguments.dataset, split, arguments.data) for split in ("train", "test"))
    classifier = arguments.classifier or Path(f"runs/classifier-{test.name}/model.safetensors")
    judge = load_judge(classifier, test, arguments.dataset)
    sweeps = [Sweep(field, getattr(arguments, name)) for name, field in SWEEPS.items() if getattr(arguments, name)]
    images, files, drawn = arguments.images, dict[Sweep, list[Path]](), dict[str, Any]()
    if wanted:
        bundle, images = read_bundle(arguments.bundle), folder / IMAGES
        judge.check(bundle)
        check_enough(judge, train, test, wanted.labels(bundle.num_classes))
        status, files = draw_all(bundle, wanted, sweeps, folder)
        if status:
            return status
        drawn = {"bundle": bundle.facts(), "request": asdict(wanted)}
    samples = read_samples(images, judge.config.network)
    yardstick = Yardstick.of(judge, train, test, samples.labels)
    atomic.make_folder(folder)
    figures = yardstick.measure(samples, "samples")
    found = measure_all(judge, yardstick, samples, figures, files, images)
    report = Report(drawn, yardstick, test, figures, found, curve)
    report.write(folder)
    print(report.table())
    print(f"report and pictures: {folder}")
    return 0
