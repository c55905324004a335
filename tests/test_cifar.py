"""Proves that CIFAR-10 comes in unchanged from its authors' archive, from that unpacked and from the strips, and that a
file which is not what it should be is one clear error. Whole files are made of the strips where there are any, and the
hashes of their content are the published ones."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import cifar
from training.data import load
from training.errors import DataError
from training.published import CIFAR10, PUBLISHED

NAMES = "airplane automobile bird cat deer dog frog horse ship truck"


@pytest.fixture(scope="module")
def records(mnist_folder: Path) -> bytes:
    """The official file of the test set: records of a label and then red, green and blue."""
    found = load("cifar10", "test", mnist_folder)
    return np.concatenate([found.labels[:, None], found.images.reshape(10000, 3072)], axis=1).tobytes()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def published_as(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    """Let a file be the one that was published: the real one is not here."""
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "cifar10", dataclasses.replace(CIFAR10, archive_md5=md5))


def one_line(folder: Path, *parts: object) -> None:
    with pytest.raises(DataError) as caught:
        load("cifar10", "test", folder)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value)


@pytest.mark.slow
def test_it_is_whole_and_in_its_shape(mnist_folder: Path) -> None:
    """Counts, first labels and channel means are those that its users know."""
    train, test = (load("cifar10", split, mnist_folder) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert (train.labels[:5].tolist(), test.labels[:5].tolist()) == ([6, 9, 9, 4, 1], [3, 8, 8, 0, 6])
    means = train.images.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.49139968, 0.48215841, 0.44653091], rtol=0, atol=5e-9)
    assert train.class_names == tuple(NAMES.split())


@pytest.mark.parametrize("inner", ["cifar-10-batches-bin", "", "cifar10", "cifar10/cifar-10-batches-bin"])
def test_from_unpacked_files(mnist_folder: Path, records: bytes, tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    (tmp_path / inner / "test_batch.bin").write_bytes(records)
    found, strips = load("cifar10", "test", tmp_path), load("cifar10", "test", mnist_folder)
    np.testing.assert_array_equal(found.images, strips.images)
    np.testing.assert_array_equal(found.labels, strips.labels)
    assert found.sha256 == strips.sha256


@pytest.mark.slow
def test_from_the_archive(records: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"batches.meta.txt": NAMES.encode(), "test_batch.bin": records}
    path = tar(tmp_path / cifar.ARCHIVE, {f"{cifar.FOLDER}/{name}": content for name, content in members.items()})
    published_as(monkeypatch, path)
    found = load("cifar10", "test", tmp_path)
    assert found.images.reshape(10000, 3072).tobytes()[:3072] == records[1:3073]
    assert len(found.labels) == 10000


def test_an_archive_that_was_not_published_is_not_unpacked(tmp_path: Path) -> None:
    path = tar(tmp_path / cifar.ARCHIVE, {f"{cifar.FOLDER}/test_batch.bin": b"\0" * 10})
    one_line(tmp_path, path, "is not the published CIFAR-10 (its MD5 differs); delete it and fetch it again")


@pytest.mark.parametrize("content", [b"no archive", b""], ids=["other", "empty"])
def test_an_archive_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / cifar.ARCHIVE
    path.write_bytes(content)
    published_as(monkeypatch, path)
    one_line(tmp_path, path, "is truncated or damaged")


def test_an_archive_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published_as(monkeypatch, tar(tmp_path / cifar.ARCHIVE, {"../test_batch.bin": b"x"}))
    one_line(tmp_path, "is truncated or damaged ('test_batch.bin')")
    assert not (tmp_path.parent / "test_batch.bin").exists()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (cifar.BATCH_BYTES - 1, "holds 30729999 of 30730000 bytes"),
        (cifar.BATCH_BYTES + 9, "holds more of 30730000 bytes"),
        (cifar.BATCH_BYTES, "x_test is not the published CIFAR-10 (its SHA-256 differs)"),
    ],
    ids=["truncated", "too-long", "altered"],
)
def test_another_file_in_its_place(tmp_path: Path, size: int, message: str) -> None:
    (tmp_path / "test_batch.bin").write_bytes(bytes(size))
    one_line(tmp_path, tmp_path, message)


def test_a_folder_without_it(tmp_path: Path) -> None:
    one_line(
        tmp_path, tmp_path, "holds neither cifar-10-batches-bin, cifar-10-binary.tar.gz nor cifar10.npz", "(170 MB)"
    )


# The strips.


def webp(width: int = 32, height: int = 3200, colour: tuple[int, ...] = (1, 2, 3)) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", (width, height), colour).save(encoded, "WEBP", lossless=True)
    return encoded.getvalue()


def claiming(side: int) -> bytes:
    """A picture whose header says that it is so large: 14 bits each for width and height less 1 (RFC 9649, 3.3)."""
    small = webp(16, 16)
    at = small.index(b"VP8L") + 9
    sizes = (side - 1) | (side - 1) << 14
    return small[:at] + sizes.to_bytes(4, "little") + small[at + 4 :]


def strips(path: Path, strip: bytes, change: Callable[[np.ndarray], None] | None = None) -> None:
    """An ``.npz`` whose hundred strips are all the same."""
    offsets = len(strip) * np.arange(101)
    if change:
        change(offsets)
    content = np.frombuffer(strip * 100, np.uint8)
    np.savez(path, webp_test=content, offsets_test=offsets, y_test=np.zeros(10000, np.uint8))


def test_strips_of_other_pixels(tmp_path: Path) -> None:
    strips(tmp_path / "cifar10.npz", webp())
    one_line(tmp_path, "cifar10.npz: x_test is not the published CIFAR-10")


def png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (32, 3200)).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.mark.parametrize(
    ("strip", "message"),
    [
        (webp(16, 16), "a strip is RGB of (16, 16); expected RGB of (32, 3200)"),
        (claiming(9000), "a strip is RGB of (9000, 9000)"),
        (claiming(16000), "a strip of images is no WebP picture (Image size"),
        (webp(colour=(1, 2, 3, 4)), "a strip is RGBA of (32, 3200)"),
        (png(), "a strip of images is no WebP picture"),
        (webp()[:40], "a strip of images is no WebP picture"),
        (b"", "a strip of images is no WebP picture"),
    ],
    ids=["small", "large", "huge", "transparent", "png", "truncated", "empty"],
)
def test_strips_that_are_no_such_pictures(tmp_path: Path, strip: bytes, message: str) -> None:
    strips(tmp_path / "cifar10.npz", strip)
    one_line(tmp_path, "cifar10.npz", message)


def backwards(offsets: np.ndarray) -> None:
    offsets[3] = offsets[2] - 1


def beyond(offsets: np.ndarray) -> None:
    offsets[-1] += 1


def before(offsets: np.ndarray) -> None:
    offsets[0] = -1


@pytest.mark.parametrize("change", [backwards, beyond, before])
def test_offsets_that_do_not_cut(tmp_path: Path, change: Callable[[np.ndarray], None]) -> None:
    strips(tmp_path / "cifar10.npz", webp(), change)
    one_line(tmp_path, "cifar10.npz: offsets_test does not cut webp_test apart")


def test_an_npz_with_more_than_pictures_take(tmp_path: Path) -> None:
    zeros = np.zeros(10000 * 3072 + 1, np.uint8)
    np.savez_compressed(
        tmp_path / "cifar10.npz", webp_test=zeros, offsets_test=np.zeros(101, int), y_test=zeros[:10000]
    )
    one_line(tmp_path, "webp_test is of 30720001 bytes; expected at most 30720000")
