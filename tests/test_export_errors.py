"""Proves that whatever is wrong with what ``python -m export`` is given, it says so in one line, ends with status 2 and
leaves every file and folder as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_generations import write_generation
from export_samples import CONFIG, network, run_export, write_checkpoint
from safetensors.torch import save_file
from test_foreign import write_folder

from export.__main__ import main
from training.ddpm import checkpoint


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line with arguments that it must refuse; returns what it says."""

    def run(*arguments: str | Path) -> str:
        before = sorted(tmp_path.rglob("*"))
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # how argparse ends
            status = int(str(end.code))
        captured = capsys.readouterr()
        assert status == 2
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return captured.err

    return run


# --- the checkpoint -------------------------------------------------------------------------------------------------


def text_file(path: Path) -> None:
    path.write_text("weights, weights, weights\n")


def empty_file(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    data = write_checkpoint(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def header_of_a_terabyte(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")


def of_another_project(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path, {"format": "pt"})


def without_configuration(path: Path) -> None:
    checkpoint.write(path, network().state_dict(), {})


def with_a_broken_configuration(path: Path) -> None:
    write_checkpoint(path, config='{"dataset": ')


def with_another_configuration(path: Path) -> None:
    config = json.loads(CONFIG.to_json())
    config["model"]["features"] = 16
    write_checkpoint(path, config=json.dumps(config))


def without_a_tensor(path: Path) -> None:
    tensors = dict(network().state_dict())
    del tensors["conv_out.3.bias"]
    checkpoint.write(path, tensors, {"config": CONFIG.to_json()})


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "does not exist; make one with: python -m training ddpm"),
        (a_folder, "does not exist"),
        (text_file, "is damaged or no safetensors file"),
        (empty_file, "is damaged or no safetensors file"),
        (truncated, "is damaged or no safetensors file"),
        (header_of_a_terabyte, "is damaged or no safetensors file"),
        (of_another_project, "is not a DDPM checkpoint of this project"),
        (without_configuration, "does not hold the model that its configuration describes"),
        (with_a_broken_configuration, "does not hold the model that its configuration describes"),
        (with_another_configuration, "does not hold the model that its configuration describes"),
        (without_a_tensor, "conv_out.3.bias"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(
    tmp_path: Path, refused: Callable[..., str], damage: Callable[[Path], None] | None, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    if damage is not None:
        damage(path)
    assert message in refused("ddpm", path, "--out", tmp_path / "models" / "digits")


@pytest.mark.slow
def test_a_diverged_checkpoint_is_refused(tmp_path: Path) -> None:
    diverged = network()
    diverged.state_dict()["conv_in.conv1.0.weight"].fill_(torch.nan)
    path = write_checkpoint(tmp_path / "model.safetensors", diverged)
    done = run_export("ddpm", path, "--out", tmp_path / "models" / "digits")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not finite in PyTorch itself" in done.stderr
    assert list(tmp_path.iterdir()) == [path]


# --- the target -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with space", "ünïcode", ".hidden", "semi;colon"])
def test_a_name_that_no_bundle_can_have_is_refused(tmp_path: Path, refused: Callable[..., str], name: str) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors")
    assert f"{name!r} cannot be a bundle's name" in refused("ddpm", path, "--out", tmp_path / name)


def test_a_target_that_is_no_bundle_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "file").touch()
    assert "is a file; --out takes the name of a folder" in refused("ddpm", path, "--out", tmp_path / "file")
    assert "cannot be written" in refused("ddpm", path, "--out", tmp_path / "file" / "digits")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    assert "holds thesis.tex" in refused("ddpm", path, "--out", tmp_path / "home")


@pytest.fixture
def without_privilege() -> tuple[str, ...]:
    """What to put before a command so that permissions bind it, even for root."""
    if os.geteuid() != 0:
        return ()
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("permissions do not bind root, and setpriv, which could change that, does not work here")
    return prefix


@pytest.mark.slow
def test_a_folder_without_permission_is_refused(tmp_path: Path, without_privilege: tuple[str, ...]) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    done = run_export("ddpm", path, "--out", closed / "digits", prefix=without_privilege)
    assert (done.returncode, done.stderr) == (2, f"error: {closed / 'digits'} cannot be written (Permission denied)\n")
    assert list(closed.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_bundle(tmp_path: Path, small_disk: Path) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors")
    target = small_disk / "digits"
    write_generation(target, 1)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    (small_disk / "ballast").write_bytes(bytes(100_000))
    done = run_export("ddpm", path, "--out", target)
    assert (done.returncode, done.stderr) == (2, f"error: {target} cannot be written (No space left on device)\n")
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert sorted(file.name for file in small_disk.iterdir()) == ["ballast", "digits"]


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "loose"])
def test_a_bound_that_is_no_positive_number_is_refused(refused: Callable[..., str], value: str) -> None:
    said = refused("ddpm", "model.safetensors", "--out", "digits", f"--accept-parity={value}")
    assert f"--accept-parity: invalid positive number value: '{value}'" in said


@pytest.mark.parametrize("arguments", [(), ("ddpm",), ("ddpm", "model.safetensors"), ("check",), ("sing",)])
def test_a_command_that_is_not_whole_is_refused(refused: Callable[..., str], arguments: tuple[str, ...]) -> None:
    refused(*arguments)


def test_check_says_that_a_folder_of_others_has_no_parity(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = write_folder(tmp_path / "foreign")
    assert f"{folder} was exported by others, who recorded no parity" in refused("check", folder)


def test_check_refuses_what_is_no_bundle(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "there is no bundle" in refused("check", tmp_path / "missing")
    assert "it holds no manifest.json" in refused("check", tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert "is not JSON" in refused("check", tmp_path)
