"""Proves that two processes under torchrun train one model: shares of one batch, the mean of their gradients, weights
that never part, and one end when somebody interrupts; and that such a run resumes.

The gradient is that of one process but for batch normalisation, whose statistics are each process's own: so it is
compared with the mean of the shares' gradients, each computed alone, and, for equal shares, with one process, bit for
bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_probe as probe
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from training.ddpm import checkpoint
from training.ddpm.diffusion import training_loss

# One thread, as in the two processes: sums are split by threads, and their last digits come out by that.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).parents[1]


def torchrun(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe")
    finish(torchrun(str(Path(probe.__file__)), str(path)))
    return path


@pytest.fixture(scope="module")
def processes(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"process-{rank}.safetensors") for rank in (0, 1)]


def test_their_shares_are_one_processs_batch(processes: list[dict[str, Tensor]], tmp_path: Path) -> None:
    for key, whole in probe.batches(probe.trainer(tmp_path)).items():
        first, second = (process[key] for process in processes)
        assert len(first) == len(second) == probe.BATCH_SIZE // 2
        assert torch.equal(torch.cat([first, second]), whole)


def test_the_gradient_is_the_mean_of_the_shares_gradients(processes: list[dict[str, Tensor]], tmp_path: Path) -> None:
    run = probe.trainer(tmp_path)
    means = {name: torch.zeros_like(parameter) for name, parameter in run.network.named_parameters()}
    for share in (slice(0, 10), slice(10, 20)):
        run.share = share
        original, labels, timesteps, noise = run.batch(0)
        run.network.train().zero_grad()
        training_loss(run.network, probe.CONFIG.schedule, original, labels, timesteps, noise).backward()  # type: ignore[no-untyped-call]
        for name, parameter in run.network.named_parameters():
            assert parameter.grad is not None
            means[name] += parameter.grad / 2
    largest = max(float(mean.abs().max()) for mean in means.values())
    for process in processes:
        for name, mean in means.items():
            torch.testing.assert_close(process[f"gradient.{name}"], mean, rtol=0, atol=1e-6 * largest)


def test_with_equal_shares_two_processes_are_one(processes: list[dict[str, Tensor]], tmp_path: Path) -> None:
    alone = probe.parameters(probe.equal_shares(tmp_path), "twin")
    for process in processes:
        for key, value in alone.items():
            assert torch.equal(process[key], value)


def test_their_weights_and_losses_never_part_and_the_loss_falls(processes: list[dict[str, Tensor]]) -> None:
    first, second = processes
    for key in first:
        if key.startswith(("weight.", "losses")):
            assert torch.equal(first[key], second[key])
    losses = first["losses"]
    assert len(losses) == probe.STEPS
    assert float(losses[-6:].mean()) < 0.75 * float(losses[:3].mean())


def test_a_batch_that_cannot_be_shared_equally_is_refused(folder: Path) -> None:
    for rank in (0, 1):
        refusal = (folder / f"refused-{rank}.txt").read_text()
        assert refusal == "batch_size 21 cannot be shared equally by 2 processes; choose a multiple"


def steps_saved(folder: Path) -> int:
    state = folder / "state.safetensors"
    return int(checkpoint.read(state)[1]["step"]) if state.exists() else 0


def test_the_command_interrupted_and_resumed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """torchrun passes the signal to each process at its own time; all must stop at the same step, and do."""
    dataset = probe.stripes()
    np.savez(tmp_path / "stripes.npz", x_train=dataset.images[:, 0], y_train=dataset.labels)
    fixed = "--features 8 --epochs 6 --batch-size 20 --save-minutes 0 --mixed-precision no"
    words = ["-m", "training", "ddpm", "--dataset", str(tmp_path / "stripes.npz"), *fixed.split()]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    out, _ = finish(torchrun(*words, "--out", str(whole)))
    assert out.count("trained for 24 steps") == 1  # said by one process

    run = torchrun(*words, "--out", str(broken))
    while steps_saved(broken) < 3:
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=600)
    step = steps_saved(broken)
    assert err.count(f"interrupted at step {step} of 24; continue with --resume") == 1

    _, err = finish(torchrun(*words, "--out", str(broken), "--resume"))
    assert err.count(f"resumed at step {step} of 24") == 1
    assert step < 24
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
