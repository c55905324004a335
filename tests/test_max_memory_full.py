"""Proves at full size that a limit on memory is kept to within 5 %, measured from outside: peak resident memory of the
whole process, memory-mapped files included, of one picture with one step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import full_size_bundle
import pytest
import test_memory

from runtime.bundle import open_bundle
from runtime.errors import RequestError
from runtime.memory import MIB, Demand, MemoryPlan, estimate
from runtime.memory_plan import plan_memory
from runtime.networks import Networks

pytestmark = pytest.mark.full

PROCESS = 128 * MIB  # before a network is loaded
SIZE = 512
MEASURED = f"""
import re, sys
from pathlib import Path
from runtime import load
model, limit, output = sys.argv[1:]
result = load(model, "cpu", max_memory=int(limit))("a cat", width={SIZE}, height={SIZE}, num_inference_steps=1, seed=1)
result.save(output)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def demand() -> Demand:
    """A guided picture of 512 x 512."""
    networks = Networks(open_bundle(full_size_bundle.exported_bundle()))
    graphs = {role: networks.graph(role) for role in test_memory.DRAWING}
    return Demand(SIZE, SIZE, graphs, process=PROCESS)


def least() -> int:
    """Bytes that are needed where all is given up."""
    model = open_bundle(full_size_bundle.exported_bundle())
    with pytest.raises(RequestError, match="it needs at least") as error:
        plan_memory(model, demand(), MemoryPlan(1), 1)
    found = re.search(r"at least (\d+\.\d) GB", str(error.value))
    assert found
    return round(float(found[1]) * 1e9)


def peak_of(limit: int, output: Path) -> int:
    """Bytes that a process took at most, which has drawn a picture."""
    words = [str(full_size_bundle.exported_bundle()), str(limit), str(output)]
    environment = {**os.environ, "PYTHONPATH": str(full_size_bundle.ROOT)}
    command = [sys.executable, "-c", MEASURED, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert output.exists()
    peak = 1024 * int(done.stdout.splitlines()[-1])
    print(f"limit {limit / 1e9:.2f} GB, {peak / 1e9:.2f} GB at most: {done.stderr.strip()}")
    return peak


def test_the_least_that_is_promised_is_enough(tmp_path: Path) -> None:
    limit = least()
    assert peak_of(limit, tmp_path / "out.png") <= 1.05 * limit


def test_one_network_at_a_time(tmp_path: Path) -> None:
    """A limit with which nothing else is given up."""
    model = open_bundle(full_size_bundle.exported_bundle())
    limit = estimate(model, demand(), MemoryPlan(1, one_network=True)).peak
    assert plan_memory(model, demand(), MemoryPlan(1), limit) == MemoryPlan(1, one_network=True)
    assert peak_of(limit, tmp_path / "out.png") <= 1.05 * limit


def test_all_networks(tmp_path: Path) -> None:
    """What holds all of them takes no more than is estimated, either."""
    model = open_bundle(full_size_bundle.exported_bundle())
    limit = estimate(model, demand(), MemoryPlan(1)).peak
    assert peak_of(limit, tmp_path / "out.png") <= 1.05 * limit
