"""Proves that the survey sees every value of a graph and keeps none, and that stress inputs reach the ends."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from half_graphs import (
    NODE,
    in_numpy,
    noise,
    overflowing_graph,
    write,
)
from random_weights import SMALLEST

from export.sd15_graphs import SPECS, modules
from export.stress import stress_inputs
from export.survey import survey
from training.stable_diffusion.checkpoint.networks import without_weights


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    return overflowing_graph(tmp_path / "graph.onnx")


def test_the_survey_sees_every_value(overflowing: Path) -> None:
    """Against NumPy: inputs, weights and results, over all samples."""
    samples = [{"x": noise(seed=seed) * scale} for seed, scale in enumerate((0.5, 4, 1))]
    expected: dict[str, float] = {}
    for sample in samples:
        for name, value in in_numpy(overflowing, sample).items():
            expected[name] = max(expected.get(name, 0.0), float(np.abs(value).max()))
    magnitudes = survey(overflowing, samples).magnitudes
    assert set(magnitudes) == {"x", "up", "a", "large", "turned", "down", "b", "c", "y"}
    assert magnitudes == pytest.approx({name: expected[name] for name in magnitudes}, rel=1e-5)


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from export.survey import survey

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
survey(Path(sys.argv[1]), [{"x": np.ones((8, 1000, 1000), np.float32)}])
print(peak() - before)
"""


@pytest.mark.slow  # a process of its own
def test_the_survey_keeps_no_values(tmp_path: Path) -> None:
    names = ["x", *(f"v{index}" for index in range(30)), "y"]
    nodes = [NODE("Neg", [before], [after]) for before, after in pairwise(names)]
    path = write(tmp_path / "graph.onnx", nodes)  # 31 values of 32 MB
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200e6


@pytest.mark.parametrize("role", SPECS)
def test_stress_inputs_fit_and_reach_the_ends(role: str) -> None:
    networks = without_weights(SMALLEST)
    spec = SPECS[role](modules(networks.text_encoder, networks.unet, networks.vae)[role], SMALLEST)
    samples = stress_inputs(spec, spec.example_sizes, SMALLEST)
    usual = spec.draw(spec.example_sizes, torch.Generator())
    for sample in samples:
        assert {name: (array.dtype, array.shape) for name, array in sample.items()} == {
            name: (tensor.numpy().dtype, tensor.shape) for name, tensor in usual.items()
        }
    if role == "unet":
        assert {0, 999} <= {sample["timestep"][0] for sample in samples}
        assert max(np.abs(sample["sample"]).max() for sample in samples) > 12  # four times unit scale


def test_stress_inputs_follow_the_models_own_numbers() -> None:
    schedule = replace(SMALLEST.scheduler.noise_schedule, num_train_timesteps=60)
    scheduler = replace(SMALLEST.scheduler, noise_schedule=schedule)
    config = replace(SMALLEST, scheduler=scheduler, vae=replace(SMALLEST.vae, scaling_factor=1.0))
    networks = without_weights(config)
    parts = modules(networks.text_encoder, networks.unet, networks.vae)
    largest = {}
    for role, name in (("unet", "timestep"), ("vae_decoder", "latent_sample")):
        spec = SPECS[role](parts[role], config)
        largest[name] = max(np.abs(sample[name]).max() for sample in stress_inputs(spec, spec.example_sizes, config))
    assert largest == {"timestep": 59, "latent_sample": 5}
