"""How much memory this process could have: what the machine has to spare, and what a container allows of it."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

M_MMAP_THRESHOLD = -3  # of mallopt(3)
LARGE_BLOCK = 2**20


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that could still be taken without swapping, within the limits of control groups; None if unknown.

    Args:
        root: where /proc and /sys lie.
    """
    try:
        if sys.platform == "win32":
            return windows_available()
        if sys.platform == "darwin":
            return macos_available(subprocess.run(["vm_stat"], capture_output=True, text=True, timeout=10).stdout)
        return linux_available(root)
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return None


def held_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory that this process holds already; 0 if unknown."""
    try:
        if sys.platform == "win32":
            return windows_held()
        if sys.platform == "darwin":
            return listed_held()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", (root / "proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return 0


def return_large_blocks() -> None:
    """Let glibc give every block of a megabyte or more back to the system as soon as it is freed.

    By itself it begins to keep blocks of up to 32 MB as soon as one such was freed, so that a network whose weights are
    laid out anew when it is loaded took half as much again, or not, at random. Whoever sets it by glibc's own variables
    is not overruled. It holds for the whole process, and other C libraries have nothing like it.
    """
    mallopt = c_function("mallopt")
    if mallopt is not None and not {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def return_freed() -> None:
    """Let glibc give back the smaller blocks, too, which it keeps for the next that ask for as much."""
    malloc_trim = c_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def c_function(name: str) -> Any:
    """A function of Linux's C library, if it has one of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def listed_held() -> int:
    """What ``ps`` lists, in KiB, for this process."""
    words = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(words, capture_output=True, text=True, timeout=10).stdout) * 1024


def linux_available(root: Path) -> int | None:
    """The least of MemAvailable and what each control group above this process has left."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    left = [int(found[1]) * 1024] if found else []
    return min([*left, *cgroup_left(root)], default=None)


def cgroup_left(root: Path) -> Iterator[int]:
    """What the memory limits of this process's control groups leave, version 2 or 1, from its own group upwards."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        # In a container the path may be that of the host, which is not to be seen; its limit is then the mount's own.
        for above in dict.fromkeys([group, *group.parents, PurePosixPath()]):
            yield from group_left(mount / above, *names)


def group_left(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """Limit less usage of one group, its cached files not counted; nothing where there is no limit."""
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        statistics = (group / "memory.stat").read_text()
    except (OSError, ValueError):
        return
    if most.isdigit() and int(most) < 2**60:  # version 1 writes a number near 2^63 for none
        cached = re.search(rf"^{reclaimable} (\d+)$", statistics, re.MULTILINE)
        yield max(0, int(most) - used + (int(cached[1]) if cached else 0))


def macos_available(vm_stat: str) -> int | None:
    """Free, inactive, speculative and purgeable pages, from the output of ``vm_stat``."""
    size = re.search(r"page size of (\d+) bytes", vm_stat)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.$", vm_stat, re.MULTILINE)
    return int(size[1]) * sum(map(int, pages)) if size and pages else None


def windows_available() -> int:
    """``ullAvailPhys`` of GlobalMemoryStatusEx."""

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "total_page", "available_page")),
            *((name, ctypes.c_ulonglong) for name in ("total_virtual", "available_virtual", "extended")),
        )

    status = Status(length=ctypes.sizeof(Status))
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx failed")
    return int(status.available)


def windows_held() -> int:
    """``WorkingSetSize`` of GetProcessMemoryInfo."""

    class Counters(ctypes.Structure):
        _fields_ = (
            ("size", ctypes.c_ulong),
            ("faults", ctypes.c_ulong),
            *((f"number_{i}", ctypes.c_size_t) for i in range(8)),
        )

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
        raise OSError("GetProcessMemoryInfo failed")
    return int(counters.number_1)  # PeakWorkingSetSize comes before it
