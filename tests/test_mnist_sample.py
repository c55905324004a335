"""Proves that the committed digits are what tests/data/README.md says: the first of each class of MNIST."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

PER_CLASS = {"train": 40, "test": 10}


@pytest.mark.parametrize("split", PER_CLASS)
def test_every_class_is_there_equally_often(mnist_sample: dict[str, np.ndarray], split: str) -> None:
    images, labels = mnist_sample[f"x_{split}"], mnist_sample[f"y_{split}"]
    assert images.shape == (10 * PER_CLASS[split], 28, 28)
    assert images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [PER_CLASS[split]] * 10


@pytest.mark.parametrize("split", PER_CLASS)
def test_they_are_the_first_of_each_class(mnist_sample: dict[str, np.ndarray], mnist_folder: Path, split: str) -> None:
    from training.data import load

    whole = load("mnist", split, mnist_folder)
    first = [np.flatnonzero(whole.labels == label)[: PER_CLASS[split]] for label in range(10)]
    chosen = np.sort(np.concatenate(first))
    np.testing.assert_array_equal(mnist_sample[f"x_{split}"], whole.images[chosen, 0])
    np.testing.assert_array_equal(mnist_sample[f"y_{split}"], whole.labels[chosen])
