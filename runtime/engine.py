"""ONNX Runtime itself: which wheel is installed, which processors it can use, and what is wrong with either."""

from __future__ import annotations

import importlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from runtime.errors import EngineError

# Each of these wheels installs the same Python package `onnxruntime`; two of them overwrite each other's files.
WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-qnn",
    "onnxruntime-silicon",
)
INSTALL = "pip install 'diffusion-anywhere[cpu]' (or [cuda])"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Vector instructions that ONNX Runtime's CPU kernels choose between.
PROCESSOR_FEATURES = (
    "sse4_1",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
)
PROCESSOR_FEATURES_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")


def installed_wheels() -> dict[str, str]:
    """The ONNX Runtime wheels that are installed, with their versions."""
    from importlib import metadata  # it brings in the email package: a fifth of the time that `import runtime` takes

    found = {}
    for name in WHEELS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def wheel_problem(wheels: dict[str, str]) -> str | None:
    """What is wrong with the wheels that are installed, and its cure; None when all is well."""
    if not wheels:
        return f"ONNX Runtime is not installed; choose one: {INSTALL}"
    if len(wheels) > 1:
        names = " ".join(sorted(wheels))
        return (
            f"{' and '.join(sorted(wheels))} are both installed and overwrite each other; "
            f"run: pip uninstall -y {names}, then {INSTALL}"
        )
    return None


def import_engine() -> ModuleType:
    """Import ``onnxruntime``, once it is certain which one that is.

    Raises:
        EngineError: it is missing, installed twice, or does not load.
    """
    problem = wheel_problem(installed_wheels())
    if problem:
        raise EngineError(problem)
    try:
        module = importlib.import_module("onnxruntime")
        module.get_available_providers()
    except (ImportError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EngineError(f"ONNX Runtime is installed but does not load ({reason}); reinstall it: {INSTALL}") from error
    return module


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; ``problem`` says what to do, or is None."""

    name: str
    value: str
    problem: str | None = None


def examine() -> list[Finding]:
    """What ``python -m runtime doctor`` says."""
    wheels = installed_wheels()
    problem = wheel_problem(wheels)
    findings = [
        Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("wheel", ", ".join(f"{name} {version}" for name, version in wheels.items()) or "none", problem),
    ]
    if not problem:
        findings += examine_providers(wheels)
    findings += [Finding("threads", threads_in_words()), Finding("processor", processor_name())]
    features = processor_features()
    slow = (
        "without AVX2 the kernels are several times slower"
        if "avx2" not in features and "asimd" not in features
        else None
    )
    findings.append(Finding("features", " ".join(features) or "unknown", slow if features else None))
    return findings


def examine_providers(wheels: dict[str, str]) -> list[Finding]:
    try:
        available = import_engine().get_available_providers()
    except EngineError as error:
        return [Finding("providers", "none", str(error))]
    problem = None
    if "onnxruntime-gpu" in wheels:
        problem = cuda_problem()
    return [Finding("providers", ", ".join(available), problem)]


def cuda_problem() -> str | None:
    """Why sessions would not run on CUDA although the wheel offers it; None when they would.

    ``get_available_providers`` lists what the wheel was compiled with, not what works here: a session can fall back
    to the CPU without an error. So a real session is asked.
    """
    from runtime.session import try_cuda

    return try_cuda()


def threads_in_words() -> str:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ]
    return ", ".join([f"{allowed} of {os.cpu_count()} processors may be used", *limits])


def cpuinfo(key: str) -> str:
    """A value of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def processor_name() -> str:
    return cpuinfo("model name") or platform.processor() or platform.machine()


def processor_features() -> list[str]:
    flags = (cpuinfo("flags") or cpuinfo("Features")).split()
    return [feature for feature in (*PROCESSOR_FEATURES, *PROCESSOR_FEATURES_ARM) if feature in flags]
