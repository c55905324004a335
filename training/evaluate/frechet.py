"""How far two sets of features lie apart as clouds: the Fréchet distance of the normal distributions fitted to them.

Heusel et al. 2017, "GANs trained by a two time-scale update rule", eq. 6, after Dowson & Landau 1982::

    d² = |μ_1 - μ_2|² + Tr(Σ_1 + Σ_2 - 2 (Σ_1 Σ_2)^½)

What is commonly called FID is d² in the features of a network that reads ImageNet. Here they are those of the
classifier that judges, so figures compare within one classifier and one number of samples only: with few samples the
covariances are rough, which makes d² larger. Hence the floor that every figure is shown beside.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def samples_needed(dimension: int) -> int:
    """The fewest samples whose covariance in D dimensions has full rank: D + 1."""
    return dimension + 1


def frechet_distance(first: Float64, second: Float64) -> float:
    """d² of two sets of features.

    Args:
        first: float64 (N, D), N > 1.
        second: float64 (M, D), M > 1.
    """
    return distance_of_moments(*moments(first), *moments(second))


def moments(features: Float64, counts: Float64 | None = None) -> tuple[Float64, Float64]:
    """The mean (D,), and R (min(N, D), D) with Rᵀ R the covariance (divided by N - 1).

    R comes of a QR factorisation of the features themselves, which is exact where their covariance, being their
    square, would have lost half of the digits; it may be singular.

    Args:
        features: float64 (N, D).
        counts: how often each is there, (N,), as a bootstrap says; without them once each.
    """
    counts = np.ones(len(features)) if counts is None else counts
    present = counts > 0
    features, counts = features[present], counts[present]
    mean = counts @ features / counts.sum()
    centred = (features - mean) * np.sqrt(counts / (counts.sum() - 1))[:, None]
    return mean, np.asarray(np.linalg.qr(centred, mode="r"))


def distance_of_moments(mean_1: Float64, root_1: Float64, mean_2: Float64, root_2: Float64) -> float:
    """d² of two normal distributions, given by their means (D,) and any R with Rᵀ R = Σ, (K, D).

    The eigenvalues of Σ_1 Σ_2 = R_1ᵀ R_1 R_2ᵀ R_2 are the squares of the singular values of R_1 R_2ᵀ, so the trace of
    its square root is their sum.
    """
    between = np.sum((mean_1 - mean_2) ** 2)
    within = np.sum(root_1**2) + np.sum(root_2**2) - 2 * np.linalg.svd(root_1 @ root_2.T, compute_uv=False).sum()
    return float(between + max(0.0, within))  # rounding may leave equal covariances a little below nothing
