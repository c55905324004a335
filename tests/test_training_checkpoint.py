"""Proves that checkpoints come back as they were, are never half written, and are believed only what they hold."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from training import atomic
from training.configuration import from_json
from training.ddpm import checkpoint
from training.ddpm.config import TrainConfig, paper
from training.ddpm.model import ClassConditionalUNet, UNetConfig
from training.errors import CheckpointError, OutputError

ROOT = Path(__file__).parents[1]
CONFIG = paper("digits", UNetConfig(image_size=8, features=8, num_classes=3))


@pytest.fixture
def model() -> ClassConditionalUNet:
    torch.manual_seed(0)
    network = ClassConditionalUNet(CONFIG.model)
    network.train()(
        torch.randn(4, 1, 8, 8), torch.arange(4.0), torch.tensor([0, 1, 2, 3])
    )  # statistics are not 0 and 1
    return network.eval()


def saved(path: Path, model: ClassConditionalUNet, **metadata: str) -> Path:
    """Write a checkpoint, of which ``metadata`` may say something else than the truth."""
    checkpoint.write(path, dict(model.state_dict()), {"config": CONFIG.to_json(), "step": "7", **metadata})
    return path


@torch.no_grad()
def test_a_model_comes_back_as_it_was(model: ClassConditionalUNet, tmp_path: Path) -> None:
    loaded, config, metadata = checkpoint.load_model(saved(tmp_path / "new" / "model.safetensors", model))
    assert config == CONFIG
    assert metadata["step"] == "7"
    assert not loaded.training
    arguments = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 1.5, 399.0]), torch.tensor([0, 2, 3])
    assert torch.equal(loaded(*arguments), model(*arguments))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_weights_in_half_precision_are_brought_to_float32(model: ClassConditionalUNet, tmp_path: Path) -> None:
    loaded, _, _ = checkpoint.load_model(saved(tmp_path / "model.safetensors", model.half()))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_checkpoint_may_be_read_by_others(model: ClassConditionalUNet, tmp_path: Path) -> None:
    """Files made aside often get the permissions of temporary ones, which are for oneself alone."""
    before = os.umask(0o022)
    try:
        assert saved(tmp_path / "model.safetensors", model).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[ClassConditionalUNet, Path], None]:
    """A file whose bytes were changed."""

    def make(model: ClassConditionalUNet, path: Path) -> None:
        path.write_bytes(change(saved(path, model).read_bytes()))

    return make


def metadata_of(**metadata: str) -> Callable[[ClassConditionalUNet, Path], None]:
    """A file that says something else of itself."""

    def make(model: ClassConditionalUNet, path: Path) -> None:
        saved(path, model, **metadata)

    return make


def sizes_of(**changes: Any) -> Callable[[ClassConditionalUNet, Path], None]:
    """A file whose configuration claims other sizes of the network."""
    fields = json.loads(CONFIG.to_json())
    fields["model"] |= changes
    return metadata_of(config=json.dumps(fields))


MISMATCH = "does not hold the model that its configuration describes"
DAMAGED = "is damaged or no safetensors file"
DAMAGE: dict[str, tuple[Callable[[ClassConditionalUNet, Path], Any], str]] = {
    "absent": (lambda model, path: None, "does not exist; make one with: python -m training ddpm"),
    "folder": (lambda model, path: path.mkdir(), "does not exist"),
    "truncated": (bytes_of(lambda whole: whole[:-1]), DAMAGED),
    "header-only": (bytes_of(lambda whole: whole[:100]), DAMAGED),
    "text": (bytes_of(lambda whole: b"not a checkpoint at all"), DAMAGED),
    "empty": (bytes_of(lambda whole: b""), DAMAGED),
    "terabyte-of-header": (bytes_of(lambda whole: (2**40).to_bytes(8, "little") + whole[8:]), DAMAGED),
    "another-project": (lambda model, path: save_file({"weight": torch.zeros(3)}, path), "(its format is None)"),
    "another-format": (metadata_of(format="diffusion-anywhere/ddpm/2"), "is not a DDPM checkpoint of this project"),
    "no-fields": (metadata_of(config="{}"), MISMATCH),
    "no-json": (metadata_of(config="{features"), MISMATCH),
    "no-object": (metadata_of(config="[1, 2]"), MISMATCH),
    "endless-nesting": (metadata_of(config="[" * 10**5), MISMATCH),
    "string-for-number": (sizes_of(features="8"), "features is '8'"),
    "fraction-for-number": (sizes_of(features=8.0), "features is 8.0"),
    "true-for-number": (sizes_of(in_channels=True), "in_channels is True"),
    "field-too-many": (sizes_of(layers=3), MISMATCH),
    "claims-larger": (sizes_of(features=16), "size mismatch"),
    "claims-enormous": (sizes_of(features=1024, image_size=40_000), MISMATCH),
    "claims-beyond-counting": (sizes_of(num_classes=10**30), MISMATCH),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint(model: ClassConditionalUNet, tmp_path: Path, kind: str) -> None:
    make, message = DAMAGE[kind]
    path = tmp_path / "model.safetensors"
    make(model, path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_configuration_comes_back_as_it_was() -> None:
    changed = dataclasses.replace(CONFIG, learning_rate=3e-4, seed=2**64 - 1, mixed_precision="bf16")
    assert TrainConfig.from_json(changed.to_json()) == changed
    whole_number = json.loads(CONFIG.to_json()) | {"learning_rate": 1}
    assert from_json(TrainConfig, json.dumps(whole_number)).learning_rate == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "it must be below 2^64"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm is inf"),
        ({"label_dropout": 1.0}, "label_dropout is 1.0; it must be at least 0 and below 1"),
        ({"ema_decay": -0.1}, "ema_decay is -0.1"),
        ({"mixed_precision": "fp8"}, "mixed_precision 'fp8' is unknown; choose no or bf16"),
    ],
)
def test_bad_numbers_of_a_run_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(CONFIG, **fields)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "model.safetensors", tmp_path):
        with pytest.raises(OutputError, match=f"{re.escape(str(path))} cannot be written"):
            atomic.write(path, b"content")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file"]  # nothing is left lying about


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails half-way."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    program = f"""
        import resource, signal
        from pathlib import Path
        from training import atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        atomic.write(Path({str(path)!r}), bytes(5000))
    """
    finished = run(program)
    assert finished.returncode == 1
    assert "OutputError" in finished.stderr
    assert "cannot be written (File too large)" in finished.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True)


def test_killed_while_writing_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """A process writes two contents in turn, without end, and is killed at many moments."""
    path, size = tmp_path / "model.safetensors", 3_000_000
    program = textwrap.dedent(f"""
        from pathlib import Path
        from training import atomic
        while True:
            for letter in b"ab":
                atomic.write(Path({str(path)!r}), bytes([letter]) * {size})
    """)
    for attempt in range(4):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(0.02 + 0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_bytes()
        assert content in (b"a" * size, b"b" * size)
        assert len(list(tmp_path.iterdir())) <= 2  # what was begun aside has one name and does not pile up
