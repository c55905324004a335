"""Proves that a request that needs more memory than there is is refused with what would do, and how well that is known.

The figures of the full-size model are those of ``runtime.memory``, measured; what a machine has is read here from
files as Linux writes them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_bundle
import tiny_text_bundle

import runtime.memory_plan
from runtime import load
from runtime.available_memory import available_bytes, held_bytes, listed_held, macos_available
from runtime.bundle import Bundle, File, Latents, TextConditioning, open_bundle
from runtime.errors import RequestError
from runtime.memory import CPU_ONLY, MIB, Demand, Estimate, MemoryPlan, estimate
from runtime.memory_plan import check_memory
from runtime.vae import TILING

ROOT = Path(__file__).parents[1]
GIB = 2**30
SIZES = {"text_encoder": 492_323_498, "unet": 3_438_452_395, "vae_decoder": 198_603_772, "vae_encoder": 136_700_000}


def files(role: str) -> dict[str, Any]:
    """As they are exported: weights of 64 MiB and more beside the graph, and others inside."""
    if SIZES[role] < 2**26:
        return {"file": File(f"{role}.onnx", SIZES[role], None), "external_data": ()}
    beside = File(f"{role}.onnx.data", SIZES[role] - 10**6, None)
    return {"file": File(f"{role}.onnx", 10**6, None), "external_data": (beside,)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with the sizes of Stable Diffusion 1.5."""
    tiny = open_bundle(tiny_bundle.write(tmp_path_factory.mktemp("models")))
    graphs = {role: {"fp32": dataclasses.replace(tiny.graph("unet"), **files(role))} for role in SIZES}
    return dataclasses.replace(tiny, graphs=graphs, pixels=None, latents=Latents(4, 8, 0.18215))


DRAWING = ("text_encoder", "unet", "vae_decoder")
LOW = {"one_network": True, "in_turn": True, "tiles": TILING}


def asked(bundle: Bundle, width: int, height: int, roles: Sequence[str] = DRAWING, images: int = 1) -> Demand:
    """A request of a bundle's only graphs."""
    return Demand(width, height, {role: bundle.graph(role, "fp32") for role in roles}, images)


def held(batch: int = 1, low_memory: bool = False) -> MemoryPlan:
    return MemoryPlan(batch, **(LOW if low_memory else {}))


def estimated(bundle: Bundle, size: int, batch: int = 1, low_memory: bool = False) -> Estimate:
    return estimate(bundle, asked(bundle, size, size), held(batch, low_memory))


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    9000000 kB\n"
linux = pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the files are Linux's")


@linux
def test_without_limits_it_is_what_the_machine_has(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO)
    assert available_bytes(tmp_path) == 9_000_000 * 1024
    write(tmp_path, proc__self__cgroup="0::/\n")
    assert available_bytes(tmp_path) == 9_000_000 * 1024


def group(root: Path, path: str, **values: str) -> None:
    for name, text in values.items():
        file = root / "sys/fs/cgroup" / path / name.replace("__", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@linux
def test_the_narrowest_group_above_counts_and_its_cache_is_free(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/user/job/step\n")
    statistics = "anon 5\ninactive_file 1000\nactive_file 7\n"
    group(tmp_path, "user/job/step", memory__max="max\n", memory__current="70\n", memory__stat=statistics)
    group(tmp_path, "user/job", memory__max=f"{2 * GIB}\n", memory__current=f"{GIB}\n", memory__stat=statistics)
    group(tmp_path, "user", memory__max=f"{4 * GIB}\n", memory__current=f"{GIB}\n", memory__stat=statistics)
    assert available_bytes(tmp_path) == GIB + 1000
    group(tmp_path, "user", memory__current=f"{5 * GIB}\n")
    assert available_bytes(tmp_path) == 0


@linux
def test_groups_of_the_first_version(tmp_path: Path) -> None:
    lines = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup=lines)
    names = {"memory__usage_in_bytes": str(GIB), "memory__stat": "total_inactive_file 24\n"}
    # The path is the host's; what the container sees lies at the top.
    group(tmp_path, "memory", memory__limit_in_bytes=str(3 * GIB), **names)
    assert available_bytes(tmp_path) == 2 * GIB + 24
    group(tmp_path, "memory", memory__limit_in_bytes="9223372036854771712", **names)  # which stands for none
    assert available_bytes(tmp_path) == 9_000_000 * 1024


@linux
@pytest.mark.parametrize("text", ["", "MemFree: 1 kB\n", "MemAvailable: many\n"])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, text: str) -> None:
    assert available_bytes(tmp_path) is None
    write(tmp_path, proc__meminfo=text)
    assert available_bytes(tmp_path) is None
    assert held_bytes(tmp_path) == 0


def test_the_output_of_vm_stat() -> None:
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:                100.\n"
        "Pages active:              900.\nPages inactive:             20.\nPages speculative:           3.\n"
        "Pages throttled:             0.\nPages wired down:          700.\nPages purgeable:             4.\n"
    )
    assert macos_available(text) == 127 * 16384
    assert macos_available("") is None


def test_this_machine_and_this_process() -> None:
    there = available_bytes()
    assert there is not None
    assert there <= psutil.virtual_memory().available * 1.25
    assert held_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps here")
def test_what_ps_lists_falls_again() -> None:
    """As macOS is asked: what is held now, not the most that ever was."""
    before = listed_held()
    assert before == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    block = b"x" * 2**28
    assert listed_held() > before + 2**27
    del block
    assert listed_held() < before + 2**27


# Peaks in MiB beside what the process held: stage, rows, height, width, of the portable graph and of the fused one. The
# table in ``runtime.memory`` has them, too.
PEAKS = [
    (1, 1, 256, 256, 3387, 3340),
    (1, 2, 256, 256, 3468, 3377),
    (1, 1, 512, 512, 4422, 3452),
    (1, 2, 512, 512, 5538, 3602),
    (2, 1, 256, 256, 466, 466),
    (2, 1, 512, 512, 1260, 1260),
]
BLOCK = 256  # MiB: the arena grows by doubling, so what little is taken jumps by a share that is not little


@pytest.mark.parametrize(("stage", "rows", "height", "width", "portable", "fused"), PEAKS)
def test_the_estimate_is_what_was_measured(
    bundle: Bundle, stage: int, rows: int, height: int, width: int, portable: int, fused: int
) -> None:
    """Never below, and above by an eighth at most; where no more than two blocks of the arena are taken, by one."""
    demand = asked(bundle, width, height)
    own = {role: dataclasses.replace(graph, providers=CPU_ONLY) for role, graph in demand.graphs.items()}
    for measured, wanted in ((portable, demand), (fused, dataclasses.replace(demand, graphs=own))):
        found = estimate(bundle, wanted, held(low_memory=rows == 1)).stages[stage]
        expected = (found.held + found.activations) / MIB
        assert measured <= expected <= measured + (BLOCK if measured < 2 * BLOCK else measured / 8)


def test_more_is_never_less(bundle: Bundle) -> None:
    sizes = (64, 256, 512, 520, 768, 1024, 2048)
    for low_memory in (False, True):
        peaks = [estimated(bundle, size, 1, low_memory).peak for size in sizes]
        assert peaks == sorted(peaks)
        assert len(set(peaks)) > 3
        assert estimated(bundle, 512, 4, low_memory).peak > estimated(bundle, 512, 1, low_memory).peak
    for size in sizes:
        assert estimated(bundle, size, 2, True).peak < estimated(bundle, size, 2, False).peak


def there_are(monkeypatch: pytest.MonkeyPatch, free: int | None, held: int = 0) -> None:
    monkeypatch.setattr(runtime.memory_plan, "available_bytes", lambda: free)
    monkeypatch.setattr(runtime.memory_plan, "held_bytes", lambda: held)


@pytest.mark.parametrize(
    ("free", "size", "batch", "low_memory", "advice"),
    [
        (5 * 10**9, 512, 1, False, r"low_memory \(--low-memory\) needs 4\.\d GB"),
        (9 * 10**9, 512, 4, False, r"batch_size=1 \(--batch-size 1\) needs 6\.\d GB"),
        (5 * 10**9, 512, 4, True, r"batch_size=1 \(--batch-size 1\) needs 4\.\d GB"),
        (5 * 10**9, 1024, 1, True, r"a smaller width and height \(--size\) need less"),
        (10**9, 512, 1, False, r"a smaller width and height \(--size\) need less"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    size: int,
    batch: int,
    low_memory: bool,
    advice: str,
) -> None:
    there_are(monkeypatch, free)
    message = (
        rf"{size}x{size}, {batch} at once, needs about \d+\.\d GB of memory .*there are {free / 1e9:.1f} GB; {advice}"
        r".*; ignore_memory \(--ignore-memory\) tries it all the same"
    )
    with pytest.raises(RequestError, match=message) as error:
        check_memory(bundle, asked(bundle, size, size), held(batch, low_memory))
    assert "\n" not in str(error.value)


def test_what_may_just_not_fit_is_warned_of(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is where the estimate is 1.3 times what there is."""
    needed = estimated(bundle, 512).peak
    there_are(monkeypatch, int(needed / 1.29))
    with pytest.warns(UserWarning, match=r"512x512, 1 at once, needs about .* GB; low_memory \(--low-memory\) needs 4"):
        check_memory(bundle, asked(bundle, 512, 512), held())
    there_are(monkeypatch, int(needed / 1.31))
    with pytest.raises(RequestError, match="needs about"):
        check_memory(bundle, asked(bundle, 512, 512), held())


@pytest.mark.filterwarnings("error")
def test_what_fits_passes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    there_are(monkeypatch, 16 * 10**9)
    check_memory(bundle, asked(bundle, 512, 512), held())
    there_are(monkeypatch, 10**9, held=15 * 10**9)  # by the networks of an earlier request
    check_memory(bundle, asked(bundle, 512, 512), held())
    there_are(monkeypatch, None)
    check_memory(bundle, asked(bundle, 2**14, 2**14), held())


def test_this_machine_refuses_what_none_has(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match=r"16384x16384, 1 at once, needs about \d{4,}\.\d GB of memory"):
        check_memory(bundle, asked(bundle, 2**14, 2**14), held())


def test_an_image_to_begin_at_needs_the_encoder_and_strength_0_no_u_net(bundle: Bundle) -> None:
    roles = ["vae_encoder", "text_encoder", "vae_decoder"]
    untouched = estimate(bundle, asked(bundle, 512, 512, roles), held())
    assert [stage.role for stage in untouched.stages] == roles
    drawn = estimate(bundle, asked(bundle, 512, 512, [*roles[:2], "unet", roles[2]]), held())
    assert untouched.peak < estimated(bundle, 512).peak < drawn.peak


# Bundle of 28 x 28 pixels, and what 64 rows take of anonymous memory, in MiB: the least of one image and of 64.
PIXELS = [("mnist-paper", 55.2), ("fashion-mnist-paper", 104.4)]


@pytest.mark.parametrize(("name", "measured"), PIXELS)
def test_the_estimate_for_pixels_is_what_was_measured(name: str, measured: float) -> None:
    """Within an eighth, and never below."""
    bundle = open_bundle(ROOT / "models_onnx" / name)
    (stage,) = estimate(bundle, asked(bundle, 28, 28, ["unet"]), held(32)).stages
    assert measured <= stage.activations / MIB <= 1.125 * measured


def test_images_are_held_until_all_are_drawn(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A text's image: its latents, its pixels twice, and what two prompts are encoded to."""
    there_are(monkeypatch, 12 * 10**9)
    text = open_bundle(tiny_text_bundle.write(tmp_path)).conditioning
    assert isinstance(text, TextConditioning)
    sd15 = dataclasses.replace(bundle, conditioning=dataclasses.replace(text, max_length=77, embedding_dim=768))
    each = 4 * 4 * 64 * 64 + 2 * 3 * 512 * 512 + 2 * 4 * 77 * 768
    few, many = (estimate(sd15, asked(sd15, 512, 512, images=count), held()) for count in (1, 1001))
    assert (many.peak - few.peak) / 1000 == pytest.approx(each, rel=0.001)
    assert "images" not in str(few)
    assert "images 2.1 GB" in str(many)
    with pytest.raises(RequestError, match=r"images 211\.3 GB\).*; fewer images at a time \(--count\) need less, or"):
        check_memory(sd15, asked(sd15, 512, 512, images=100_000), held())


@pytest.mark.parametrize("roles", [["unet"], []])
def test_a_million_pictures_of_pixels_are_refused_before_they_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, roles: list[str]
) -> None:
    there_are(monkeypatch, 10**9)
    tiny = open_bundle(tiny_bundle.write(tmp_path))
    check_memory(tiny, asked(tiny, 8, 8, roles, 1000), held(32))
    with pytest.raises(RequestError, match=r"images 1\.4 GB\), and there are 1\.0 GB; fewer images at a time"):
        check_memory(tiny, asked(tiny, 8, 8, roles, 10**6), held(32))


def test_a_batch_of_pixels_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there_are(monkeypatch, 2 * 10**9)
    pipeline = load(ROOT / "models_onnx" / "mnist-paper", "cpu")
    with pytest.raises(RequestError, match=r"28x28, 20000 at once, needs about .* batch_size=1 \(--batch-size 1\) ne"):
        pipeline([1] * 20_000, batch_size=20_000)


PEAK_OF_LOADING = """
import re, sys
from pathlib import Path
import numpy as np
from runtime.available_memory import return_freed, return_large_blocks
def peak(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def churn():
    for _ in range(20):  # 30 MB each, of which glibc learns to keep what is freed
        blocks = [np.ones(30 * 2**20, np.uint8) for _ in range(4)]
        pinned = np.ones(2**18, np.uint8)  # above them, so that the heap cannot shrink
        del blocks
        yield pinned
if sys.argv[1] == "at once":
    return_large_blocks()
before = peak("VmRSS")
kept = list(churn())
held = peak("VmRSS") - before
return_freed()
print(held, peak("VmRSS") - before)
"""


@linux
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_blocks_go_back_to_the_system() -> None:
    """Large ones at once, if it is told; and all of them when it is asked."""
    held = {}
    for when in ("at once", "when asked"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PEAK_OF_LOADING, when]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        held[when], left = map(int, done.stdout.split())
        assert left < 16 * 2**20
    assert held["at once"] < 16 * 2**20
    assert held["when asked"] > 64 * 2**20
