"""Proves that data sets come in unchanged from every wrapping, and that every file which is not what it should be is
one clear error: missing, truncated, altered, a bomb, or a carrier of pickled code."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import data
from training.arrays import Expected, read_idx, read_npz
from training.data import DataError, load
from training.published import MNIST, PUBLISHED, IdxFile

NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes as the official files hold it."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def digits(mnist_sample: dict[str, np.ndarray]) -> np.ndarray:
    return mnist_sample["x_test"]


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def one_line(caught: pytest.ExceptionInfo[DataError], *parts: object) -> None:
    """The message is one line that names all of these."""
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# The whole of MNIST, in the four ways it may lie there.


@pytest.fixture(scope="module")
def mnist(mnist_folder: Path) -> dict[str, np.ndarray]:
    loaded = {split: load("mnist", split, mnist_folder) for split in ("train", "test")}
    return {f"{axis}_{split}": getattr(loaded[split], name) for split in loaded for axis, name in
            (("x", "images"), ("y", "labels"))}  # fmt: skip


def test_mnist_is_whole_and_in_its_shape(mnist: dict[str, np.ndarray]) -> None:
    assert {key: array.shape for key, array in mnist.items()} == {
        "x_train": (60000, 1, 28, 28), "y_train": (60000,), "x_test": (10000, 1, 28, 28), "y_test": (10000,),
    }  # fmt: skip
    assert mnist["y_train"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(mnist["y_test"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("inner", ["", "mnist"], ids=["folder", "folder/mnist"])
@pytest.mark.parametrize("ending", [".gz", ""], ids=["gzipped", "unpacked"])
def test_mnist_from_official_files(
    mnist: dict[str, np.ndarray], tmp_path: Path, ending: str, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = functools.partial(gzip.compress, compresslevel=1) if ending else bytes
    for key in ("x_test", "y_test"):
        array = mnist[key].reshape(MNIST.files[key].shape)
        written(tmp_path / inner / f"{NAMES[key]}{ending}", pack(idx(array)))
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    found = load("mnist", "test")
    np.testing.assert_array_equal(found.images, mnist["x_test"])
    np.testing.assert_array_equal(found.labels, mnist["y_test"])
    assert found.num_classes == 10
    content = mnist["x_test"].tobytes() + mnist["y_test"].tobytes()
    assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_data_sets_that_share_file_names_are_told_apart(mnist: dict[str, np.ndarray], tmp_path: Path) -> None:
    """MNIST's files lie in the folder itself, Fashion-MNIST's archive beside them, and then neither is the other."""
    for key in ("x_test", "y_test"):
        written(tmp_path / NAMES[key], idx(mnist[key].reshape(MNIST.files[key].shape)))
    assert len(load("mnist", "test", tmp_path).images) == 10000
    with pytest.raises(DataError, match="x_test is not the published Fashion-MNIST"):
        load("fashion-mnist", "test", tmp_path)
    np.savez_compressed(tmp_path / "fashion_mnist.npz", x_test=np.zeros((9, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"fashion_mnist\.npz: x_test is of shape"):
        load("fashion-mnist", "test", tmp_path)


def test_fashion_mnist_is_whole(mnist_folder: Path) -> None:
    for split, count in (("train", 6000), ("test", 1000)):
        found = load("fashion-mnist", split, mnist_folder)
        assert found.images.shape == (10 * count, 1, 28, 28)
        assert np.bincount(found.labels).tolist() == [count] * 10


def test_one_altered_byte_of_mnist_is_noticed(mnist: dict[str, np.ndarray], tmp_path: Path) -> None:
    images = bytearray(idx(mnist["x_test"][:, 0]))
    images[-1] ^= 1
    file = written(tmp_path / NAMES["x_test"], bytes(images))
    with pytest.raises(DataError) as caught:
        load("mnist", "test", tmp_path)
    one_line(caught, file, "x_test is not the published MNIST", "SHA-256", "fetch it again")


def test_other_content_in_the_right_shape_is_not_mnist(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "mnist.npz", x_test=np.zeros((10000, 28, 28), np.uint8))
    with pytest.raises(DataError) as caught:
        load("mnist", "test", tmp_path)
    one_line(caught, tmp_path / "mnist.npz", "x_test is not the published MNIST")


def test_a_folder_without_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError) as caught:
            load("mnist", "train", folder)
        one_line(caught, folder, "train-images-idx3-ubyte.gz", "mnist.npz", "--data")
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="holds neither"):
        load("mnist", "train")


def test_an_unknown_data_set() -> None:
    with pytest.raises(DataError) as caught:
        load("minst")
    one_line(caught, "data set 'minst' is unknown; choose mnist", ".npz")


# IDX files that are not what they should be.


def test_idx_comes_in_unchanged(digits: np.ndarray, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", idx(digits))
    packed = written(tmp_path / "packed.gz", gzip.compress(idx(digits)))
    for path in (plain, packed):
        np.testing.assert_array_equal(read_idx(path, digits.shape), digits)


def damaged_idx(digits: np.ndarray) -> dict[str, tuple[str, bytes, str]]:
    """Name -> file name, content, and what the message says."""
    whole = idx(digits)
    packed = gzip.compress(whole)
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # of the checksum at the end
    claims_more = idx(digits)[:4] + struct.pack(">3I", 2**31, 28, 28) + digits.tobytes()
    return {
        "truncated": ("x", whole[:-1], f"holds {digits.size - 1} of {digits.size} bytes"),
        "truncated-gzip": ("x.gz", packed[: len(packed) // 2], "truncated or damaged"),
        "without-its-checksum": ("x.gz", packed[:-8], "truncated or damaged"),
        "damaged-gzip": ("x.gz", bytes(flipped), "truncated or damaged"),
        "not-gzip": ("x.gz", whole, "truncated or damaged"),
        "empty": ("x", b"", "is not an IDX file of shape (100, 28, 28)"),
        "too-long": ("x", whole + b"\0", "of 78400 bytes and more"),
        "too-long-gzip": ("x.gz", gzip.compress(whole + b"\0"), "of 78400 bytes and more"),
        "another-shape": ("x", idx(digits[:99]), "is not an IDX file of shape"),
        "signed-bytes": ("x", whole[:2] + b"\x09" + whole[3:], "is not an IDX file"),
        "claims-two-billion-images": ("x", claims_more, "is not an IDX file"),
        "text": ("x", b"<html>404 not found</html>" * 9, "is not an IDX file"),
    }


@pytest.mark.parametrize("kind", damaged_idx(np.zeros((100, 28, 28), np.uint8)))
def test_a_damaged_idx_file(digits: np.ndarray, tmp_path: Path, kind: str) -> None:
    name, content, message = damaged_idx(digits)[kind]
    file = written(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_idx(file, digits.shape)
    one_line(caught, file, message, "delete it and fetch it again")


def test_a_gzip_bomb_is_not_unpacked(digits: np.ndarray, tmp_path: Path) -> None:
    """Behind the digits come 512 MB of zeros and then a broken member, which whoever unpacked them all would find."""
    zeros = gzip.compress(bytes(2**24))
    bomb = gzip.compress(idx(digits)) + 32 * zeros + b"no gzip member"
    file = written(tmp_path / "bomb.gz", bomb)
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        read_idx(file, digits.shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_line(caught, "of 78400 bytes and more")
    assert peak < 4 * 2**20


# .npz files that are not what they should be.


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npz_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(shape: tuple[int, ...], body: bytes, descr: str = "|u1", fortran_order: bool = False) -> bytes:
    """One array with a header that says what it likes."""
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + body


def damaged_npz() -> dict[str, tuple[bytes, str]]:
    """Name -> content, and what the message says."""
    whole = npz(x=np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    huge = (10**6, 10**6, 8)
    return {
        "truncated": (whole[: len(whole) // 2], "truncated or damaged"),
        "altered": (bytes(flipped), "truncated or damaged"),
        "no-zip": (b"x,y\n1,2\n", "truncated or damaged"),
        "empty": (b"", "truncated or damaged"),
        "another-key": (npz(images=np.zeros(3, np.uint8)), "lacks x; it holds images"),
        "another-type": (npz(x=np.zeros((50, 8, 8), np.float32)), "x holds float32; it must be uint8"),
        "another-shape": (npz(x=np.zeros((50, 8, 9), np.uint8)), "x is of shape (50, 8, 9); expected (50, 8, 8)"),
        "claims-more-than-it-holds": (npz_of({"x.npy": npy((50, 8, 8), b"abc")}), "claims the shape (50, 8, 8) and 3"),
        "claims-eight-terabytes": (npz_of({"x.npy": npy(huge, b"abc")}), "x is of shape"),
        "no-array": (npz_of({"x.npy": b"x" * 100}), "truncated or damaged"),
        "no-array-name": (npz_of({"x": b"x" * 100}), "truncated or damaged"),
        "negative-shape": (npz_of({"x.npy": npy((-50, -8, 8), bytes(3200))}), "x is of shape"),
        "code-for-a-header": (npz_of({"x.npy": b"\x93NUMPY\x01\x00\x10\x00__import__('os')"}), "truncated or damaged"),
    }


@pytest.mark.parametrize("kind", damaged_npz())
def test_a_damaged_npz(tmp_path: Path, kind: str) -> None:
    content, message = damaged_npz()[kind]
    file = written(tmp_path / "x.npz", content)
    with pytest.raises(DataError) as caught:
        read_npz(file, {"x": Expected(shape=(50, 8, 8))})
    one_line(caught, file, message)


def test_an_npz_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(DataError) as caught:
            read_npz(path, {"x_train": Expected()})
        one_line(caught, path, "does not exist", "x_train")


class Payload:
    """Pickled, it makes a file when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    target = tmp_path / "was-run"
    np.savez(tmp_path / "own.npz", x_train=np.array([Payload(target)], object), y_train=np.zeros(1, np.uint8))
    with pytest.raises(DataError) as caught:
        load(str(tmp_path / "own.npz"))
    one_line(caught, tmp_path / "own.npz", "x_train holds pickled objects; it must be uint8")
    assert not target.exists()
    with np.load(tmp_path / "own.npz", allow_pickle=True) as archive:
        archive["x_train"]
    assert target.exists()  # the payload is a real one


@pytest.mark.parametrize(("folder", "key"), [("mnist.npz", "mnist"), ("own.npz", "own")])
def test_an_npz_bomb_is_not_unpacked(tmp_path: Path, folder: str, key: str) -> None:
    """MNIST's shape is known; of one's own file only what it claims is, and here it claims far less than it holds."""
    shape = (10**5, 28, 28) if key == "mnist" else (4, 28, 28)
    member = npy(shape, bytes(2**26))
    labels = np.zeros(4, np.uint8)
    content = npz_of({"x_train.npy": member, "y_train.npy": npy((4,), labels.tobytes())})
    del member
    file = written(tmp_path / folder, content)
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        load("mnist", "train", tmp_path) if key == "mnist" else load(str(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_line(caught, file, "x_train", "shape")
    assert peak < 4 * 2**20


# One's own images.


def own(path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    np.savez(path, x_train=images, y_train=labels)
    return str(path)


def test_own_images_are_brought_to_channels_first(tmp_path: Path) -> None:
    grey = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    colour = np.arange(3 * 8 * 8 * 3).astype(np.uint8).reshape(3, 8, 8, 3)
    for images, expected in ((grey, grey[:, None]), (colour, colour.transpose(0, 3, 1, 2)), (
        np.asfortranarray(colour), colour.transpose(0, 3, 1, 2)
    )):  # fmt: skip
        dataset = load(own(tmp_path / "mine.npz", images, np.array([2, 0, 1])))
        np.testing.assert_array_equal(dataset.images, expected)
        assert dataset.labels.dtype == np.uint8
        assert (dataset.name, dataset.num_classes, dataset.labels.tolist()) == ("mine", 3, [2, 0, 1])


def test_the_record_of_own_images_changes_with_any_pixel_or_label(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 2], np.uint8)
    other_pixel = images.copy()
    other_pixel[2, 7, 7] = 1
    variants = [(images, labels), (other_pixel, labels), (images, labels[::-1])]
    assert len({load(own(tmp_path / "x.npz", *variant)).sha256 for variant in variants}) == 3


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((3, 8, 8), [0, 1], "labels (2,)"),
        ((0, 8, 8), [], "images (0, 8, 8)"),
        ((3, 64), [0, 1, 2], "expected (N, H, W) or (N, H, W, C)"),
        ((3, 8, 12), [0, 1, 2], "images of 8x12 with 1 channels; they must be square"),
        ((3, 30, 30), [0, 1, 2], "the side a multiple of 4"),
        ((3, 8, 8, 2), [0, 1, 2], "with 2 channels"),
        ((3, 0, 0), [0, 1, 2], "images of 0x0"),
        ((3, 8, 8), [0, 1, 256], "labels from 0 to 256; they must be 0 to 255"),
        ((3, 8, 8), [0, -1, 2], "labels from -1 to 2"),
        ((3, 8, 8), [0.0, 1.0, 2.5], "y_train holds float64; it must be uint8 or int32 or int64"),
    ],
)
def test_own_images_that_do_not_fit(tmp_path: Path, images: tuple[int, ...], labels: list, message: str) -> None:
    file = own(tmp_path / "x.npz", np.zeros(images, np.uint8), np.array(labels, None if labels else np.uint8))
    with pytest.raises(DataError) as caught:
        load(file)
    one_line(caught, file, message)


# Fetching, from a server on this machine.


def serve_from(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Put another address in the place of MNIST's own."""
    monkeypatch.setitem(PUBLISHED, "mnist", dataclasses.replace(MNIST, url=url))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serves a folder in the place of MNIST's own server, with an empty cache."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        serve_from(monkeypatch, f"http://127.0.0.1:{running.server_port}/")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv(data.DATA_VARIABLE, raising=False)
        yield folder
        running.shutdown()


def test_a_file_is_fetched_once_checked_and_kept(server: Path, digits: np.ndarray) -> None:
    packed = gzip.compress(idx(digits))
    file = IdxFile("digits", digits.shape, hashlib.md5(packed).hexdigest(), "")
    served = written(server / "digits.gz", packed)
    fetched = data.fetch(PUBLISHED["mnist"], file)
    np.testing.assert_array_equal(read_idx(fetched, digits.shape), digits)
    served.unlink()
    assert data.fetch(PUBLISHED["mnist"], file) == fetched


def test_an_altered_file_is_not_taken_from_the_server(server: Path, tmp_path: Path) -> None:
    written(server / "train-images-idx3-ubyte.gz", gzip.compress(b"something else"))
    with pytest.raises(DataError) as caught:
        load("mnist")
    one_line(caught, "could not fetch http://127.0.0.1", "train-images-idx3-ubyte.gz", "--data")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_no_file_on_the_server(server: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("mnist")
    one_line(caught, "could not fetch", "404", data.DATA_VARIABLE)


def test_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve_from(monkeypatch, "http://127.0.0.1:9/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(data.DATA_VARIABLE, raising=False)
    with pytest.raises(DataError) as caught:
        load("mnist")
    one_line(caught, "could not fetch http://127.0.0.1:9/train-images-idx3-ubyte.gz", "--data")
