"""Proves the direction of imports: the runtime stands alone, training knows neither export nor runtime, and export
takes from the runtime only the contract between the two. It is proven by reading every source file, by drawing a
picture in a process where importing PyTorch, onnx, training or export raises, and by importing export in one where
what only training needs is not to be found."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]

# What each package may import beside the standard library and itself; a name allows everything below it. The packages
# of others are those that pyproject.toml installs for it: for the runtime its hard dependencies and ONNX Runtime.
RUNTIME = {"numpy", "onnxruntime", "safetensors", "tokenizers", "PIL"}
TRAINING = {"numpy", "safetensors", "tokenizers", "PIL", "torch"}
TRAINING |= {"accelerate", "tensorboard", "tqdm", "pooch", "huggingface_hub"}
# Of the runtime, export uses what a bundle is defined by, because each must exist once: the manifest's plans come from
# the one compiler of plans, its golden noise from the one generator, and what it writes is read by the one reader.
CONTRACT = {"runtime.bundle", "runtime.plan", "runtime.noise", "runtime.errors"}
EXPORT = {"numpy", "safetensors", "tokenizers", "torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "filelock"}
EXPORT |= {"training"} | CONTRACT
ALLOWED = {"runtime": RUNTIME, "training": TRAINING, "export": EXPORT}

# Where what is imported stands in a variable, strings that begin with one of these are taken for it.
NOTED = {"torch", "onnx", "onnxscript", *ALLOWED}


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported in ``source``, a module that lies directly in ``package``.

    ``from a import b`` counts as ``a.b``, since b may be a module. Calls of import_module and __import__ count too.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"}:
                given = strings(node.args[0]) if node.args and isinstance(node.args[0], ast.Constant) else None
                table = [(line, text) for line, text in strings(tree) if text.partition(".")[0] in NOTED]
                yield from table if given is None else given


def strings(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and value of every string constant."""
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [(node.lineno, node.value) for node in constants if isinstance(node.value, str)]


def is_allowed(module: str, package: str) -> bool:
    if module.partition(".")[0] in {package, *sys.stdlib_module_names}:
        return True
    return any(module == name or module.startswith(f"{name}.") for name in ALLOWED[package])


def offences(source: str, module_package: str) -> list[str]:
    package = module_package.partition(".")[0]
    found = imported_modules(source, module_package)
    return [f"line {line} imports {module}" for line, module in found if not is_allowed(module, package)]


@pytest.mark.parametrize("package", ALLOWED)
def test_sources_import_only_what_their_package_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [
        f"{path.relative_to(ROOT)}, {offence}"
        for path in files
        for offence in offences(path.read_text("utf-8"), ".".join(path.parent.relative_to(ROOT).parts))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("runtime", "import torch"),
        ("runtime", "import torch.nn.functional as F"),
        ("runtime", "def late():\n    from onnx import helper"),
        ("runtime", "if TYPE_CHECKING:\n    from training.ddpm import model"),
        ("runtime", "from .. import export"),
        ("runtime.hosts", "from ...training import noise_schedule"),
        ("runtime", "import importlib\nimportlib.import_module('torch')"),
        ("runtime", "from importlib import import_module\nTABLE = {'x': 'torch.nn'}\nimport_module(TABLE[name])"),
        ("runtime", "__import__('export')"),
        ("training.ddpm", "from runtime.plan import compile_plan"),
        ("training", "import export"),
        ("export", "from runtime import load"),
        ("export", "import runtime"),
        ("export", "from runtime.pipeline import Pipeline"),
        ("export", "from runtime import plan, session"),
    ],
)
def test_the_reading_notices_a_forbidden_import(package: str, source: str) -> None:
    assert len(offences(source, package)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("runtime", "from . import plan\nfrom .noise import philox\nimport os.path, numpy.typing"),
        ("runtime", "import importlib\nimportlib.import_module('onnxruntime')"),
        ("training.ddpm", "from ..noise_schedule import NoiseSchedule\nimport torch"),
        ("export", "from runtime import plan\nfrom runtime.bundle import Bundle\nfrom training.ddpm import model"),
    ],
)
def test_the_reading_accepts_an_allowed_import(package: str, source: str) -> None:
    assert offences(source, package) == []


# Forbidden is no Exception, so that no `except ImportError` or `except Exception` on the way can hide an attempt.
REFUSE = """
import sys

class Forbidden(BaseException):
    pass

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "training", "export"}:
            raise Forbidden(name)

sys.meta_path.insert(0, Refuse())
"""


def run_refusing(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in ``folder`` with the forbidden packages on the path, where importing one of them raises."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REFUSE + program]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("package", ["torch", "onnx", "training", "export"])
def test_importing_a_forbidden_package_raises(package: str, tmp_path: Path) -> None:
    finished = run_refusing(f"try:\n    import {package}\nexcept Exception:\n    pass", tmp_path)
    assert finished.returncode == 1
    assert f"Forbidden: {package}" in finished.stderr


def test_the_runtime_draws_where_the_others_cannot_be_imported(tmp_path: Path) -> None:
    bundle = ROOT / "models_onnx" / "mnist-paper"
    words = ["--model", str(bundle), "--label", "7", "--steps", "4", "--seed", "0", "-o", "seven.png"]
    finished = run_refusing(f"from runtime.__main__ import main\nsys.exit(main({words!r}))", tmp_path)
    assert finished.returncode == 0, finished.stderr
    with Image.open(tmp_path / "seven.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[:2] == (28, 28)
    assert pixels.std() > 10


# What [train] installs beyond [export]. Not found, rather than forbidden: PyTorch itself uses tqdm where there is one.
WITHOUT_TRAIN = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"accelerate", "tensorboard", "tqdm", "pooch"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""


@pytest.mark.slow  # torch takes seconds to import
def test_export_needs_nothing_that_only_training_installs() -> None:
    def run(program: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", WITHOUT_TRAIN + program]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    finished = run("import export.__main__, export.check, export.sd15, export.ddpm")
    assert finished.returncode == 0, finished.stderr
    assert "No module named 'pooch'" in run("import training.data").stderr


def test_importing_the_runtime_brings_in_nothing_it_does_not_need(tmp_path: Path) -> None:
    program = "import runtime\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    finished = run_refusing(program, tmp_path)
    assert finished.returncode == 0, finished.stderr
    third_party = set(finished.stdout.split()) - sys.stdlib_module_names
    assert "runtime" in third_party
    unneeded = {"diffusers", "huggingface_hub", "matplotlib", "pandas", "scipy", "sympy", "tqdm", "transformers"}
    assert third_party & unneeded == set()


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
@pytest.mark.parametrize("package", ["runtime", "export", "peers"])
def test_onnx_runtime_reports_to_nobody_unless_asked_to(package: str, given: str | None, kept: str) -> None:
    """It decides when it is loaded, which must be later."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({} if given is None else {"ORT_DISABLE_TELEMETRY": given})
    probe = f"import os, sys, {package}; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kept, "False"]
