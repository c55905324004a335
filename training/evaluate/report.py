"""What was found, as tables, as JSON and as pictures to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import atomic
from training.data import Dataset
from training.evaluate import curves, pictures
from training.evaluate.curves import Curve
from training.evaluate.figures import Figures, Yardstick
from training.evaluate.sweeps import Sweep

REPORT = "evaluation.json"


@dataclass(frozen=True)
class Report:
    """Everything that is said of a bundle, or of images that were drawn before.

    Attributes:
        drawn: which bundle and what was asked of it; nothing for images from elsewhere.
        yardstick: the real images.
        test: the test set, for its size and the names of its classes.
        figures: of the samples.
        sweeps: figures at other settings.
        curve: of the run that the model comes from, if it was given, with its folder's name.
    """

    drawn: Mapping[str, Any]
    yardstick: Yardstick
    test: Dataset
    figures: Figures
    sweeps: Mapping[Sweep, Sequence[Figures]]
    curve: tuple[str, Curve] | None

    def to_json(self) -> dict[str, Any]:
        yardstick = self.yardstick
        return {
            **self.drawn,
            **self.figures.to_json(),
            "real": yardstick.to_json(),
            "classifier": yardstick.judge.to_json(yardstick.tested),
            "sweeps": {sweep.field: sweep.to_json(found) for sweep, found in self.sweeps.items()},
        }

    def table(self) -> str:
        """For people, with how far to trust it."""
        judge, tested = self.yardstick.judge, self.yardstick.tested.overall
        parts = [self.figures.agreement.table(self.test.class_names), self.likeness_table()]
        parts += [sweep.table(found) for sweep, found in self.sweeps.items()]
        parts.append(
            f"judge: {judge.file}, SHA-256 {judge.sha256}, "
            f"reads {100 * tested.rate:.2f} % of {tested.count} test images of {self.test.name} rightly"
        )
        return "\n\n".join(parts)

    def likeness_table(self) -> str:
        """The other figures beside what they are for real images."""
        ours, real = self.figures.likeness, self.yardstick.likeness
        rows = [("", "samples (95 % interval)", "real training images")]
        rows += [
            ("Fréchet distance", ours.frechet_distance.in_words(2), real.frechet_distance.in_words(2)),
            ("precision, %", ours.precision.in_words(1, 100), real.precision.in_words(1, 100)),
            ("recall, %", ours.recall.in_words(1, 100), real.recall.in_words(1, 100)),
        ]
        distances = (self.figures.distance.in_words(4), f"{self.yardstick.distance.in_words(4)} of test images")
        rows += [
            ("nearest training image", *distances),
            ("nearer than a real one's, %", self.figures.nearer.in_words(1, 100), "50"),
            ("as near as the nearest 1 %", f"{self.figures.among_nearest.in_words(1, 100)} %", "1 %"),
        ]
        return "\n".join(f"{name:>27}  {mine:<26}  {theirs}".rstrip() for name, mine, theirs in rows)

    def write(self, folder: Path) -> None:
        """Pictures first and the figures last: where there are figures, the rest is there too.

        Raises:
            OutputError: the folder cannot be written to.
        """
        figures, num_classes = self.figures, self.yardstick.judge.config.network.num_classes
        sheets = {
            "grid": pictures.grid_by_class(figures.samples, num_classes),
            "neighbours": pictures.neighbours(figures.samples, figures.neighbours, self.yardstick.train),
            "disagreements": pictures.disagreements(figures.samples, figures.read_as),
        }
        for sweep, found in self.sweeps.items():
            settings = [(f"{value:g}", each.samples) for value, each in zip(sweep.values, found, strict=True)]
            sheets[f"{sweep.name}-sweep"] = pictures.sweep(settings, num_classes)
        if self.curve:
            name, curve = self.curve
            sheets["loss"] = curves.plot(curve, f"{name}: loss by step, and its moving average")
        for name, picture in sheets.items():
            if picture:
                atomic.write(folder / f"{name}.png", pictures.png(picture))
        atomic.write(folder / REPORT, json.dumps(self.to_json(), indent=2).encode() + b"\n")
