"""``python -m training evaluate BUNDLE`` for a bundle of the pocket model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from training import atomic, data
from training.arguments import ArgumentParser
from training.errors import OutputError, TrainingError
from training.evaluate.command import REPORT
from training.paths import file_sha256
from training.randomness import array_generator
from training.stable_diffusion.pocket.captions import known_words
from training.stable_diffusion.pocket.checkpoint import SHIPPED_JUDGE
from training.stable_diffusion.pocket.evaluation.drawing import Drawer
from training.stable_diffusion.pocket.evaluation.images import rebuild, recolour
from training.stable_diffusion.pocket.evaluation.negatives import run_trials
from training.stable_diffusion.pocket.evaluation.neighbours import TrainingPictures, nearest
from training.stable_diffusion.pocket.evaluation.report import Findings, Prompted
from training.stable_diffusion.pocket.evaluation.requests import draw_requests
from training.stable_diffusion.pocket.judge import Judge, load_judge
from training.stable_diffusion.pocket.render import render
from training.stable_diffusion.pocket.sources import Sources

COUNT, STEPS, SEED = 1000, 20, 0


def parser() -> ArgumentParser:
    evaluate = ArgumentParser(
        prog="python -m training evaluate",
        description="Draw a thousand sentences through the torch-free runtime, half of them about combinations that "
        "were kept from training, and let a classifier read the pictures. One setting for all figures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    evaluate.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    evaluate.add_argument("--data", type=Path, help=f"folder with the data sets; else ${data.DATA_VARIABLE}")
    evaluate.add_argument(
        "--classifier", type=Path, default=SHIPPED_JUDGE, help="the judge; else the one that comes along"
    )
    evaluate.add_argument("--count", type=int, default=COUNT, help="sentences")
    evaluate.add_argument("--steps", type=int, default=STEPS, help="of the sampler")
    evaluate.add_argument("--sampler", help="its name; without it the bundle's")
    evaluate.add_argument("--guidance-scale", type=float, help="1 is off; without it the bundle's")
    evaluate.add_argument("--seed", type=int, default=SEED, help="of sentences and pictures")
    evaluate.add_argument("--out", type=Path, help="folder for report and pictures; without it runs/evaluate-NAME")
    return evaluate


def runtime_options(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The one setting for all figures, as words of the runtime's command line."""
    chosen = {"steps": arguments.steps, "sampler": arguments.sampler, "guidance-scale": arguments.guidance_scale}
    return tuple(f"--{name}={value}" for name, value in chosen.items() if value is not None)


def draw_prompts(drawer: Drawer, judge: Judge, sources: Sources, count: int, folder: Path) -> Prompted:
    """The sentences' pictures, read, and real pictures of their scenes, read."""
    requests = draw_requests(count, drawer.seed)
    pictures = drawer.draw([{"prompt": request.caption.text} for request in requests], folder)
    draws = array_generator(drawer.seed, "real", 0)
    real = np.stack([render(request.scene, sources, draws).pixels for request in requests])
    return Prompted(requests, pictures, judge.read(pictures), judge.read(real))


def check_world(bundle: Path) -> None:
    """Only a model of this world can be judged by its sentences.

    Raises:
        TrainingError: the bundle's model does not know all words of its sentences, or has no list of them.
    """
    known = json.loads((bundle / "manifest.json").read_bytes())["conditioning"].get("known_words")
    if not (isinstance(known, list) and {*known_words()} <= {*known}):
        raise TrainingError(f"{bundle} is no bundle of the pocket model, whose sentences are what is judged here")


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    folder = arguments.out or Path("runs") / f"evaluate-{arguments.bundle.resolve().name}"
    if arguments.count < 2:
        raise TrainingError(f"--count is {arguments.count}; it must be at least 2, one of each half")
    if (folder / REPORT).exists():
        raise OutputError(f"{folder} holds an evaluation already; choose another --out")
    check_world(arguments.bundle)
    judge = load_judge(arguments.classifier)
    known, test = (Sources.load(split, arguments.data) for split in ("train", "test"))
    drawer = Drawer(arguments.bundle, arguments.seed, runtime_options(arguments))
    prompted = draw_prompts(drawer, judge, test, arguments.count, folder / "prompts")
    recoloured = recolour(drawer, judge, test, folder / "recoloured")
    training = TrainingPictures(known)
    findings = Findings(
        prompted,
        run_trials(drawer, judge, folder / "negatives"),
        rebuild(drawer, test, folder / "rebuilt"),
        recoloured,
        nearest(prompted.pictures, prompted.read, training),
        nearest(recoloured.real, judge.read(recoloured.real), training),
    )
    findings.write_pictures(folder)
    manifest, name = arguments.bundle / "manifest.json", arguments.bundle.resolve().name
    defaults = json.loads(manifest.read_bytes())["defaults"]
    facts = {
        "bundle": {"name": name, "manifest_sha256": file_sha256(manifest), "defaults": defaults},
        "request": {"count": arguments.count, "seed": arguments.seed, "options": list(drawer.options)},
        "judge": {"file": str(arguments.classifier), "sha256": file_sha256(arguments.classifier)},
    }
    atomic.write(folder / REPORT, json.dumps(facts | findings.to_json(), indent=2, allow_nan=False).encode() + b"\n")
    print(f"{findings.table()}\n\nreport and pictures: {folder}")
    return 0
