"""Small checkpoints for the tests of export, and a bundle of one: random weights, but away from a new network's."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess

import torch

from export.__main__ import main
from training.ddpm import checkpoint
from training.ddpm.config import TrainConfig
from training.ddpm.model import ClassConditionalUNet, UNetConfig
from training.noise_schedule import NoiseSchedule

ROOT = Path(__file__).parents[1]
CONFIG = TrainConfig(
    dataset="sample", model=UNetConfig(features=8), schedule=NoiseSchedule(num_train_timesteps=60, beta_end=0.1)
)


def network(seed: int = 0) -> ClassConditionalUNet:
    """A network whose norms scale, shift and have seen data, so that leaving one of them out would show."""
    torch.manual_seed(seed)
    module = ClassConditionalUNet(CONFIG.model)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.3)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor) * 0.2)
    return module.eval()


def ill_conditioned_network() -> ClassConditionalUNet:
    """A network for which float32 is too coarse, so that no two engines agree on what it says.

    Its last normalisation is fed 100,000 and a little; what it enlarges are the rounding errors of that sum.
    """
    module = network()
    weights = module.state_dict()
    weights["conv_out.0.weight"].mul_(0.01)
    weights["conv_out.0.bias"].fill_(1e5)
    return module


def write_checkpoint(path: Path, module: ClassConditionalUNet | None = None, **metadata: str) -> Path:
    """Write ``module`` (or ``network()``) as training would."""
    own = {"config": CONFIG.to_json(), "dataset_sha256": "0" * 64, "step": "7", "total_steps": "9"}
    checkpoint.write(path, (module or network()).state_dict(), own | metadata)
    return path


@cache
def sample_bundle() -> Path:
    """The bundle of ``network()``, exported once for all tests; copy it before you change it."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    status = main(["ddpm", str(write_checkpoint(folder / "model.safetensors")), "--out", str(folder / "digits")])
    assert status == 0
    return folder / "digits"


def run_export(*arguments: str | Path, prefix: tuple[str, ...] = (), **variables: str) -> CompletedProcess[str]:
    """``python -m export`` as a process of its own, with ``variables`` added to its environment."""
    command = [*prefix, sys.executable, "-m", "export", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
