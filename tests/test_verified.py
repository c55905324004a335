"""Proves that a hash is remembered for exactly as long as the file stays what it was, and that the memory is harmless.

Whether a hash comes from memory is seen by putting a wrong one there.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import BundleError
from runtime.verified import CACHE_FILE, CACHE_VARIABLE, MAX_ENTRIES, SETTLED_NS, cache_folder, check_sha256, sha256

CONTENTS = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENTS).hexdigest()
WRONG = "0" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / CACHE_FILE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.data"
    path.write_bytes(CONTENTS)
    settle()
    return path


def settle() -> None:
    time.sleep(2 * SETTLED_NS / 10**9)


def edit(cache: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(cache.read_text())
    change(value)
    cache.write_text(json.dumps(value))


def forge(cache: Path) -> None:
    """Let every remembered hash be wrong."""
    edit(cache, lambda value: [entry.update(sha256=WRONG) for entry in value["files"].values()])


def test_a_hash_is_computed_once(file: Path, cache: Path) -> None:
    assert sha256(file) == DIGEST
    forge(cache)
    assert sha256(file) == WRONG
    assert [path.name for path in cache.parent.iterdir()] == [CACHE_FILE]


def test_the_same_file_by_another_path_is_the_same(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256(file)
    forge(cache)
    monkeypatch.chdir(file.parent)
    assert sha256(Path("weights.data")) == WRONG


def test_a_file_that_may_still_be_written_to_is_not_remembered(file: Path, cache: Path) -> None:
    os.utime(file)
    assert sha256(file) == DIGEST
    assert not cache.exists()


def rewritten(path: Path) -> None:
    """Other contents of the same size, and the old time put back."""
    before = path.stat()
    path.write_bytes(CONTENTS[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    before = path.stat()
    path.with_name("other").write_bytes(CONTENTS[::-1])
    os.utime(path.with_name("other"), ns=(before.st_atime_ns, before.st_mtime_ns))
    path.with_name("other").replace(path)


@pytest.mark.parametrize("change", [rewritten, replaced, lambda path: path.write_bytes(b"shorter"), os.utime])
def test_a_file_that_changed_is_hashed_again(file: Path, cache: Path, change: Callable[[Path], object]) -> None:
    check_sha256(file, DIGEST)
    forge(cache)
    change(file)
    assert sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_altered_files_are_refused_in_one_line(file: Path) -> None:
    check_sha256(file, DIGEST)
    rewritten(file)
    with pytest.raises(BundleError, match="does not have the SHA-256 of the manifest") as error:
        check_sha256(file, DIGEST)
    assert "\n" not in str(error.value)
    with pytest.raises(BundleError, match=r"missing cannot be read \(No such file or directory\)"):
        check_sha256(file.with_name("missing"), DIGEST)


BROKEN = {
    "no JSON": b"{",
    "a list": b"[]",
    "another format": b'{"format": 2, "files": {}}',
    "no files": b'{"format": 1}',
    "files in a list": b'{"format": 1, "files": []}',
    "too deep": b"[" * 10**5,
    "not text": b"\xff\xfe\x00",
    "too large": b" " * 2**20 + b'{"format": 1, "files": {}}',
    "empty": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_cache_is_ignored_and_made_anew(file: Path, cache: Path, name: str) -> None:
    cache.parent.mkdir()
    cache.write_bytes(BROKEN[name])
    assert sha256(file) == DIGEST
    forge(cache)
    assert sha256(file) == WRONG


@pytest.mark.parametrize(
    "entry", [None, 7, {}, {"identity": None}, {"identity": [1], "sha256": WRONG}, {"sha256": WRONG}]
)
def test_a_broken_entry_is_ignored(file: Path, cache: Path, entry: object) -> None:
    sha256(file)
    edit(cache, lambda value: value["files"].update({str(file.resolve()): entry}))
    assert sha256(file) == DIGEST


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX")
def test_a_cache_that_others_may_write_is_ignored(file: Path, cache: Path) -> None:
    sha256(file)
    forge(cache)
    cache.chmod(0o666)
    assert sha256(file) == DIGEST


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a file to someone else")
def test_a_cache_of_someone_else_is_ignored(file: Path, cache: Path) -> None:
    sha256(file)
    forge(cache)
    os.chown(cache, 12345, 12345)
    assert sha256(file) == DIGEST


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX")
def test_a_cache_that_is_no_file_is_ignored(file: Path, cache: Path) -> None:
    cache.parent.mkdir()
    os.mkfifo(cache)
    assert sha256(file) == DIGEST


def test_a_folder_that_cannot_be_written_is_no_error(file: Path, cache: Path) -> None:
    cache.parent.write_bytes(b"a file where the folder should be")
    check_sha256(file, DIGEST)
    check_sha256(file, DIGEST)


def test_the_oldest_entries_go(file: Path, cache: Path) -> None:
    sha256(file)
    edit(cache, lambda value: value["files"].update({f"/{i}": {} for i in range(MAX_ENTRIES)}))
    other = file.with_name("other")
    other.write_bytes(b"other")
    settle()
    sha256(other)
    kept = json.loads(cache.read_text())["files"]
    assert len(kept) == MAX_ENTRIES
    assert str(file.resolve()) not in kept
    assert list(kept)[-1] == str(other.resolve())


def test_many_threads_leave_a_whole_file(tmp_path: Path, cache: Path) -> None:
    paths = [tmp_path / f"{i}.data" for i in range(16)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 1000)
    settle()
    found: dict[Path, str] = {}
    threads = [threading.Thread(target=lambda path=path: found.update({path: sha256(path)})) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert json.loads(cache.read_text())["format"] == 1
    assert [path.name for path in cache.parent.iterdir()] == [CACHE_FILE]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "diffusion-anywhere"
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "Library/Caches/diffusion-anywhere"
