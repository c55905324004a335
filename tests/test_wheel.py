"""Proves that the wheel is all one needs: it holds the three packages and the small bundles and nothing else, and
installed with ``[cpu]`` outside the clone it draws from them by name, without PyTorch, and adds under 260 MB."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BUNDLES = [ROOT / "models_onnx" / name for name in ("mnist-paper", "pocket")]
MAX_ADDED_BYTES = 260_000_000
ELSEWHERE = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DIFFUSION_ANYWHERE_MODELS"}


class Installation(NamedTuple):
    """Where an environment has its programs, and by how many bytes installing the wheel made it larger."""

    programs: Path
    added: int


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in a folder, with nothing in its environment that leads back to the clone; its standard output."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; a symbolic link counts as nothing."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = folder / "venv"
    run(sys.executable, "-m", "venv", environment, folder=folder)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    before = size_of(environment)
    run(programs / "python", "-m", "pip", "install", "--quiet", f"{wheel}[cpu]", folder=folder)
    return Installation(programs, size_of(environment) - before)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"training", "export", "runtime"}
    assert {"runtime/prompts/paper.jsonl"} <= set(names)
    assert {"runtime/hosts/js/diffuse.mjs", "runtime/hosts/js/package.json"} <= set(names)
    assert [name for name in names if "node_modules" in name or name.startswith("runtime/hosts/js/test/")] == []
    assert {"runtime/pipeline.py", "export/graphs.py", "training/noise_schedule.py"} <= set(names)
    assert {"runtime/hosts/js/package-lock.json", "runtime/hosts/js/web/index.html"} <= set(names)
    assert [name for name in names if name.endswith("/LICENSE")]
    assert [name for name in names if name.endswith(".ipynb")] == []


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_wheel_holds_the_bundles(wheel: Path, bundle: Path) -> None:
    committed = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert "manifest.json" in committed
    prefix = f"runtime/models/{bundle.name}/"
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name.removeprefix(prefix): archive.read(name) for name in archive.namelist() if name.startswith(prefix)
        }
    assert packed.keys() == committed.keys()
    assert packed == committed


@pytest.mark.parametrize("front_door", [("python", "-m", "runtime"), ("diffusion-anywhere",)], ids=" ".join)
def test_the_installed_wheel_draws(installed: Installation, front_door: tuple[str, ...], tmp_path: Path) -> None:
    program, *words = front_door
    digit = ["--model", "mnist-paper", "--label", "3", "--steps", "4", "--seed", "0", "-o", "three.png"]
    run(installed.programs / program, *words, *digit, folder=tmp_path)
    run(installed.programs / program, *words, "a red sneaker on white", "--seed", "0", "-o", "red.png", folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["red.png", "three.png"]
    for name, side in (("three.png", 28), ("red.png", 64)):
        with Image.open(tmp_path / name) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape[:2] == (side, side)
        assert pixels.std() > 10


def test_the_installed_wheel_brings_no_torch_and_no_onnx(installed: Installation, tmp_path: Path) -> None:
    program = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'onnxscript') if u.find_spec(n)])"
    assert run(installed.programs / "python", "-c", program, folder=tmp_path).strip() == "[]"


def test_the_installation_is_small(installed: Installation) -> None:
    print(f"pip install .[cpu] adds {installed.added / 1e6:.0f} MB")
    assert installed.added < MAX_ADDED_BYTES


def test_the_runtime_can_be_imported_and_says_how_long_it_took(installed: Installation, tmp_path: Path) -> None:
    program = "from time import perf_counter as t; a = t(); import runtime; b = t(); print(b - a, runtime.__file__)"
    seconds, path = run(installed.programs / "python", "-c", program, folder=tmp_path).split()
    print(f"import runtime took {float(seconds):.2f} s; a busy machine takes longer, so no bound is tested")
    assert not Path(path).is_relative_to(ROOT)
