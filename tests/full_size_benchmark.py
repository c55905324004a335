"""What ``make bench`` runs at full size: it makes what is missing, says so, and measures all programs in turn.

    python tests/full_size_benchmark.py [--size 256x256] [--rounds 5] ...

The checkpoint is the one of random weights that the full-size tests share; the bundle and the plain export are made of
it. More arguments go to ``python -m runtime benchmark``.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import full_size
import full_size_bundle

import peers.plain_export
from runtime.engine import processor_features

# What PyTorch needs to compute in bfloat16 rather than to emulate it.
BFLOAT16 = {"avx512f", "bf16"}


def made(what: str, make: Callable[[], Path]) -> Path:
    """Make a thing, or find it made, and say so."""
    print(f"{what}:", flush=True)
    begun = time.monotonic()
    path = make()
    print(f"  {path} ({time.monotonic() - begun:.0f} s)", flush=True)
    return path


def plain_export() -> Path:
    """The checkpoint as Optimum-ONNX would export it, under a name that changes with the code that makes it."""
    source = Path(peers.plain_export.__file__).read_bytes()
    path = full_size.cache_folder() / f"plain-onnx-{hashlib.sha256(source).hexdigest()[:8]}"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "peers.plain_export", str(full_size.folder()), str(path)], check=True)
    return path


def main() -> int:
    checkpoint = made("a checkpoint of random weights, 4.3 GB in each of two layouts", full_size.folder)
    bundle = made("the bundle, made by python -m export sd15, 4.3 GB", full_size_bundle.folder)
    plain = made("the plain export, 3.7 GB", plain_export)
    programs = {
        "plain ONNX": ["peers.plain_onnx", str(plain)],
        "diffusers fp32": ["peers.diffusers_torch", str(checkpoint)],
        "diffusers bf16": ["peers.diffusers_torch", str(checkpoint), "--dtype", "bf16"],
    }
    if not BFLOAT16 & set(processor_features()):
        del programs["diffusers bf16"]
        print("diffusers bf16 is left out: this processor has no bfloat16, and PyTorch takes many minutes a step")
    command = [sys.executable, "-m", "runtime", "benchmark", str(bundle)]
    for name, words in programs.items():
        command += ["--peer", f"{name}={shlex.join([sys.executable, '-m', *words])}"]
    return subprocess.run([*command, *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
