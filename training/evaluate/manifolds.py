"""Precision and recall: how many samples look real, and how much of what is real is drawn.

Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eq. 1 and 2: a set's
manifold is the union of a ball about each of its points, which reaches to the point's k-th nearest neighbour in the
set. Precision is the share of samples inside the manifold of the real images, recall the share of real images inside
the manifold of the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.evaluate.frechet import Float64

Bool = npt.NDArray[np.bool_]

NEIGHBOURS = 3  # k, as in the paper's section 3


def samples_needed(neighbours: int = NEIGHBOURS) -> int:
    """The fewest points that have a k-th neighbour each: k + 1."""
    return neighbours + 1


def squared_distances(first: Float64, second: Float64) -> Float64:
    """Between all pairs of rows, (N, D) and (M, D) -> (N, M): |a|² + |b|² - 2 a·b, which is exact for whole numbers."""
    products = first @ second.T
    squares = np.sum(first**2, axis=1)[:, None] + np.sum(second**2, axis=1)
    return np.asarray(np.maximum(squares - 2 * products, 0.0))


@dataclass(frozen=True)
class Manifolds:
    """Who lies in whose balls.

    Attributes:
        in_real: whether sample i lies in the ball of real image j, (N, M).
        in_samples: whether real image j lies in the ball of sample i, (M, N).
    """

    in_real: Bool
    in_samples: Bool

    @classmethod
    def of(cls, samples: Float64, real: Float64, neighbours: int = NEIGHBOURS) -> Manifolds:
        """The balls about two sets of features.

        Args:
            samples: float64 (N, D), N > k.
            real: float64 (M, D), M > k.
            neighbours: k.
        """
        between = squared_distances(samples, real)
        reach, own_reach = radii(real, neighbours), radii(samples, neighbours)
        return cls(between <= reach, own_reach >= between.T)

    def precision(self, sample_counts: Float64 | None = None, real_counts: Float64 | None = None) -> float:
        """The share of samples in the real manifold; counts as in ``share_inside``."""
        return share_inside(self.in_real, sample_counts, real_counts)

    def recall(self, sample_counts: Float64 | None = None, real_counts: Float64 | None = None) -> float:
        """The share of real images in the samples' manifold; counts as in ``share_inside``."""
        return share_inside(self.in_samples, real_counts, sample_counts)


def radii(points: Float64, neighbours: int) -> Float64:
    """The squared distance of each point to its k-th nearest other, (N, D) -> (N,)."""
    distances = squared_distances(points, points)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1])


def share_inside(inside: Bool, counts: Float64 | None = None, ball_counts: Float64 | None = None) -> float:
    """The share of points in at least one ball.

    Args:
        inside: of each point whether it lies in each ball, (N, M).
        counts: how often each point is there, (N,), as a bootstrap says; without them once each.
        ball_counts: likewise of the balls, (M,). A ball keeps its radius, since with points that are there twice
            every radius would shrink.
    """
    covered = inside.any(axis=1) if ball_counts is None else inside[:, ball_counts > 0].any(axis=1)
    return float(np.average(covered, weights=counts))
