"""Drawing through the torch-free runtime, in a process of its own: what is judged is what people will get."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training import atomic
from training.classifier.agreement import Int64
from training.errors import OutputError, TrainingError


@dataclass(frozen=True)
class Request:
    """What to draw; what is None is left to the bundle's defaults.

    Attributes:
        count: images over all classes together.
        seed: of the first image; the next has the next.
        steps: rows of the plan.
        sampler: its name.
        guidance_scale: 1 is off.
    """

    count: int
    seed: int
    steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None

    def images_per_class(self, num_classes: int) -> int:
        """How many of each.

        Raises:
            TrainingError: the images cannot be shared equally by the classes.
        """
        if self.count < num_classes or self.count % num_classes:
            raise TrainingError(f"--count is {self.count}; it must be a multiple of the {num_classes} classes")
        return self.count // num_classes

    def labels(self, num_classes: int) -> Int64:
        """Of the images in the order they are drawn, int64 (N,)."""
        return np.repeat(np.arange(num_classes), self.images_per_class(num_classes))

    def filled(self, defaults: Mapping[str, Any]) -> Request:
        """The same with a bundle's defaults where something is left to them."""
        known = {"steps": "num_inference_steps", "sampler": "sampler", "guidance_scale": "guidance_scale"}
        return replace(self, **{own: defaults[key] for own, key in known.items() if getattr(self, own) is None})

    def options(self, num_classes: int) -> list[str]:
        """The words that the runtime's command line is given."""
        words = {"label": "all", "count": self.images_per_class(num_classes), "seed": self.seed}
        words |= {"steps": self.steps, "sampler": self.sampler, "guidance-scale": self.guidance_scale}
        return [f"--{option}={value}" for option, value in words.items() if value is not None]


@dataclass(frozen=True)
class Bundle:
    """What the evaluation wants to know of a bundle; whether it is whole is for the runtime to find out."""

    folder: Path
    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    dataset: str | None
    defaults: dict[str, Any]
    manifest_sha256: str

    def facts(self) -> dict[str, Any]:
        """For the record: with the defaults, since a request may leave things to them."""
        return {"name": self.name, "manifest_sha256": self.manifest_sha256, "defaults": self.defaults}


def draws_texts(folder: Path) -> bool:
    """Whether this is a bundle whose model is told a text."""
    try:
        kind = json.loads((folder / "manifest.json").read_bytes())["conditioning"]["kind"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False  # what it is instead is for others to say
    return bool(kind == "text")


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest.

    Raises:
        TrainingError: there is none, or it is not of a class-conditional model of pixels.
    """
    file = folder / "manifest.json"
    try:
        data = file.read_bytes()
        manifest = json.loads(data)
    except OSError as error:
        raise TrainingError(f"{folder} is no bundle: {file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{folder} is no bundle: {file} is not JSON") from error
    try:
        pixels, conditioning, trained = manifest["pixels"], manifest["conditioning"], manifest["provenance"]["training"]
        return Bundle(
            folder,
            name=str(manifest["name"]),
            image_shape=(int(pixels["channels"]), int(pixels["height"]), int(pixels["width"])),
            num_classes=int(conditioning["num_classes"]),
            dataset=str(trained["config"]["dataset"]) if trained else None,
            defaults=dict(manifest["defaults"]),
            manifest_sha256=hashlib.sha256(data).hexdigest(),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{folder} is no bundle of a class-conditional model of pixels") from error


def draw(bundle: Bundle, request: Request, file: Path) -> int:
    """Draw into an ``.npz``; returns the runtime's exit status, and where it is not 0 the runtime has said why.

    Raises:
        TrainingError: the images cannot be shared equally by the classes, or the runtime was ended by a signal.
    """
    options = request.options(bundle.num_classes)
    if file.exists():
        raise OutputError(f"{file} exists already; judge it with --images, or choose another --out")
    atomic.make_folder(file.parent)
    command = [sys.executable, "-m", "runtime", "--model", str(bundle.folder), *options, "-o", str(file)]
    status = subprocess.run(command).returncode
    if status < 0:
        raise TrainingError(f"the runtime was ended by signal {-status} while it drew")
    return status
