"""Proves that pictures reach their files whole or not at all, under nobody else's name, and what no format can hold."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime.image
from runtime.errors import RequestError
from runtime.image import (
    AT_ONCE,
    check_size,
    check_writable,
    encode_image,
    grid_size,
    make_grid,
    to_uint8,
    write_file,
)

posix = pytest.mark.skipif(os.name != "posix", reason="the permissions and links are those of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@posix
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_lies_where_it_writes_aside_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Even somebody who foresees the name gains nothing."""
    monkeypatch.setattr("runtime.image.secrets.token_hex", lambda count: "foreseen")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    planted = tmp_path / ".a.png.foreseen"
    if kind == "link":
        planted.symlink_to(victim)
    else:
        planted.write_bytes(b"precious")
    with pytest.raises(RequestError, match=r"a\.png cannot be written \(File exists\)"):
        write_file(tmp_path / "a.png", b"picture")
    assert victim.read_bytes() == planted.read_bytes() == b"precious"
    assert names(tmp_path) == [".a.png.foreseen", "victim"]


def test_the_name_aside_cannot_be_foreseen(tmp_path: Path) -> None:
    assert len({runtime.image.aside_name(tmp_path / "a.png") for _ in range(100)}) == 100


@posix
def test_a_file_has_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a.png", b"picture")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_two_threads_may_write_one_file(tmp_path: Path) -> None:
    contents = [bytes([k]) * 100_000 for k in range(8)]
    failures: list[RequestError] = []

    def write(data: bytes) -> None:
        try:
            for _ in range(5):
                write_file(tmp_path / "a.png", data)
        except RequestError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() in contents


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(RequestError, match=r"a\.png cannot be written"):
        write_file(tmp_path / "a.png", b"picture")
    assert names(tmp_path) == ["a.png"]


@posix
def test_a_link_that_leads_nowhere_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="exists; choose another name or add --overwrite"):
        check_writable(tmp_path / "a.png", overwrite=False)
    check_writable(tmp_path / "a.png", overwrite=True)


@pytest.mark.parametrize(("suffix", "most"), [(".webp", 16383), (".jpg", 65500)])
def test_what_a_format_cannot_hold(suffix: str, most: int) -> None:
    """The bounds are those of the libraries: one pixel less is encoded."""
    line = np.zeros((1, most + 1, 1), np.uint8)
    with pytest.raises(
        RequestError, match=f"{most + 1}x1 pixels is too large for .* at most {most} a side; write .png"
    ):
        encode_image(line, suffix)
    assert encode_image(line[:, 1:], suffix)
    assert encode_image(line, ".png")


def test_what_nobody_could_open_is_no_sheet() -> None:
    check_size(".png", 2**14, 2**14)
    with pytest.raises(RequestError, match=f"{2**14}x{2**14 + 1} pixels is too large; at most {2**28}: write fewer"):
        check_size(".png", 2**14, 2**14 + 1)


def test_numbers_are_rounded_half_to_even_however_many_images_there_are() -> None:
    values = np.array([-2, -1, -1 + 2 / 255, 0, 1, 2], np.float32)  # 0 is 127.5
    assert to_uint8(values[None, None, None])[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    sample = np.random.default_rng(0).uniform(-1.1, 1.1, (2 * AT_ONCE + 3, 2, 3, 4)).astype(np.float32)
    images = to_uint8(sample)
    assert images.shape == (len(sample), 3, 4, 2)
    np.testing.assert_array_equal(images, np.stack([to_uint8(each[None])[0] for each in sample]))


def test_of_many_files_each_is_looked_at(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.png" for k in range(3)]
    check_writable(files, overwrite=False)
    files[2].write_bytes(b"precious")
    with pytest.raises(RequestError, match=r"2\.png exists; choose another name"):
        check_writable(files, overwrite=False)


def test_what_pillow_refuses_is_one_line() -> None:
    with pytest.raises(RequestError, match="the picture cannot be written as JPEG"):
        encode_image(np.zeros((1, 1, 4), np.uint8), ".jpg")


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (5, 2), (6, 3), (2, 4)])
def test_the_size_of_a_sheet_is_known_before(count: int, columns: int) -> None:
    sheet = make_grid(np.zeros((count, 3, 5, 1), np.uint8), columns)
    assert grid_size(count, 5, 3, columns) == (sheet.shape[1], sheet.shape[0])
    assert Image.fromarray(sheet[..., 0]).size == grid_size(count, 5, 3, columns)
