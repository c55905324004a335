"""Proves that a bundle is replaced in one step: whoever looks, and whenever the process is killed, finds the old one or
the new one whole; that nothing but a bundle is ever replaced; and that what a killed export leaves is cleared away."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import export_generations
import pytest
from export_generations import GRAPH, generation, write_generation
from export_samples import network, sample_bundle, write_checkpoint
from torch import nn

from export import staging
from export.errors import ExportError
from export.graphs import GraphSpec, Input, normal
from export.staging import replacing
from export.trace import trace
from runtime.bundle import CONFORMANCE, MANIFEST, open_bundle
from runtime.session import Session


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_appears_and_nothing_else(tmp_path: Path) -> None:
    for number in range(3):  # once where there is nothing, then in place of what is there
        with replacing(tmp_path / "models" / "mnist") as folder:
            assert list(folder.iterdir()) == []
            write_generation(folder, number)
        assert generation(tmp_path / "models" / "mnist") == number
        assert names(tmp_path / "models") == ["mnist"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    with replacing(tmp_path / "mnist") as folder:
        write_generation(folder, 1)
    assert generation(tmp_path / "mnist") == 1


def test_files_that_the_new_bundle_lacks_go(tmp_path: Path) -> None:
    write_generation(tmp_path / "mnist", 1)
    manifest = json.loads((tmp_path / "mnist" / MANIFEST).read_text())
    manifest["graphs"]["unet"]["fp16"] = {"file": "half.onnx", "external_data": [{"file": "half.onnx.data"}]}
    (tmp_path / "mnist" / MANIFEST).write_text(json.dumps(manifest))
    for name in ("half.onnx", "half.onnx.data"):
        (tmp_path / "mnist" / name).touch()
    with replacing(tmp_path / "mnist") as folder:
        write_generation(folder, 2)
    assert generation(tmp_path / "mnist") == 2


def write_and(then: Callable[[], object], target: Path) -> None:
    with replacing(target) as folder:
        write_generation(folder, 2)
        then()


def test_an_error_changes_nothing(tmp_path: Path) -> None:
    write_generation(tmp_path / "mnist", 1)
    for target in (tmp_path / "mnist", tmp_path / "new" / "folder" / "mnist"):
        with pytest.raises(ZeroDivisionError):
            write_and(lambda: divmod(1, 0), target)
    assert generation(tmp_path / "mnist") == 1
    assert names(tmp_path) == ["mnist"]  # the folders that were made are gone too


def test_a_symbolic_link_stays_and_leads_to_the_new_bundle(tmp_path: Path) -> None:
    write_generation(tmp_path / "stored", 1)
    (tmp_path / "mnist").symlink_to("stored")
    with replacing(tmp_path / "mnist") as folder:
        write_generation(folder, 2)
    assert (tmp_path / "mnist").is_symlink()
    assert generation(tmp_path / "stored") == 2


@pytest.mark.parametrize("stranger", ["notes.txt", ".git", "old.onnx"])
def test_a_folder_with_anything_else_in_it_is_refused(tmp_path: Path, stranger: str) -> None:
    write_generation(tmp_path / "mnist", 1)
    (tmp_path / "mnist" / stranger).touch()
    with (
        pytest.raises(ExportError, match=rf"holds {stranger}, which is no part of a bundle"),
        replacing(tmp_path / "mnist"),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "mnist" / stranger).exists()


def test_what_appears_in_the_folder_during_the_export_is_not_lost(tmp_path: Path) -> None:
    write_generation(tmp_path / "mnist", 1)
    notes = tmp_path / "mnist" / "notes.txt"
    with pytest.raises(ExportError, match=r"holds notes.txt"):
        write_and(notes.touch, tmp_path / "mnist")
    notes.unlink()
    assert generation(tmp_path / "mnist") == 1


@pytest.mark.parametrize("manifest", [None, "no JSON", "[]", '{"graphs": 1}', '{"graphs": {"unet": {"fp32": {}}}}'])
def test_a_folder_without_a_legible_manifest_is_refused(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    if manifest is not None:
        (tmp_path / "home" / MANIFEST).write_text(manifest)
    with pytest.raises(ExportError, match=r"would be lost"), replacing(tmp_path / "home"):
        pytest.fail("the block must not run")
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_two_exports_to_one_target_do_not_mix(tmp_path: Path) -> None:
    with replacing(tmp_path / "mnist") as folder:
        write_generation(folder, 1)
        with pytest.raises(ExportError, match="another export is writing to"), replacing(tmp_path / "mnist"):
            pytest.fail("the block must not run")
        with replacing(tmp_path / "other") as beside:  # another target is nobody's business
            write_generation(beside, 2)
    assert generation(tmp_path / "mnist") == 1
    assert names(tmp_path) == ["mnist", "other"]


def test_where_folders_cannot_be_exchanged_a_bundle_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No file system here lacks the call, so this is the one place where its absence is played.
    def absent(one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(staging, "exchange", absent)
    write_generation(tmp_path / "mnist", 1)
    with pytest.raises(ExportError, match="cannot exchange two folders in one step"), replacing(tmp_path / "mnist"):
        pytest.fail("the block must not run")
    assert generation(tmp_path / "mnist") == 1
    with replacing(tmp_path / "new") as folder:  # where nothing is replaced, nothing need be exchanged
        write_generation(folder, 2)
    assert names(tmp_path) == ["mnist", "new"]


def start_replacing(target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, export_generations.__file__, str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def numbers_seen(target: Path) -> set[int]:
    """The numbers in the files that one look into the folder finds.

    The look is at a folder, not at a path, as a host has it that has opened its files. When the folder was replaced
    meanwhile, some may be deleted already; but there is no file in it that is not its own.
    """
    folder = os.open(target, os.O_RDONLY)  # there always is one
    seen = set()
    try:
        for name in (MANIFEST, GRAPH, CONFORMANCE):
            with open(name, opener=lambda path, flags: os.open(path, flags, dir_fd=folder)) as file:
                seen.add(json.load(file)["number"] if name == MANIFEST else int(file.read().split()[0]))
    except FileNotFoundError:
        pass
    finally:
        os.close(folder)
    return seen


@pytest.mark.slow
def test_at_every_moment_a_reader_finds_one_whole_bundle(tmp_path: Path) -> None:
    target = tmp_path / "mnist"
    write_generation(target, 0)
    process = start_replacing(target)
    try:
        generations: set[int] = set()
        end = time.monotonic() + 120
        while len(generations) < 12:
            assert time.monotonic() < end, "nothing was replaced while we looked"
            seen = numbers_seen(target)
            assert len(seen) <= 1
            generations |= seen
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_killed_at_random_moments_a_bundle_is_whole(tmp_path: Path) -> None:
    target, moments, leftovers = tmp_path / "mnist", random.Random(0), 0
    write_generation(target, 0)
    for _ in range(20):
        process = start_replacing(target)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        generation(target)
        leftovers += names(tmp_path) != ["mnist"]
    assert leftovers > 3  # it was killed in the middle of things
    with replacing(target) as folder:
        write_generation(folder, -1)
    assert generation(target) == -1
    assert names(tmp_path) == ["mnist"]


@pytest.mark.slow
def test_weights_beside_a_graph_that_the_disk_cannot_hold(small_disk: Path) -> None:
    spec = GraphSpec(
        role="linear",
        module=nn.Linear(300, 300),  # 361 kB
        inputs={"input": Input(("batch", 2, 300), normal)},  # so that the weight is transposed, and written by NumPy
        outputs={"output": ("batch", 2, 300)},
        example_sizes={"batch": 2},
        parity_sizes=(),
    )
    with (
        pytest.raises(ExportError, match=r"digits cannot be written \(.*; the disk may be full: [\d,]+ bytes are free"),
        replacing(small_disk / "digits") as folder,
    ):
        trace(spec, folder / "linear.onnx", external_data_above=0)
    assert names(small_disk) == []


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "the hidden folder appears": lambda aside: aside.exists(),
    "the graph appears": lambda aside: (aside / GRAPH).exists(),
    "the manifest appears": lambda aside: (aside / MANIFEST).exists(),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_real_export_killed_leaves_the_previous_bundle(tmp_path: Path, moment: str) -> None:
    target, aside = tmp_path / "digits", tmp_path / ".digits.exporting"
    shutil.copytree(sample_bundle(), target)
    before = contents(target)
    path = write_checkpoint(tmp_path / "model.safetensors", network(seed=1))
    process = subprocess.Popen([sys.executable, "-m", "export", "ddpm", str(path), "--out", str(target)])
    while not MOMENTS[moment](aside):
        assert process.poll() is None, "it ended before the moment came"
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert aside.exists()
    assert contents(target) == before
    bundle = open_bundle(target)
    Session(bundle, bundle.graph("unet"))
