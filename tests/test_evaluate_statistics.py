"""Proves the statistics of samples against closed forms, hand-worked sets and SciPy: the Fréchet distance, precision
and recall, nearest training images, and the bootstrap's intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from training.evaluate import frechet, manifolds
from training.evaluate.bootstrap import Figure, bootstrap
from training.evaluate.frechet import distance_of_moments, frechet_distance, moments
from training.evaluate.manifolds import Manifolds, share_inside, squared_distances
from training.evaluate.neighbours import BLOCK, find_neighbours, median, probability_nearer, share_among_nearest


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# The Fréchet distance.


def scaled_axes(scales: list[float], mean: list[float]) -> np.ndarray:
    """Points whose mean and (unbiased) covariance are exactly these: two on each axis, on either side."""
    dimension = len(scales)
    # The 2D points have the sum of squares 2 r² on each axis, and 2D - 1 degrees of freedom.
    reach = np.diag(np.sqrt((2 * dimension - 1) / 2) * np.array(scales))
    return np.concatenate([reach, -reach]) + np.array(mean)


def test_of_axis_aligned_normals_it_is_that_of_means_and_deviations() -> None:
    """Covariances that commute: d² = |μ_1 - μ_2|² + Σ (s_1 - s_2)² of the standard deviations."""
    first, second = scaled_axes([1, 2, 3], [0, 0, 0]), scaled_axes([2, 2, 0.5], [3, 0, 4])
    assert frechet_distance(first, second) == pytest.approx(9 + 16 + 1 + 0 + 2.5**2, rel=1e-13)


def test_in_one_dimension_it_is_that_of_two_normals() -> None:
    first, second = np.array([[0.0], [2.0]]), np.array([[7.0], [13.0]])  # means 1 and 10, deviations √2 and √18
    assert frechet_distance(first, second) == pytest.approx(81 + (math.sqrt(18) - math.sqrt(2)) ** 2, rel=1e-13)


def test_of_a_set_to_itself_it_is_nothing_and_moving_it_adds_the_square_of_the_way() -> None:
    features = draws().standard_normal((50, 8))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(features, features + 0.5) == pytest.approx(8 * 0.25, rel=1e-12)


@pytest.mark.parametrize("count", [200, 20], ids=["more-samples-than-dimensions", "fewer"])
def test_against_scipys_square_root_of_a_matrix(count: int) -> None:
    """Correlated features, with covariances that are singular where there are fewer samples than dimensions."""
    mixing = draws(1).standard_normal((2, 30, 30))
    first, second = draws(2).standard_normal((2, count, 30)) @ mixing
    covariances = [np.cov(each, rowvar=False) for each in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    apart = first.mean(0) - second.mean(0)
    expected = apart @ apart + np.trace(covariances[0] + covariances[1] - 2 * root)
    # SciPy's root of a singular matrix is exact to half of the digits.
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10 if count > 30 else 1e-5)


def test_counts_are_as_good_as_repetition() -> None:
    features, counts = draws().standard_normal((12, 4)), np.array([2, 0, 1, 3, 0, 1, 1, 0, 2, 1, 1, 0.0])
    repeated = np.repeat(features, counts.astype(int), axis=0)
    for counted, plain in zip(moments(features, counts), moments(repeated), strict=True):
        np.testing.assert_allclose(counted.T @ counted, plain.T @ plain, rtol=0, atol=1e-13)
    mean, root = moments(repeated)
    np.testing.assert_allclose(mean, repeated.mean(0), rtol=0, atol=1e-15)
    np.testing.assert_allclose(root.T @ root, np.cov(repeated, rowvar=False), rtol=0, atol=1e-14)
    other = moments(draws(3).standard_normal((9, 4)))
    assert distance_of_moments(*moments(features, counts), *other) == pytest.approx(
        distance_of_moments(*moments(repeated), *other), rel=1e-12
    )


def test_with_few_samples_of_one_source_it_is_not_nothing_and_falls_with_their_number() -> None:
    """Why figures of different numbers of samples do not compare, and why the floor is shown."""
    few, many = (
        frechet_distance(draws(4).standard_normal((count, 16)), draws(5).standard_normal((count, 16)))
        for count in (50, 1600)
    )
    assert 0 < many < 0.1 * few
    assert frechet.samples_needed(16) == 17


# Precision and recall.


def test_precision_and_recall_of_points_on_a_line() -> None:
    """For k = 1 the real balls are [-1, 1], [0, 2] and [1, 7], the samples' [-1.5, 2.5], [0.5, 4.5], [2.5, 37.5]."""
    real, samples = np.array([[0.0], [1.0], [4.0]]), np.array([[0.5], [2.5], [20.0]])
    found = Manifolds.of(samples, real, neighbours=1)
    assert found.in_real.tolist() == [[True, True, False], [False, False, True], [False, False, False]]
    assert found.in_samples.tolist() == [[True, False, False], [True, True, False], [False, True, True]]
    assert found.precision() == pytest.approx(2 / 3)
    assert found.recall() == pytest.approx(1.0)


def test_samples_of_one_kind_only_are_precise_and_recall_half() -> None:
    """Two clouds are real, far from each other; the samples are like the first."""
    cloud = draws().uniform(-1, 1, (40, 2))
    real = np.concatenate([cloud, cloud + 100])
    found = Manifolds.of(draws(1).uniform(-1, 1, (40, 2)), real)
    assert found.precision() > 0.8
    assert 0.4 < found.recall() <= 0.5
    assert Manifolds.of(real, real).precision() == Manifolds.of(real, real).recall() == 1
    assert Manifolds.of(real + 1000, real).precision() == Manifolds.of(real + 1000, real).recall() == 0


def test_radii_reach_to_the_third_nearest_other() -> None:
    points = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 1.0]])
    distances = np.sort(np.linalg.norm(points[:, None] - points, axis=-1), axis=1)  # the first is to itself
    np.testing.assert_allclose(manifolds.radii(points, 3), distances[:, 3] ** 2, rtol=1e-15)
    assert manifolds.samples_needed() == 4
    assert np.isfinite(manifolds.radii(points[:4], 3)).all()


def test_counts_of_points_and_of_balls() -> None:
    inside = np.array([[True, False], [False, True], [False, False]])
    assert share_inside(inside) == pytest.approx(2 / 3)
    assert share_inside(inside, np.array([1.0, 3.0, 4.0])) == pytest.approx(4 / 8)
    assert share_inside(inside, np.array([1.0, 3.0, 4.0]), np.array([0.0, 2.0])) == pytest.approx(3 / 8)
    assert share_inside(inside, None, np.array([2.0, 0.0])) == pytest.approx(1 / 3)


def test_distances_of_whole_numbers_are_exact() -> None:
    levels = draws().integers(0, 256, (20, 3072)).astype(np.float64)
    expected = np.sum((levels[:, None].astype(int) - levels[:10].astype(int)) ** 2, axis=-1)
    np.testing.assert_array_equal(squared_distances(levels, levels[:10]), expected)


# Nearest training images.


def images(count: int, seed: int = 0) -> np.ndarray:
    return draws(seed).integers(0, 256, (count, 3, 4, 4), np.uint8)


def test_the_nearest_few_of_the_whole_set() -> None:
    """Several blocks, against all distances at once; a copy is found at a distance of exactly nothing."""
    training, samples = images(2 * BLOCK + 7), images(5, seed=1)
    samples[0], samples[1] = training[2 * BLOCK + 3], training[0]
    samples[1, 0, 0, 0] ^= 1
    seen: list[int] = []
    found = find_neighbours(samples, training, 3, seen.append)
    differences = (samples[:, None].astype(float) - training.astype(float)) / 255
    expected = np.sqrt((differences**2).mean(axis=(2, 3, 4)))
    np.testing.assert_allclose(found.distances, np.sort(expected, axis=1)[:, :3], rtol=1e-12)
    np.testing.assert_array_equal(found.indices, np.argsort(expected, axis=1)[:, :3])
    assert (found.indices[0, 0], found.nearest[0]) == (2 * BLOCK + 3, 0.0)
    assert found.nearest[1] == pytest.approx(1 / 255 / math.sqrt(48))
    assert seen == [BLOCK, BLOCK, 7]


def test_black_to_white_is_one() -> None:
    black, white = np.zeros((1, 1, 4, 4), np.uint8), np.full((3, 1, 4, 4), 255, np.uint8)
    assert find_neighbours(black, white, 2).distances.tolist() == [[1.0, 1.0]]


def test_the_probability_to_be_nearer_is_that_of_mann_and_whitney() -> None:
    samples, real = draws().integers(0, 20, 60) / 20, draws(1).integers(0, 25, 80) / 20  # with many ties
    u = scipy.stats.mannwhitneyu(real, samples).statistic
    assert probability_nearer(samples, real) == pytest.approx(u / (60 * 80), rel=1e-12)
    assert probability_nearer(real, real) == pytest.approx(0.5)
    assert probability_nearer(np.zeros(4), real + 1) == 1
    counts, real_counts = draws(2).integers(0, 4, 60), draws(3).integers(0, 4, 80)
    repeated = probability_nearer(np.repeat(samples, counts), np.repeat(real, real_counts))
    assert probability_nearer(samples, real, counts + 0.0, real_counts + 0.0) == pytest.approx(repeated, rel=1e-12)


def test_the_share_of_samples_among_the_nearest() -> None:
    """Of the numbers 0 to 100 the nearest hundredth end at 1."""
    real = draws().permutation(101).astype(np.float64)
    samples = np.array([0.0, 0.5, 0.99, 1.0, 2.0, 50.0, 70.0, 0.2])
    assert share_among_nearest(samples, real) == 4 / 8
    assert share_among_nearest(samples, real, np.array([1, 0, 0, 3, 0, 0, 0, 1.0])) == 2 / 5
    assert share_among_nearest(samples, real, None, np.where(real == 50, 2.0, 0.0)) == 6 / 8
    assert share_among_nearest(real, real) == pytest.approx(1 / 101)


def test_the_median_of_counted_values() -> None:
    assert median(np.array([3.0, 1.0, 2.0])) == 2
    assert median(np.array([3.0, 1.0, 2.0]), np.array([2.0, 1.0, 0.0])) == 3


# The bootstrap.


def mean_of(values: np.ndarray):
    return lambda counts: float(np.average(values, weights=counts))


def one_class(count: int) -> np.ndarray:
    return np.zeros(count, np.int64)


def test_as_many_of_each_class_are_drawn_so_that_how_they_differ_widens_nothing() -> None:
    """Of a stratified mean: the variance within classes alone, over N."""
    labels = draws(3).permutation(np.repeat([0, 1, 5], [100, 60, 40]))
    within = draws().standard_normal(200)
    seen = []

    def mean(counts: np.ndarray) -> float:
        seen.append([counts[labels == k].sum() for k in (0, 1, 5)])
        return float(np.average(within + 1000 * labels, weights=counts))

    found = bootstrap(mean, (labels,), draws(1))
    assert np.unique(seen, axis=0).tolist() == [[100, 60, 40]]
    variance = sum((labels == k).sum() * within[labels == k].var() for k in (0, 1, 5)) / 200**2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.15)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = draws().standard_normal(400)
    found = bootstrap(mean_of(values), (one_class(400),), draws(1))
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.15)
    assert found.value - found.low == pytest.approx(half, rel=0.15)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = []
    for seed in range(150):
        found = bootstrap(mean_of(draws(seed).exponential(size=60)), (one_class(60),), draws(1000 + seed))
        held.append(found.low <= 1 <= found.high)
    assert 0.86 < np.mean(held) < 0.99


def test_sets_are_drawn_independently_and_each_draw_is_counted() -> None:
    seen, done = [], []

    def difference(first: np.ndarray, second: np.ndarray) -> float:
        seen.append((first, second))
        return float(first[0] - second[0])

    bootstrap(difference, (one_class(5), one_class(7)), draws(), progress=done.append)
    assert (len(seen), sum(done)) == (501, 500)
    assert all((first.sum(), second.sum()) == (5, 7) for first, second in seen)
    pairs = np.array([(first[0], second[0]) for first, second in seen[1:]])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.15


def test_the_bias_of_drawing_twice_does_not_move_the_interval_off_the_figure() -> None:
    """The Fréchet distance of resamples is nearly always larger; the interval lies about that of the samples."""
    first, second = draws(0).standard_normal((80, 10)), draws(1).standard_normal((80, 10))
    resampled = []

    def distance(counts: np.ndarray, others: np.ndarray) -> float:
        resampled.append(distance_of_moments(*moments(first, counts), *moments(second, others)))
        return resampled[-1]

    found = bootstrap(distance, (one_class(80), one_class(80)), draws(2))
    assert found.value == pytest.approx(frechet_distance(first, second), rel=1e-12)
    assert np.quantile(resampled[1:], 0.025) > found.value
    assert 0 <= found.low < found.value < found.high


def test_an_interval_ends_where_the_statistic_does() -> None:
    values = np.array([1.0] * 49 + [0.0])
    found = bootstrap(mean_of(values), (one_class(50),), draws(), bounds=(0, 1))
    assert found.high == 1
    assert Figure(0.98, 0.94, 1.0).in_words(1, 100) == "98.0 (94.0 to 100.0)"
    assert bootstrap(mean_of(np.ones(5)), (one_class(5),), draws()) == Figure(1, 1, 1)
