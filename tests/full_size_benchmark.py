"""What ``make bench`` runs at full size: it makes what is missing, says so, and measures all programs in turn.

    python tests/full_size_benchmark.py [--size 256x256] [--rounds 5] ...

The checkpoint is the one of random weights that the full-size tests share; the bundle and the plain export are made of
it. More arguments go to ``python -m runtime benchmark``.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import full_size
import full_size_bundle

from runtime.engine import processor_features

PLAIN_EXPORT = Path(__file__).parents[1] / "peers" / "plain_export.py"
BFLOAT16 = {"avx512f", "bf16"}  # without one of these PyTorch emulates bfloat16, and takes many minutes for a step


def made(what: str, make: Callable[[], Path]) -> str:
    """Make a thing, or find it made, and say so."""
    print(f"{what}:", flush=True)
    begun = time.monotonic()
    path = make()
    print(f"  {path} ({time.monotonic() - begun:.0f} s)", flush=True)
    return str(path)


def plain_export() -> Path:
    """The checkpoint as Optimum-ONNX would export it, under a name that changes with the code that makes it."""
    name = f"plain-onnx-{hashlib.sha256(PLAIN_EXPORT.read_bytes()).hexdigest()[:8]}"
    path = full_size.cache_folder() / name
    for older in full_size.cache_folder().glob("plain-onnx-*"):
        if older != path:
            shutil.rmtree(older)
    if not path.exists():
        subprocess.run([sys.executable, "-m", "peers.plain_export", str(full_size.folder()), str(path)], check=True)
    return path


def benchmark(more: list[str]) -> list[str]:
    """The command of the benchmark, for which everything has been made."""
    checkpoint = made("a checkpoint of random weights in two layouts, 8.5 GB", full_size.folder)
    bundle = made("the bundle, by python -m export sd15, 4.3 GB", full_size_bundle.exported_bundle)
    plain = made("the plain export, 3.6 GB", plain_export)
    peers = {
        "plain ONNX": ["peers.plain_onnx", plain],
        "diffusers fp32": ["peers.diffusers_torch", checkpoint],
    }
    if BFLOAT16 & set(processor_features()):
        peers["diffusers bf16"] = ["peers.diffusers_torch", checkpoint, "--dtype", "bf16"]
    else:
        print("diffusers bf16 is left out: this processor does not compute in bfloat16")
    command = [sys.executable, "-m", "runtime", "benchmark", bundle]
    for name, words in peers.items():
        command += ["--peer", f"{name}={shlex.join([sys.executable, '-m', *words])}"]
    return [*command, *more]


def main() -> None:
    try:
        command = benchmark(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        print(f"error: making it ended with status {error.returncode}; its reason is above", file=sys.stderr)
        sys.exit(2)
    sys.stdout.flush()
    os.execv(command[0], command)  # this process holds PyTorch, whose memory the benchmark can use


if __name__ == "__main__":
    main()
