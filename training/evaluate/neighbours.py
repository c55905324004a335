"""The training images nearest to what was drawn: does the model repeat what it has seen?

The distance is that of pixels, since a copy is a copy of pixels: the root mean square over pixels and channels, from 0
to 1. A sample can be near to a training image without being a copy, as real images are; so what counts is how the
samples' distances lie to those of real test images, which cannot have been copied. Plain pictures are nearer to
everything than detailed ones, so guided samples, which are plainer, come out a little nearer as well. A model that
repeats its training set has distances of next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.arrays import UInt8
from training.classifier.agreement import Int64
from training.evaluate.frechet import Float64
from training.evaluate.manifolds import squared_distances

NEAREST_SHARE = 0.01  # of real test images: so near to the training set lie few that were not copied
BLOCK = 2000  # training images at a time: 50 MB of float64 for those of CIFAR-10


@dataclass(frozen=True)
class Neighbours:
    """The nearest few of each image, the nearest first.

    Attributes:
        distances: float64 (N, k).
        indices: into the training set, int64 (N, k).
    """

    distances: Float64
    indices: Int64

    @property
    def nearest(self) -> Float64:
        """The distance to the nearest of all, (N,)."""
        return np.asarray(self.distances[:, 0])


def find_neighbours(
    images: UInt8, training: UInt8, count: int, progress: Callable[[int], None] = lambda done: None
) -> Neighbours:
    """Search the whole training set.

    Args:
        images: uint8 (N, C, H, W).
        training: uint8 (M, C, H, W), M >= count.
        count: k, how many neighbours of each image to keep.
        progress: is called with the number of training images that were looked at since it was called last.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    best = np.full((len(images), count), np.inf)
    where = np.zeros((len(images), count), np.int64)
    for begin in range(0, len(training), BLOCK):
        block = training[begin : begin + BLOCK]
        # Levels are whole numbers, and so exact: an image is at a distance of 0 from itself and from nothing else.
        found = squared_distances(flat, block.reshape(len(block), -1).astype(np.float64))
        few = np.argpartition(found, min(count, len(block)) - 1, axis=1)[:, :count]
        best = np.concatenate([best, np.take_along_axis(found, few, 1)], axis=1)
        where = np.concatenate([where, begin + few], axis=1)
        order = np.argsort(best, axis=1, kind="stable")[:, :count]
        best, where = np.take_along_axis(best, order, 1), np.take_along_axis(where, order, 1)
        progress(len(block))
    return Neighbours(np.sqrt(best / flat.shape[1]) / 255, where)


def probability_nearer(
    samples: Float64, real: Float64, sample_counts: Float64 | None = None, real_counts: Float64 | None = None
) -> float:
    """How probable it is that a sample is nearer to its nearest training image than a real test image to its own.

    It is the statistic of Mann & Whitney 1947, ties counting half: 0.5 where both are alike, 1 where every sample is
    nearer than every real image.

    Args:
        samples: distances, (N,).
        real: distances, (M,).
        sample_counts, real_counts: how often each is there, as a bootstrap says; without them once each.
    """
    order = np.argsort(real)
    counts = np.ones(len(real)) if real_counts is None else real_counts[order]
    farther = np.concatenate([[0.0], np.cumsum(counts)])
    below, above = (farther[np.searchsorted(real[order], samples, side)] for side in ("left", "right"))
    nearer = 1 - (below + above) / (2 * farther[-1])
    return float(np.average(nearer, weights=sample_counts))


def share_among_nearest(
    samples: Float64, real: Float64, sample_counts: Float64 | None = None, real_counts: Float64 | None = None
) -> float:
    """How many samples are nearer to a training image than all but the nearest 1 % of real test images.

    Where a model repeats a part of what it draws, this shows it before a median does.

    Args:
        samples: distances, (N,).
        real: distances, (M,).
        sample_counts, real_counts: how often each is there, as a bootstrap says; without them once each.
    """
    repeated = real if real_counts is None else np.repeat(real, real_counts.astype(np.int64))
    return float(np.average(samples < np.quantile(repeated, NEAREST_SHARE), weights=sample_counts))


def median(values: Float64, counts: Float64 | None = None) -> float:
    """The median of values that are there so many times each."""
    return float(np.median(values if counts is None else np.repeat(values, counts.astype(np.int64))))
