"""The bundle of the full-size checkpoint (``full_size``), exported once and shared by all tests that need it.

It lies beside the checkpoint, under a name that changes with the code that makes it, and takes 4.3 GB there.
``python tests/full_size_bundle.py`` makes it and says where it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import full_size
from filelock import FileLock

from export.bundle import exporter_versions
from runtime.bundle import FORMAT_VERSION

ROOT = Path(__file__).parents[1]
# What graphs, tokenizer, plans, conformance and manifest are made by. LoRA and the pocket model take no part in it.
SOURCES = (
    "export/*.py",
    "training/*.py",
    "training/ddpm/sampler.py",
    "training/stable_diffusion/**/*",
    *(f"runtime/{name}.py" for name in ("plan", "noise", "noise_levels", "noise_schedule", "sigma_spacings")),
    "runtime/samplers/*.py",
)
APART = ("training/stable_diffusion/lora", "training/stable_diffusion/pocket")
NAME = "sd15"

MEASURED = """
import json, resource, sys, time
from export.__main__ import main
begun = time.monotonic()
status = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"status": status, "seconds": time.monotonic() - begun, "peak_bytes": peak}))
"""


@dataclass(frozen=True)
class Export:
    """What a command of ``python -m export`` said, how long it took, and the most memory that it had."""

    lines: tuple[str, ...]
    seconds: float
    peak_bytes: int


def versions() -> dict[str, str | int]:
    return {"format": FORMAT_VERSION, **exporter_versions()}


def key(root: Path, versions: Mapping[str, str | int]) -> str:
    """Stands for all that shapes the bundle's bytes: the code in ``root`` and what it is run with."""
    digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode())
    for path in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        name = path.relative_to(root).as_posix()
        if path.is_file() and "__pycache__" not in name and not name.startswith(APART):
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


@cache
def exported_bundle() -> Path:
    """The bundle's folder; do not change what is in it."""
    folder = full_size.cache_folder() / f"bundle-{key(ROOT, versions())}"
    with FileLock(full_size.cache_folder() / "bundle.lock"):
        for older in full_size.cache_folder().glob("bundle-*"):
            if older != folder:
                shutil.rmtree(older)
        if not (folder / "export.json").exists():
            make(folder)
    return folder / NAME


def how_it_was_made() -> Export:
    """What making the bundle took, on whatever machine and at whatever time that was."""
    said = json.loads((exported_bundle().parent / "export.json").read_text())
    return Export(**said)


def make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    options = ("--out", folder / NAME, "--licence", "none: random weights")
    made = run_measured("sd15", full_size.single_file(), *options)
    (folder / "export.json").write_text(json.dumps(asdict(made)))


def run_measured(*arguments: str | Path) -> Export:
    """Run a command as a process of its own, which must succeed."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    *lines, measured = done.stdout.splitlines()
    said = json.loads(measured)
    assert said.pop("status") == 0, lines
    return Export(tuple(lines), **said)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(exported_bundle())
    print(how_it_was_made())
