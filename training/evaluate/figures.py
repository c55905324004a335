"""All figures of one set of samples, beside what they are for real images.

Samples are measured against as many real test images of each class as there are samples of it. What is right for real
images is found in the same way: as many images of the training set take the samples' place. Which images those are
does not depend on the samples, so that the figures of several sets compare.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.classifier.agreement import Agreement, Int64
from training.classifier.reading import agreement_on
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate import frechet, manifolds
from training.evaluate.bootstrap import RESAMPLES, Figure, bootstrap
from training.evaluate.frechet import Float64
from training.evaluate.judge import Judge
from training.evaluate.manifolds import Manifolds
from training.evaluate.neighbours import (
    Neighbours,
    find_neighbours,
    median,
    probability_nearer,
    share_among_nearest,
)
from training.evaluate.samples import Samples
from training.progress import stage
from training.randomness import array_generator

SEED = 0  # of the choice of real images and of the resamples: a new one would only add noise to comparisons
NEIGHBOURS_KEPT = 3


@dataclass(frozen=True)
class Likeness:
    """How one set of images lies to the real test images, in the judge's features."""

    frechet_distance: Figure
    precision: Figure
    recall: Figure

    @classmethod
    def between(cls, features: Float64, labels: Int64, real: Float64, real_labels: Int64, name: str) -> Likeness:
        """Of features (N, D) to those of the test images, (M, D), with the classes of both."""
        classes, balls = (labels, real_labels), Manifolds.of(features, real)

        def distance(counts: Float64, real_counts: Float64) -> float:
            ours, theirs = frechet.moments(features, counts), frechet.moments(real, real_counts)
            return frechet.distance_of_moments(*ours, *theirs)

        with stage(f"intervals of {name}", 3 * RESAMPLES) as advance:
            return cls(
                bootstrap(distance, classes, draws("distance"), (0, np.inf), advance),
                bootstrap(balls.precision, classes, draws("precision"), (0, 1), advance),
                bootstrap(balls.recall, classes, draws("recall"), (0, 1), advance),
            )

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).to_json() for name in ("frechet_distance", "precision", "recall")}


@dataclass(frozen=True)
class Figures:
    """What was found of one set of samples.

    Attributes:
        samples: the set.
        read_as: what the judge takes each for, int64 (N,).
        agreement: counts of that.
        likeness: to the test images.
        neighbours: the nearest training images.
        distance: the median distance to the nearest.
        nearer: the probability that it is less than that of a real test image.
        among_nearest: the share of samples as near as the nearest 1 % of real test images.
    """

    samples: Samples
    read_as: Int64
    agreement: Agreement
    likeness: Likeness
    neighbours: Neighbours
    distance: Figure
    nearer: Figure
    among_nearest: Figure

    def to_json(self) -> dict[str, Any]:
        return {
            "images": {"count": len(self.samples.images), "sha256": self.samples.sha256},
            "agreement": self.agreement.to_json(),
            **self.likeness.to_json(),
            "nearest_training_image": {
                "median_distance": self.distance.to_json(),
                "probability_nearer_than_a_real_image": self.nearer.to_json(),
                "share_among_nearest": self.among_nearest.to_json(),
            },
        }


@dataclass(frozen=True)
class Yardstick:
    """The real images that samples are measured against, and what is right for them.

    Attributes:
        judge: whose features these are.
        train: the training set, all of it.
        tested: how well the judge reads the whole test set.
        labels: of the test images, int64 (N,).
        features: of them, (N, D).
        nearest: their distances to the nearest training image, (N,).
        likeness: of training images to them: the floor, and where precision and recall can be at best.
        distance: the median of their distances.
    """

    judge: Judge
    train: Dataset
    tested: Agreement
    labels: Int64
    features: Float64
    nearest: Float64
    likeness: Likeness
    distance: Figure

    @classmethod
    def of(cls, judge: Judge, train: Dataset, test: Dataset, labels: Int64) -> Yardstick:
        """For samples with these labels, (N,).

        Raises:
            TrainingError: as ``check_enough``.
        """
        check_enough(judge, train, test, labels)
        some_test, some_train = (dataset.images[choose(dataset, labels)] for dataset in (test, train))
        with stage("reading real images", len(test.images) + 2 * len(labels)) as advance:
            tested = agreement_on(judge.model, test, advance)
            features, others = (judge.read(images, advance).features for images in (some_test, some_train))
        with stage("nearest to real images", len(train.images)) as advance:
            nearest = find_neighbours(some_test, train.images, 1, advance).nearest
        labels = np.sort(labels)  # in which order they are chosen
        likeness = Likeness.between(others, labels, features, labels, "real images")
        return cls(judge, train, tested, labels, features, nearest, likeness, median_of(nearest, labels))

    def measure(self, samples: Samples, name: str) -> Figures:
        """All figures of samples with the same labels; ``name`` is for who watches."""
        with stage(f"reading {name}", len(samples.images)) as advance:
            reading = self.judge.read(samples.images, advance)
        with stage(f"nearest to {name}", len(self.train.images)) as advance:
            found = find_neighbours(samples.images, self.train.images, NEIGHBOURS_KEPT, advance)

        def compared(statistic: Callable[..., float]) -> Figure:
            of_counts = functools.partial(statistic, found.nearest, self.nearest)
            return bootstrap(of_counts, (samples.labels, self.labels), draws("nearer"), (0, 1))

        num_classes = self.judge.config.network.num_classes
        return Figures(
            samples,
            reading.classes,
            Agreement.between(samples.labels, reading.classes, num_classes),
            Likeness.between(reading.features, samples.labels, self.features, self.labels, name),
            found,
            median_of(found.nearest, samples.labels),
            compared(probability_nearer),
            compared(share_among_nearest),
        )

    def to_json(self) -> dict[str, Any]:
        """What the real images come to."""
        return {**self.likeness.to_json(), "nearest_training_image": {"median_distance": self.distance.to_json()}}


def median_of(distances: Float64, labels: Int64) -> Figure:
    return bootstrap(lambda counts: median(distances, counts), (labels,), draws("median"), (0, 1))


def draws(kind: str) -> np.random.Generator:
    return array_generator(SEED, kind, 0)


def check_enough(judge: Judge, train: Dataset, test: Dataset, labels: Int64) -> None:
    """Find out before anything is drawn whether there are images enough.

    Raises:
        TrainingError: too few samples for a statistic, or fewer real images of a class than samples.
    """
    dimension = judge.model.head.in_features
    needed = max(frechet.samples_needed(dimension), manifolds.samples_needed())
    if len(labels) < needed:
        raise TrainingError(
            f"{len(labels)} images are too few: the Fréchet distance in the classifier's {dimension} features needs "
            f"{needed} or more"
        )
    asked = np.bincount(labels)
    for dataset, split in ((test, "test"), (train, "training")):
        there = np.bincount(dataset.labels, minlength=len(asked))
        for k in np.flatnonzero(asked > there[: len(asked)])[:1]:
            raise TrainingError(
                f"{asked[k]} images of class {k} cannot be measured against the {there[k]} real ones in the {split} "
                f"set of {dataset.name}; {there[k]} of it or fewer can"
            )


def choose(dataset: Dataset, labels: Int64) -> Int64:
    """Which images: of each class as many as there are labels, without replacement, class by class, int64 (N,)."""
    order = array_generator(SEED, "choice", 0).permutation(len(dataset.labels))
    asked = np.bincount(labels)
    return np.concatenate([order[dataset.labels[order] == k][:count] for k, count in enumerate(asked)])
