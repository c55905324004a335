"""What ``make bench`` and its like run at full size: it makes what is missing, says so, and measures all in turn.

    python tests/full_size_benchmark.py graphs|pictures|scaling [--size 256x256] [--rounds 5] ...

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

ROOT = Path(__file__).parents[1]
PLAIN_EXPORT = ROOT / "peers" / "plain_export.py"
# At full size a picture takes minutes, and a case of the U-Net with a batch of 8 as long.
FLAGS: dict[str, list[str]] = {
    "graphs": [],
    "pictures": ["--pictures", "--limit", "3600"],
    "scaling": ["--scaling", "--limit", "3600"],
}
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


def peers(kind: str, checkpoint: str, plain: str) -> dict[str, list[str]]:
    """Programs by name, each as a Python and a module's words."""
    here, openvino, sdcpp = sys.executable, str(environment("openvino")), str(environment("sdcpp"))
    found = {
        "plain ONNX": [here, "-m", "peers.plain_onnx", plain],
        "diffusers fp32": [here, "-m", "peers.diffusers_torch", checkpoint],
        "OpenVINO fp32": [openvino, "-m", "peers.openvino", plain],
    }
    if BFLOAT16 & set(processor_features()):
        found["diffusers bf16"] = [*found["diffusers fp32"], "--dtype", "bf16"]
        found["OpenVINO bf16"] = [*found["OpenVINO fp32"], "--dtype", "bf16"]
    else:
        print("diffusers and OpenVINO in bf16 are left out: this processor does not compute in bfloat16")
    if kind == "pictures":
        found["stable-diffusion.cpp"] = [sdcpp, "-m", "peers.stable_diffusion_cpp", str(full_size.single_file())]
    return found


def environment(name: str) -> Path:
    return ROOT / ".venv" / name / "bin" / "python"


def benchmark(kind: str, more: list[str]) -> list[str]:
    """The command of the benchmark, for which everything has been made."""
    checkpoint = made("a checkpoint of random weights in two layouts, 8.5 GB", full_size.folder)
    bundle = made("the bundle, by python -m export sd15, 4.3 GB", full_size_bundle.exported_bundle)
    plain = made("the plain export, 4.3 GB", plain_export)
    command = [sys.executable, "-m", "runtime", "benchmark", bundle, *FLAGS[kind]]
    for name, words in peers(kind, checkpoint, plain).items():
        command += ["--peer", f"{name}={shlex.join(words)}"]
    return [*command, *more]


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind not in FLAGS:
        print(f"error: kind {kind!r} is unknown; choose {', '.join(FLAGS)}", file=sys.stderr)
        sys.exit(2)
    try:
        command = benchmark(kind, sys.argv[2:])
    except subprocess.CalledProcessError as error:
        print(f"error: making it ended with status {error.returncode}; its reason is above", file=sys.stderr)
        sys.exit(2)
    sys.stdout.flush()
    # This process holds PyTorch, whose memory the benchmark can use. Peers in other environments find the modules here.
    os.execve(command[0], command, {**os.environ, "PYTHONPATH": str(ROOT)})


if __name__ == "__main__":
    main()
