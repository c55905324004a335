"""Proves that a graph loaded as it was optimised before computes the same to the bit, that only what is exactly right
is believed, and that a cache which cannot be used costs nothing but time.

Whether a session comes from the cache is seen by what it maps: the weights of an entry.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_bundle
import weighty_bundle

import runtime.optimized
from runtime.__main__ import main
from runtime.bundle import Bundle, open_bundle
from runtime.cancel import CancelToken, stoppable
from runtime.errors import BundleError, Cancelled, RequestError
from runtime.file_lock import file_lock
from runtime.graph_cache import ENTRY, FOLDER, MODEL, WEIGHTS, GraphCache, default_cache, limit_bytes, user_cache
from runtime.loading import load
from runtime.session import Session
from runtime.verified import CACHE_FILE, SETTLED_NS

ROOT = Path(__file__).parents[1]
LIMIT = 10**8
POSIX = pytest.mark.skipif(os.name != "posix", reason="owners, modes and such files are POSIX")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_ANYWHERE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFUSION_ANYWHERE_CACHE_GB")
    return tmp_path / "cache"


@pytest.fixture
def cache(own_folder: Path) -> GraphCache:
    return GraphCache(own_folder / FOLDER, LIMIT, least=0, patience=0.3)


@pytest.fixture(scope="module", params=["inside", "beside", "half"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One with its weights inside the graph, one with them in a file beside it, and one that computes in float16."""
    kind: dict[str, Any] = {"inside": {}, "beside": {"external": True}, "half": {"dtype": np.float16}}[request.param]
    return open_bundle(weighty_bundle.write(tmp_path_factory.mktemp(request.param), **kind))


@pytest.fixture(scope="module")
def one_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(weighty_bundle.write(tmp_path_factory.mktemp("models")))


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def opened(bundle: Bundle, cache: GraphCache | None, threads: int | None = 1) -> Session:
    return Session(bundle, bundle.graph("unet"), "cpu", threads, cache)


def output(session: Session, rows: int = 2) -> npt.NDArray[np.float32]:
    sample = np.random.default_rng(0).standard_normal((rows, 1, tiny_bundle.SIZE, tiny_bundle.SIZE), np.float32)
    labels = np.arange(rows) % tiny_bundle.CLASSES
    return session.run(sample=sample, timestep=np.full(rows, 4.5, np.float32), class_labels=labels)["out_sample"]


def the_entry(cache: GraphCache) -> Path:
    (entry,) = cache.entries()
    return cache.folder / entry.key


def maps(folder: Path) -> bool:
    """Whether this process has a file of a folder in its memory as a file."""
    return str(folder.resolve()) in Path("/proc/self/maps").read_text()


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- the same, and less memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_it_computes_the_same_to_the_bit(bundle: Bundle, cache: GraphCache, threads: int, no_warning: None) -> None:
    expected = output(opened(bundle, None, threads))
    for _ in ("made", "found"):
        session = opened(bundle, cache, threads)
        np.testing.assert_array_equal(output(session), expected)
        assert session.placement.keys() == {"CPUExecutionProvider"}
    assert len(cache.entries()) == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc to see mappings in")
def test_its_weights_are_mapped_at_the_first_load_too(bundle: Bundle, cache: GraphCache) -> None:
    for _ in ("made", "found"):
        session = opened(bundle, cache)
        assert maps(the_entry(cache))
        del session
        assert not maps(the_entry(cache))


HELD = """
import sys
from pathlib import Path
from runtime.bundle import open_bundle
from runtime.graph_cache import GraphCache
from runtime.session import Session
bundle = open_bundle(sys.argv[1])
cache = GraphCache(Path(sys.argv[2]), 10**9, least=0) if len(sys.argv) > 2 else None
session = Session(bundle, bundle.graph("unet"), threads=1, cache=cache)
anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
print(int(anonymous.split()[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to see memory in")
def test_its_weights_are_not_on_the_heap_at_the_first_load_either(tmp_path: Path, cache: GraphCache) -> None:
    folder = weighty_bundle.write(tmp_path / "models", external=True, channels=1024)
    weights = (folder / "unet.onnx.data").stat().st_size

    def held(*arguments: Path) -> int:
        command = [sys.executable, "-c", HELD, str(folder), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return int(subprocess.run(command, env=environment, capture_output=True, timeout=300, check=True).stdout)

    without, made, found = held(), held(cache.folder), held(cache.folder)
    assert made < without - weights / 2
    assert found < without - weights / 2


def test_an_entry_is_a_graph_with_all_weights_in_its_own_file(bundle: Bundle, cache: GraphCache) -> None:
    opened(bundle, cache)
    entry = the_entry(cache)
    assert {path.name for path in entry.iterdir()} == {ENTRY, MODEL, WEIGHTS}
    assert weighty_bundle.tensor_locations((entry / MODEL).read_bytes()) == {WEIGHTS}
    assert json.loads((entry / ENTRY).read_text())["title"] == "weighty/unet.onnx"


def test_it_is_made_once(bundle: Bundle, cache: GraphCache) -> None:
    opened(bundle, cache)
    before = contents(cache.folder), the_entry(cache).stat().st_ino
    opened(bundle, cache)
    assert (contents(cache.folder), the_entry(cache).stat().st_ino) == before


@pytest.mark.parametrize(("made", "used"), [(1, 2), (2, 1)])
def test_any_number_of_threads_may_use_what_another_made(
    one_bundle: Bundle, cache: GraphCache, made: int, used: int
) -> None:
    opened(one_bundle, cache, made)
    np.testing.assert_array_equal(output(opened(one_bundle, cache, used)), output(opened(one_bundle, None, used)))
    assert len(cache.entries()) == 1


def test_a_cached_graph_is_still_held_against_its_manifest(one_bundle: Bundle, cache: GraphCache) -> None:
    opened(one_bundle, cache)
    graph = one_bundle.graph("unet")
    renamed = dataclasses.replace(graph.inputs[0], name="latents")
    with pytest.raises(BundleError, match=r"has inputs .* where the manifest says"):
        Session(one_bundle, dataclasses.replace(graph, inputs=(renamed, *graph.inputs[1:])), cache=cache)


def test_a_bundle_that_was_altered_is_refused_although_its_graph_is_cached(cache: GraphCache, tmp_path: Path) -> None:
    bundle = open_bundle(weighty_bundle.write(tmp_path / "models", external=True))
    opened(bundle, cache)
    data = bundle.folder / "unet.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(BundleError, match="does not have the SHA-256 of the manifest"):
        opened(bundle, cache)


# --- what an entry is for -------------------------------------------------------------------------------------------


def test_other_weights_have_another_entry(one_bundle: Bundle, cache: GraphCache, tmp_path: Path) -> None:
    other = open_bundle(weighty_bundle.write(tmp_path / "other", seed=1))
    opened(one_bundle, cache)
    np.testing.assert_array_equal(output(opened(other, cache)), output(opened(other, None)))
    assert len(cache.entries()) == 2
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(output(opened(other, cache)), output(opened(one_bundle, cache)))


ELSEWHERE: dict[str, tuple[str, Any]] = {
    "another processor": ("processor_name", lambda: "another"),
    "other features": ("processor_features", lambda: ["avx"]),
    "another format": ("FORMAT", runtime.optimized.FORMAT + 1),
    "another way to save": ("SAVING", runtime.optimized.SAVING | {"session.some_entry": "1"}),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_another_machine_has_another_entry(
    one_bundle: Bundle, cache: GraphCache, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(one_bundle, cache)
    name, value = ELSEWHERE[what]
    monkeypatch.setattr(runtime.optimized, name, value)
    opened(one_bundle, cache)
    assert len(cache.entries()) == 2


def test_another_version_has_another_entry(
    one_bundle: Bundle, cache: GraphCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(one_bundle, cache)
    monkeypatch.setattr("onnxruntime.__version__", "1.0.0")
    opened(one_bundle, cache)
    assert len(cache.entries()) == 2


def test_small_graphs_are_not_kept(one_bundle: Bundle, cache: GraphCache) -> None:
    size = runtime.optimized.graph_bytes(one_bundle.graph("unet"))
    opened(one_bundle, dataclasses.replace(cache, least=size + 1))
    assert not cache.folder.exists()
    opened(one_bundle, dataclasses.replace(cache, least=size))
    assert len(cache.entries()) == 1


# --- what is not believed -------------------------------------------------------------------------------------------


def edit(entry: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((entry / ENTRY).read_text())
    change(value)
    (entry / ENTRY).write_text(json.dumps(value))


def flip(path: Path) -> None:
    """Another bit in the middle, at the same size and with the old time put back."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def link(path: Path) -> None:
    """The very same file, by a link to another place."""
    outside = path.parents[2] / path.name
    path.rename(outside)
    path.symlink_to(outside)


def forge(entry: Path, model: bytes) -> None:
    """Another graph, and a JSON that says so."""
    (entry / MODEL).write_bytes(model)
    edit(entry, lambda value: value["files"].update({MODEL: weighty_bundle.describe(entry / MODEL)}))


def out_of_the_folder(entry: Path) -> None:
    shutil.copy(entry / WEIGHTS, entry.parent / WEIGHTS)
    forge(entry, (entry / MODEL).read_bytes().replace(WEIGHTS.encode(), f"../{WEIGHTS[3:]}".encode()))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights altered": lambda entry: flip(entry / WEIGHTS),
    "weights cut": lambda entry: cut(entry / WEIGHTS),
    "weights missing": lambda entry: (entry / WEIGHTS).unlink(),
    "weights empty": lambda entry: (entry / WEIGHTS).write_bytes(b""),
    "graph altered": lambda entry: flip(entry / MODEL),
    "graph cut": lambda entry: cut(entry / MODEL),
    "graph missing": lambda entry: (entry / MODEL).unlink(),
    "no graph": lambda entry: forge(entry, b"not a graph at all"),
    "no operator": lambda entry: forge(entry, (entry / MODEL).read_bytes().replace(b"Tanh", b"Tanx")),
    "weights elsewhere": out_of_the_folder,
    "no JSON": lambda entry: (entry / ENTRY).write_text("{"),
    "JSON missing": lambda entry: (entry / ENTRY).unlink(),
    "JSON too deep": lambda entry: (entry / ENTRY).write_text("[" * 60_000),
    "JSON too large": lambda entry: (entry / ENTRY).write_text((entry / ENTRY).read_text() + " " * 2**16),
    "JSON a list": lambda entry: (entry / ENTRY).write_text("[]"),
    "JSON no text": lambda entry: (entry / ENTRY).write_bytes(b"\xff\xfe\x00"),
    "no files": lambda entry: edit(entry, lambda value: value.update(files={})),
    "files null": lambda entry: edit(entry, lambda value: value["files"].update({WEIGHTS: None})),
    "size a word": lambda entry: edit(entry, lambda value: value["files"][WEIGHTS].update(size="1")),
    "size true": lambda entry: edit(entry, lambda value: value["files"][WEIGHTS].update(size=True)),
    "another key": lambda entry: edit(entry, lambda value: value["facts"].update(onnxruntime="1.0")),
    "half a folder": lambda entry: [(entry / name).unlink() for name in (ENTRY, WEIGHTS)],
    "empty folder": lambda entry: [path.unlink() for path in entry.iterdir()],
    "a file for a folder": lambda entry: (shutil.rmtree(entry), entry.write_bytes(b"")),
}
POSIX_DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights linked": lambda entry: link(entry / WEIGHTS),
    "graph linked": lambda entry: link(entry / MODEL),
    "JSON linked": lambda entry: link(entry / ENTRY),
    "folder linked": link,
    "weights a pipe": lambda entry: ((entry / WEIGHTS).unlink(), os.mkfifo(entry / WEIGHTS)),
    "JSON for all to write": lambda entry: (entry / ENTRY).chmod(0o666),
    "weights for all to write": lambda entry: (entry / WEIGHTS).chmod(0o666),
    "folder for all to write": lambda entry: entry.chmod(0o777),
}


def check_mended(bundle: Bundle, cache: GraphCache, entry: Path, logged: list[str]) -> None:
    """What is damaged is made again, with one logged line, and then believed."""
    logged.clear()
    np.testing.assert_array_equal(output(opened(bundle, cache)), output(opened(bundle, None)))
    again = [line for line in logged if "is made again" in line]
    assert len(again) == 1
    assert "\n" not in again[0]
    assert the_entry(cache) == entry
    assert not entry.is_symlink()
    assert {path.name for path in entry.iterdir()} == {ENTRY, MODEL, WEIGHTS}
    logged.clear()
    opened(bundle, cache)
    assert logged == []


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    caplog.set_level(logging.INFO, "runtime")
    monkeypatch.setattr(caplog.handler, "emit", lambda record: lines.append(record.getMessage()))
    return lines


@pytest.mark.parametrize("damage", [*DAMAGE, *(pytest.param(name, marks=POSIX) for name in POSIX_DAMAGE)])
def test_what_is_damaged_is_made_again(
    one_bundle: Bundle, cache: GraphCache, damage: str, logged: list[str], no_warning: None
) -> None:
    opened(one_bundle, cache)
    entry = the_entry(cache)
    settle()
    opened(one_bundle, cache)  # so that the hash of its weights is remembered
    ({**DAMAGE, **POSIX_DAMAGE})[damage](entry)
    check_mended(one_bundle, cache, entry, logged)


def test_an_entry_in_the_place_of_another_is_made_again(
    one_bundle: Bundle, cache: GraphCache, tmp_path: Path, logged: list[str]
) -> None:
    opened(one_bundle, cache)
    entry = the_entry(cache)
    other = GraphCache(tmp_path / "other-graphs", LIMIT, least=0)
    opened(open_bundle(weighty_bundle.write(tmp_path / "other", seed=1)), other)
    shutil.rmtree(entry)
    the_entry(other).rename(entry)
    check_mended(one_bundle, cache, entry, logged)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a file to someone else")
@pytest.mark.parametrize("name", [ENTRY, MODEL, WEIGHTS, "."])
def test_what_belongs_to_someone_else_is_made_again(
    one_bundle: Bundle, cache: GraphCache, name: str, logged: list[str]
) -> None:
    opened(one_bundle, cache)
    entry = the_entry(cache)
    os.chown(entry / name, 12345, 12345)
    check_mended(one_bundle, cache, entry, logged)


def settle() -> None:
    time.sleep(2 * SETTLED_NS / 10**9)


def test_the_hash_of_what_was_made_is_remembered(
    one_bundle: Bundle, cache: GraphCache, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runtime.graph_cache.sync
    monkeypatch.setattr(runtime.graph_cache, "sync", lambda path: (real(path), settle()))
    opened(one_bundle, cache)
    remembered = json.loads((own_folder / CACHE_FILE).read_text())["files"]
    assert str((the_entry(cache) / WEIGHTS).resolve()) in remembered


# --- where there is no room -----------------------------------------------------------------------------------------


def check_without(bundle: Bundle, cache: GraphCache, reason: str) -> None:
    """A working session, one warning for however many loads, and nothing left."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            np.testing.assert_array_equal(output(opened(bundle, cache)), output(opened(bundle, None)))
    (warning,) = caught
    assert "optimised graphs cannot be kept in" in str(warning.message)
    assert reason in str(warning.message)
    assert "DIFFUSION_ANYWHERE_CACHE_GB=0" in str(warning.message)
    assert "\n" not in str(warning.message)


def test_a_full_disk_is_a_warning(one_bundle: Bundle, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = GraphCache(small_disk / "graphs", LIMIT, least=0)
    monkeypatch.setattr(GraphCache, "allowed", lambda self: LIMIT)  # as if others filled it meanwhile
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 65536))
    check_without(one_bundle, cache, "")
    assert contents(cache.folder) == {}


def test_a_disk_that_is_nearly_full_is_left_alone(one_bundle: Bundle, small_disk: Path, no_warning: None) -> None:
    cache = GraphCache(small_disk / "graphs", LIMIT, least=0)
    opened(one_bundle, cache)
    assert contents(cache.folder) == {}


def test_a_folder_that_cannot_be_written_is_a_warning(one_bundle: Bundle, cache: GraphCache) -> None:
    cache.folder.parent.mkdir(exist_ok=True)
    cache.folder.write_bytes(b"a file where the folder should be")
    check_without(one_bundle, cache, "File exists")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is what even root cannot write to")
def test_a_read_only_file_system_is_a_warning(one_bundle: Bundle) -> None:
    check_without(one_bundle, GraphCache(Path("/proc/graphs"), LIMIT, least=0), "No such file or directory")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind root")
def test_an_entry_in_a_read_only_folder_is_used(one_bundle: Bundle, cache: GraphCache, no_warning: None) -> None:
    opened(one_bundle, cache)
    cache.folder.chmod(0o500)
    opened(one_bundle, cache)
    cache.folder.chmod(0o700)


def test_a_graph_that_cannot_be_loaded_is_refused_as_without_a_cache(cache: GraphCache, tmp_path: Path) -> None:
    folder = weighty_bundle.write(tmp_path / "models")
    path = folder / "unet.onnx"
    path.write_bytes(path.read_bytes().replace(b"Tanh", b"Tanx"))
    manifest = json.loads((folder / "manifest.json").read_text())
    described = weighty_bundle.describe(path)
    manifest["graphs"]["unet"]["fp32"].update(size=described["size"], sha256=described["sha256"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    said = []
    for used in (None, cache):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(BundleError, match="is not a graph that this ONNX Runtime can load") as error:
                opened(open_bundle(folder), used)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert contents(cache.folder) == {}


# --- bounds ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    return [open_bundle(weighty_bundle.write(tmp_path_factory.mktemp("many"), seed)) for seed in range(4)]


def titled(cache: GraphCache) -> list[str]:
    return [entry.key for entry in cache.entries()]


def test_what_was_not_used_for_longest_goes_first(bundles: list[Bundle], cache: GraphCache) -> None:
    keys = []
    for bundle in bundles[:3]:
        opened(bundle, cache)
        (key,) = set(titled(cache)) - set(keys)
        keys.append(key)
        settle()
    opened(bundles[0], cache)
    assert titled(cache) == [keys[1], keys[2], keys[0]]
    size = cache.entries()[0].size
    needed = int(runtime.optimized.GROWTH * runtime.optimized.graph_bytes(bundles[3].graph("unet")))
    opened(bundles[3], dataclasses.replace(cache, limit=2 * size + needed))
    assert keys[1] not in titled(cache)
    assert {keys[0], keys[2]} < set(titled(cache))
    assert len(titled(cache)) == 3


def test_what_does_not_fit_at_all_removes_nothing(bundles: list[Bundle], cache: GraphCache, logged: list[str]) -> None:
    opened(bundles[0], cache)
    before = contents(cache.folder)
    small = dataclasses.replace(cache, limit=runtime.optimized.graph_bytes(bundles[1].graph("unet")))
    np.testing.assert_array_equal(output(opened(bundles[1], small)), output(opened(bundles[1], None)))
    assert any("is not kept as optimised" in line for line in logged)
    assert contents(cache.folder) == before


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    assert limit_bytes() == 12 * 10**9
    monkeypatch.setenv("DIFFUSION_ANYWHERE_CACHE_GB", "2.5")
    found = default_cache()
    assert found is not None
    assert (found.folder, found.limit) == (own_folder / FOLDER, 2_500_000_000)
    monkeypatch.setenv("DIFFUSION_ANYWHERE_CACHE_GB", "0")
    assert default_cache() is None
    assert user_cache().folder == own_folder / FOLDER


@pytest.mark.parametrize("said", ["much", "-1", "nan", "inf", "1e9", "1,5", "5GB"])
def test_a_limit_that_is_none_is_one_line(
    said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    monkeypatch.setenv("DIFFUSION_ANYWHERE_CACHE_GB", said)
    model = tiny_bundle.write(tmp_path)
    with pytest.raises(RequestError, match="must be a number of gigabytes, or 0 for no cache"):
        load(model)
    assert repr(said) in refusal(main, "--model", model, "-o", tmp_path / "out.png")
    assert load(model, cache=False).networks.cache is None


def test_no_home_folder_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DIFFUSION_ANYWHERE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert default_cache() is None
    with pytest.raises(RequestError, match="let DIFFUSION_ANYWHERE_CACHE name a folder"):
        user_cache()


# --- several at once, and cut off -----------------------------------------------------------------------------------


def test_threads_make_it_once_and_all_have_it(one_bundle: Bundle, cache: GraphCache, logged: list[str]) -> None:
    patient, made = dataclasses.replace(cache, patience=60), []
    threads = [threading.Thread(target=lambda: made.append(output(opened(one_bundle, patient)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    for each in made:
        np.testing.assert_array_equal(each, output(opened(one_bundle, None)))
    assert len([line for line in logged if line.startswith("optimising")]) == 1


CHILD = """
import sys
from pathlib import Path
from runtime.bundle import open_bundle
from runtime.graph_cache import GraphCache
from runtime.session import Session
bundle = open_bundle(sys.argv[1])
Session(bundle, bundle.graph("unet"), cache=GraphCache(Path(sys.argv[2]), 10**8, least=0, patience=60))
"""


@pytest.mark.slow
def test_processes_make_one_whole_entry(one_bundle: Bundle, cache: GraphCache, no_warning: None) -> None:
    command = [sys.executable, "-W", "error", "-c", CHILD, str(one_bundle.folder), str(cache.folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    children = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(3)]
    assert [child.communicate(timeout=300)[1] for child in children] == [b""] * 3
    assert [child.returncode for child in children] == [0] * 3
    np.testing.assert_array_equal(output(opened(one_bundle, cache)), output(opened(one_bundle, None)))
    assert {path.name for path in the_entry(cache).iterdir()} == {ENTRY, MODEL, WEIGHTS}
    assert [path for path in cache.folder.glob(".*") if path.is_dir()] == []


def key_in(bundle: Bundle, cache: GraphCache) -> str:
    """The name of a bundle's entry."""
    opened(bundle, cache)
    return the_entry(cache).name


def test_whoever_waits_too_long_goes_on_without(
    one_bundle: Bundle, cache: GraphCache, tmp_path: Path, logged: list[str], no_warning: None
) -> None:
    key = key_in(one_bundle, GraphCache(tmp_path / "elsewhere", LIMIT, least=0))
    cache.folder.mkdir(parents=True)
    with file_lock(cache.lock_path(key), 0) as held:
        assert held
        np.testing.assert_array_equal(output(opened(one_bundle, cache)), output(opened(one_bundle, None)))
        assert any("by another process" in line for line in logged)
        assert cache.entries() == []
    opened(one_bundle, cache)
    assert titled(cache) == [key]


def test_waiting_can_be_cancelled(one_bundle: Bundle, cache: GraphCache, tmp_path: Path) -> None:
    key = key_in(one_bundle, GraphCache(tmp_path / "elsewhere", LIMIT, least=0))
    cache.folder.mkdir(parents=True)
    token = CancelToken()
    with file_lock(cache.lock_path(key), 0), stoppable(token):
        timer = threading.Timer(0.2, token.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            opened(one_bundle, dataclasses.replace(cache, patience=600))
        timer.join()


STAGES = ("open", "sync", "hash_file")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt, MemoryError])
def test_what_is_cut_off_leaves_nothing(
    one_bundle: Bundle, cache: GraphCache, stage: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        assert any(path.is_dir() for path in cache.folder.glob(".*"))  # it was begun
        raise error

    if stage == "open":
        monkeypatch.setattr(runtime.optimized.Optimisation, "apply", lambda self, *_: self.save and cut_off())
    else:
        monkeypatch.setattr(runtime.graph_cache, stage, cut_off)
    with pytest.raises(error):
        opened(one_bundle, cache)
    assert contents(cache.folder) == {}
    assert [path for path in cache.folder.iterdir() if path.is_dir()] == []
    monkeypatch.undo()
    opened(one_bundle, cache)
    assert len(cache.entries()) == 1


def test_a_cancelled_load_stops_while_onnx_runtime_optimises(one_bundle: Bundle, cache: GraphCache) -> None:
    token = CancelToken()
    real = runtime.optimized.Optimisation.apply

    def apply(self: runtime.optimized.Optimisation, *options: Any) -> None:
        real(self, *options)
        token.cancel()

    with pytest.MonkeyPatch.context() as patch, stoppable(token):
        patch.setattr(runtime.optimized.Optimisation, "apply", apply)
        with pytest.raises(Cancelled):
            opened(one_bundle, cache)
    assert contents(cache.folder) == {}


def test_what_a_killed_process_left_is_removed(bundles: list[Bundle], cache: GraphCache) -> None:
    opened(bundles[0], cache)
    key = the_entry(cache).name
    left = [cache.folder / f".{name}.x1y2" for name in (key, "0" * 32)]
    busy = cache.folder / f".{'1' * 32}.x1y2"
    for folder in (*left, busy):
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(b"half")
    with file_lock(cache.lock_path("1" * 32), 0):
        opened(bundles[1], cache)
        assert [folder.exists() for folder in (*left, busy)] == [False, False, True]
    cache.sweep()
    assert not busy.exists()
    assert len(cache.entries()) == 2


# --- from the command line ------------------------------------------------------------------------------------------


def test_the_command_lists_and_clears(
    bundles: list[Bundle], own_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"0 graphs, 0.00 GB of 12 GB in {own_folder / FOLDER}\n"
    for bundle in bundles[:2]:
        opened(bundle, GraphCache(own_folder / FOLDER, LIMIT, least=0))
    oldest = user_cache().entries()[0].key
    os.utime(own_folder / FOLDER / oldest / ENTRY, (0, time.time() - 3 * 86400))
    monkeypatch.setenv("DIFFUSION_ANYWHERE_CACHE_GB", "0")  # what is there can still be seen and removed
    assert main(["cache"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("weighty/unet.onnx ")
    assert first.endswith("GB  used just now")
    assert second.endswith("GB  used 3 days ago")
    assert last.startswith("2 graphs, 0.00 GB of 0 GB")
    (own_folder / FOLDER / ("f" * 32)).mkdir()  # what is broken is removed, too
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"removed 3 graphs, 0.00 GB from {own_folder / FOLDER}\n"
    assert list((own_folder / FOLDER).iterdir()) == []


def test_what_cannot_be_cleared_is_one_line(
    one_bundle: Bundle, own_folder: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(one_bundle, GraphCache(own_folder / FOLDER, LIMIT, least=0))

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(runtime.graph_cache, "discard", refused)
    assert refusal(main, "cache", "--clear") == f"error: {own_folder / FOLDER} cannot be cleared (Permission denied)\n"


def test_a_title_shows_nothing_that_a_terminal_acts_upon(
    one_bundle: Bundle, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = GraphCache(own_folder / FOLDER, LIMIT, least=0)
    opened(one_bundle, cache)
    edit(the_entry(cache), lambda value: value.update(title="\x1b[31mred\n"))
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.startswith(r"\x1b[31mred\n ")


LABELS, WORDS = ["--label", "all", "--grid"], ["a red sneaker on a white background", "--steps", "4"]


@pytest.mark.parametrize("model", ["weighty", pytest.param("pocket", marks=pytest.mark.slow)])
def test_pictures_are_the_same_with_and_without(
    one_bundle: Bundle, cache: GraphCache, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("runtime.loading.default_cache", lambda: cache)
    folder = {"weighty": one_bundle.folder, "pocket": ROOT / "models_onnx" / "pocket"}[model]
    what = {"weighty": LABELS, "pocket": WORDS}[model]
    words = [*what, "--model", str(folder), "--seed", "7", "--provider", "cpu", "--threads", "1"]
    assert main(["draw", *words, "--no-cache", "-o", str(tmp_path / "without.png")]) == 0
    assert not cache.folder.exists()
    for name in ("made", "found"):
        assert main(["draw", *words, "-o", str(tmp_path / f"{name}.png")]) == 0
        assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / "without.png").read_bytes()
    assert len(cache.entries()) == {"weighty": 1, "pocket": 3}[model]
