"""Proves that a bundle's classes have the names that the data set gives them, by way of the checkpoint, or numbers; and
that names which do not fit are one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from export_samples import write_checkpoint

from export.ddpm import describe, open_checkpoint
from export.errors import ExportError
from training.data import Dataset
from training.ddpm.config import TrainConfig
from training.ddpm.model import UNetConfig
from training.ddpm.train import Trainer
from training.published import CIFAR10, FASHION_MNIST
from training.run import Run


def names(path: Path) -> list[str]:
    conditioning = describe(open_checkpoint(path, "Apache-2.0"), "sample")["conditioning"]
    return list(conditioning["names"])


def test_from_data_set_to_manifest(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([0, 1, 0, 1], np.uint8)
    dataset = Dataset("pets", images, labels, "of these pets", ("cat", "dog"))
    config = TrainConfig("pets", UNetConfig(1, 8, 8, 2), epochs=1, batch_size=4)
    Trainer(config, dataset, Run(tmp_path)).save()
    assert names(tmp_path / "model.safetensors") == ["cat", "dog"]


@pytest.mark.parametrize("metadata", [{}, {"class_names": "[]"}], ids=["made-before-there-were-names", "none"])
def test_without_names_they_are_numbers(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors", **metadata)
    assert names(path) == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]


def test_published_data_sets_name_each_class() -> None:
    for dataset in (FASHION_MNIST, CIFAR10):
        assert len(set(dataset.class_names)) == 10
    assert (FASHION_MNIST.class_names[7], CIFAR10.class_names[6]) == ("sneaker", "frog")


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        ("{", "are no list of names"),
        ("[" * 10**5, "are no list of names"),
        ('{"a": 1}', "are no list of names"),
        (json.dumps([1] * 10), "are no list of names"),
        (json.dumps([""] * 10), "are no list of names"),
        (json.dumps(["cat", "dog"]), "has 10 classes; its metadata names 2 different ones"),
        (json.dumps(["cat"] * 10), "has 10 classes; its metadata names 1 different ones"),
    ],
    ids=["no-json", "deep", "object", "numbers", "empty", "few", "twice"],
)
def test_names_that_do_not_fit(tmp_path: Path, class_names: str, message: str) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors", class_names=class_names)
    with pytest.raises(ExportError) as caught:
        names(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
