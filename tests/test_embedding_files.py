"""Proves that files of learned words give the numbers that torch reads from them, in every layout in which people pass
them on, and that a file made to harm is one clear line: nothing of it is run, and no size is believed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime.embeddings.file import PICTURE_KEY, read_embedding
from runtime.errors import RequestError

VECTORS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def web_interface(tensor: Tensor) -> dict[str, Any]:
    """As the web interfaces write a ``.pt``."""
    facts = {"name": "inner", "step": 500, "sd_checkpoint": None, "sd_checkpoint_name": "model", "loss": 0.25}
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, **facts}


def first_program(tensor: Tensor) -> dict[str, Any]:
    """As the program of Gal et al. (2022) writes it: a torch module, and the token as a tensor."""
    held = nn.ParameterDict({"*": nn.Parameter(tensor)})
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": held}


CONTENTS: dict[str, Callable[[Tensor], Any]] = {
    "diffusers": lambda tensor: {"<cat-toy>": tensor},
    "web interface": web_interface,
    "its parameter": lambda tensor: web_interface(nn.Parameter(tensor)),
    "first program": first_program,
    "kohya": lambda tensor: {"emb_params": tensor},
    "a tensor": lambda tensor: tensor,
    "ordered": lambda tensor: OrderedDict({"<cat-toy>": tensor}),
}
TENSORS = {
    "float32": VECTORS,
    "float16": VECTORS.half(),
    "bfloat16": VECTORS.bfloat16(),
    "float64": VECTORS.double(),
    "one vector": VECTORS[1],
    "turned": VECTORS.T.contiguous().T,
    "every other": torch.cat([VECTORS, VECTORS])[1::2, :4],
}


@pytest.mark.parametrize("before", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_numbers_are_those_that_torch_saved(
    tmp_path: Path, tensor: Tensor, content: Callable[[Tensor], Any], before: bool
) -> None:
    path = tmp_path / "my word.pt"
    torch.save(content(tensor), path, _use_new_zipfile_serialization=not before)
    found = read_embedding(path)
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, np.atleast_2d(tensor.float().numpy()))
    assert found.name == "my word"
    assert found.token in (None, "<cat-toy>")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_of_pickle(tmp_path: Path, protocol: int) -> None:
    torch.save(first_program(VECTORS), tmp_path / "x.bin", pickle_protocol=protocol)
    np.testing.assert_array_equal(read_embedding(tmp_path / "x.bin").vectors, VECTORS.numpy())


@pytest.mark.parametrize(
    ("key", "token"), [("<cat-toy>", "<cat-toy>"), ("emb_params", None), ("clip_l", None), ("*", None)]
)
@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_safetensors(tmp_path: Path, tensor: Tensor, key: str, token: str | None) -> None:
    save_file({key: tensor.contiguous()}, tmp_path / "x.safetensors")
    found = read_embedding(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(found.vectors, np.atleast_2d(tensor.float().numpy()))
    assert (found.name, found.token) == ("x", token)


def write_picture(path: Path, text: str | None) -> Path:
    info = PngInfo()
    if text is not None:
        info.add_text(PICTURE_KEY, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def as_text(content: dict[str, Any]) -> str:
    """JSON in base64, with tensors as lists under a name of their own, as the web interfaces write it."""

    def lists(tensor: Any) -> Any:
        return {"TORCHTENSOR": tensor.tolist()}

    return base64.b64encode(json.dumps(content, default=lists).encode()).decode()


def test_pictures(tmp_path: Path) -> None:
    found = read_embedding(write_picture(tmp_path / "x.png", as_text(web_interface(VECTORS))))
    np.testing.assert_array_equal(found.vectors, VECTORS.numpy())
    assert (found.name, found.token) == ("x", "inner")


@pytest.mark.parametrize("key", ["a\nb", "\ud83d", "x" * 10**6, "\0"])
def test_names_are_one_line_of_text(tmp_path: Path, key: str) -> None:
    torch.save({key: VECTORS}, tmp_path / "x.bin")
    token = read_embedding(tmp_path / "x.bin").token or ""
    assert token.encode() is not None
    assert "\n" not in token
    torch.save({key: VECTORS, "y": VECTORS}, tmp_path / "x.bin")
    assert "it holds 2 tensors" in refused(tmp_path / "x.bin")


def test_a_name_that_is_given_is_the_only_one(tmp_path: Path) -> None:
    torch.save({"<cat-toy>": VECTORS}, tmp_path / "x.bin")
    found = read_embedding(tmp_path / "x.bin", "mine")
    assert (found.name, found.token) == ("mine", None)


def refused(path: Path) -> str:
    with pytest.raises(RequestError) as error:
        read_embedding(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"clip_l": VECTORS, "clip_g": VECTORS}, "learned for Stable Diffusion XL"),
        ({"clip_g": VECTORS}, "learned for Stable Diffusion XL"),
        ({"a": VECTORS, "b": VECTORS}, "holds 2 tensors (a, b)"),
        ({"string_to_param": {"*": VECTORS, "+": VECTORS}}, "does not hold exactly one tensor"),
        ({"string_to_param": VECTORS}, "does not hold exactly one tensor"),
        ({"string_to_param": {"*": "text"}}, "holds no tensor where one belongs"),
        ({}, "holds 0 tensors (it is empty)"),
        ([VECTORS], "it holds list"),
        ({"<x>": torch.zeros(1, 2, 8)}, "holds a tensor of shape (1, 2, 8)"),
        ({"<x>": torch.zeros(())}, "holds a tensor of shape ()"),
        ({"<x>": torch.zeros(0, 8)}, "a tensor is empty"),
        ({"<x>": torch.tensor([1, 2])}, "its numbers are int64"),
        ({"<x>": torch.tensor([1.0, torch.nan])}, "numbers that are not finite"),
        ({"<x>": torch.tensor([1e300], dtype=torch.float64)}, "numbers that are not finite"),
        ({"<x>": nn.Linear(2, 2)}, "asks for 'torch.nn.modules.linear.Linear'"),
        ({"<x>": VECTORS.to_sparse()}, "asks for 'torch._utils._rebuild_sparse_tensor'"),
        ({("a", "b"): VECTORS}, "a key is tuple"),
    ],
)
@pytest.mark.parametrize("before", [False, True], ids=["zip", "before 1.6"])
def test_what_is_no_embedding(tmp_path: Path, content: Any, message: str, before: bool) -> None:
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not before)
    assert message in refused(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no text sd-ti-embedding; one hidden in the pixels is not read"),
        ("no base64!", "is damaged"),
        (base64.b64encode(b"[" * 10**5).decode(), "is damaged"),
        (base64.b64encode(b"[1]").decode(), "it holds list"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": [[1, 2], [3]]}}}), "is damaged"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": "text"}}}), "is damaged"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": [10**400]}}}), "is damaged"),
        (as_text({"string_to_param": {"*": [1, 2]}}), "holds no tensor where one belongs"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": [float("inf")]}}}), "not finite"),
    ],
)
def test_pictures_without_one(tmp_path: Path, text: str | None, message: str) -> None:
    assert message in refused(write_picture(tmp_path / "x.png", text))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ".png", ".webp"])
@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"\x80\x02", b"version https://git-lfs.github.com/spec/v1\n", bytes(1000), b"\xff" * 99],
)
def test_files_of_something_else(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    refused(path)


def test_a_tensor_of_too_many_dimensions(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1] * 80, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "its tensor 'x' has 80 dimensions" in refused(tmp_path / "x.safetensors")


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "x.pt")
    assert "it must be one of .safetensors, .pt, .bin" in refused(tmp_path / "x.ckpt")
    (tmp_path / "y.pt").mkdir()
    assert "is no file" in refused(tmp_path / "y.pt")
    with (tmp_path / "big.pt").open("wb") as stream:
        stream.truncate(2**27)
    assert "an embedding has at most 16777216" in refused(tmp_path / "big.pt")


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class Claimed(pickle.Pickler):
    """Writes what torch's pickles look like, with claims of one's choosing in the place of ``STORAGE``."""

    claim: Any = ("storage", torch.FloatStorage, "0", "cpu", 24)

    def persistent_id(self, value: Any) -> Any:
        return self.claim if value is Claimed else None


def pickled(content: Any, claim: Any = Claimed.claim) -> bytes:
    stream = io.BytesIO()
    writer = Claimed(stream, protocol=2)
    writer.claim = claim
    writer.dump(content)
    return stream.getvalue()


def archive(path: Path, program: bytes, method: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    """An archive as torch writes it, of a program and 24 numbers."""
    with zipfile.ZipFile(path, "w", method) as opened:
        opened.writestr("x/data.pkl", program)
        for name, data in ({"data/0": bytes(96)} | entries).items():
            opened.writestr(f"x/{name}", data)
    return path


def view(offset: Any, size: Any, stride: Any) -> Any:
    return {"<x>": Call(torch._utils._rebuild_tensor_v2, Claimed, offset, size, stride, False, OrderedDict())}


def test_an_honest_claim_is_read(tmp_path: Path) -> None:
    """So that the refusals below are of the claims."""
    assert read_embedding(archive(tmp_path / "x.pt", pickled(view(8, (2, 8), (8, 1))))).vectors.shape == (2, 8)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (9, (2, 8), (8, 1)),
        (0, (4, 8), (8, 1)),
        (0, (2, 8), (17, 1)),
        (-1, (2, 8), (8, 1)),
        (0, (2, 8), (-1, 1)),
        (0, (2, 8), (8,)),
        (0, (10**6, 8), (0, 0)),
        (0, (2**61, 2**61), (0, 0)),
        (0, (10**400,), (0,)),
        (0, (1,) * 99, (1,) * 99),
        (0, (2, True), (1, 1)),
        (0, (1.5,), (1,)),
        ("0", (1,), (1,)),
        (0, [2, 8], (8, 1)),
        (0, None, None),
        (0, ((),), (1,)),
    ],
)
def test_views_beyond_their_storage(tmp_path: Path, offset: Any, size: Any, stride: Any) -> None:
    refused(archive(tmp_path / "x.pt", pickled(view(offset, size, stride))))


def test_one_row_may_have_any_stride(tmp_path: Path) -> None:
    assert read_embedding(archive(tmp_path / "x.pt", pickled(view(8, (1, 8), (2**61, 1))))).vectors.shape == (1, 8)


@pytest.mark.parametrize(
    "claim",
    [
        ("storage", torch.FloatStorage, "0", "cpu", 25),
        ("storage", torch.FloatStorage, "0", "cpu", 23),
        ("storage", torch.DoubleStorage, "0", "cpu", 24),
        ("storage", torch.FloatStorage, "1", "cpu", 24),
        ("storage", torch.FloatStorage, "../../x/data.pkl", "cpu", 24),
        ("storage", torch.FloatStorage, "0", "cpu", -24),
        ("storage", torch.FloatStorage, "0", "cpu", 2**62),
        ("storage", torch.FloatStorage, "0", "cpu", 24, ("view", 0, 1)),
        ("storage", torch.FloatStorage, 0, "cpu", 24),
        ("storage", "float", "0", "cpu", 24),
        ("module", torch.FloatStorage, "0", "cpu", 24),
        ("storage",),
        "text",
        7,
    ],
)
def test_storages_that_are_not_there(tmp_path: Path, claim: Any) -> None:
    refused(archive(tmp_path / "x.pt", pickled(view(0, (2, 8), (8, 1)), claim)))


def test_an_archive_may_not_swell_nor_say_things_twice(tmp_path: Path) -> None:
    honest = pickled(view(0, (2, 8), (8, 1)))
    bomb = archive(tmp_path / "bomb.pt", honest, zipfile.ZIP_DEFLATED, more=bytes(10**6))
    assert "has compressed entries" in refused(bomb)
    assert "not little-endian" in refused(archive(tmp_path / "big.pt", honest, byteorder=b"big"))
    with zipfile.ZipFile(tmp_path / "none.pt", "w") as opened:
        opened.writestr("x/other.pkl", honest)
    assert "is no archive of torch.save" in refused(tmp_path / "none.pt")


PROGRAMS = {
    "a call": pickle.dumps(Call(exec, "raise SystemExit")),
    "an old call": b"cos\nsystem\n(S'touch called'\ntR.",
    "an instance": b"(S'touch called'\nios\nsystem\n.",
    "an extension": b"\x82\x01.",
    "a name made of values": b"\x8c\x02os\x8c\x06system\x93.",
    # Forty pairs, each of the one before twice: a few hundred bytes that would print as terabytes.
    "names that double": b")\x94" + b"".join(b"h%ch%c\x86\x94" % (k, k) for k in range(40)) + b"\x8c\x01x\x93.",
    "nested names": b"(" * 50_000 + b"t" * 50_000 + b"\x8c\x01x\x93.",
    "a deep key": b"}" + b"(" * 50_000 + b"t" * 50_000 + b"Ns.",
    "deep": b"(" * 50_000 + b"l" * 50_000 + b".",
    "deep tuples": b"(" * 40_000 + b"t" * 40_000 + b".",
    "a memo out of reach": b"j\xff\xff\xff\x7f.",
    "a large memo": b"Nr\xff\xff\xff\x7f.",
    "marks": b"(" * 200_000 + b".",
    "nothing": b".",
    "text of any length": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "a dict of itself": b"}q\x00\x8c\x03<x>h\x00s.",
    "a module's setstate": b"ctorch.nn.modules.container\nParameterDict\n)\x81]b.",
    "an attribute of a name": b"ctorch\nFloatStorage\n}b.",
    "a storage that is called": b"ctorch\nFloatStorage\n)R.",
    "pop": b"N0.",
    "a global of a dotted name": b"ctorch\nFloatStorage.mro\n.",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_no_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    refused(archive(tmp_path / "x.pt", program))
    (tmp_path / "y.pt").write_bytes(program)
    refused(tmp_path / "y.pt")
    before = io.BytesIO()
    torch.save({}, before, _use_new_zipfile_serialization=False)
    empty = pickle.dumps({}, 2)
    assert before.getvalue().count(empty) == 1
    (tmp_path / "z.pt").write_bytes(before.getvalue().replace(empty, program))
    refused(tmp_path / "z.pt")
    assert not (tmp_path / "called").exists()


def test_storages_from_before_are_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"<x>": VECTORS}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "is cut short" in refused(path)
    path.write_bytes(data[: -4 * 24 - 8] + (25).to_bytes(8, "little") + data[-4 * 24 :])
    assert "holds 25 numbers, not 24" in refused(path)


def written(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


HONEST = [
    written(web_interface(VECTORS[:1])),
    written(first_program(VECTORS[:1]), _use_new_zipfile_serialization=False),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HONEST), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), st.floats(0, 1))
def test_a_damaged_file_is_refused_or_read(
    tmp_path: Path, data: bytes, changes: list[tuple[float, int]], kept: float
) -> None:
    damaged = bytearray(data)
    for where, value in changes:
        damaged[int(where * (len(data) - 1))] = value
    if kept < 0.2:
        del damaged[int(kept * 5 * len(data)) :]
    path = tmp_path / "x.pt"
    path.write_bytes(damaged)
    with contextlib.suppress(RequestError):
        assert read_embedding(path).vectors.ndim == 2
