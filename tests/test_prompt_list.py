"""Proves what is read of a list of prompts: its lines with their numbers, and one clear line, which names the broken
one, for whatever else a file may hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.plan_arguments import SAMPLER_OPTIONS
from runtime.prompt_list import KINDS, MAX_LIST_BYTES, Entry, read_prompt_list
from training.stable_diffusion.pocket.captions import known_words


def read(folder: Path, data: bytes | str, name: str = "list.jsonl", subject: str = "prompt") -> list[Entry]:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_prompt_list(path, subject)


def test_plain_lines_keep_the_numbers_that_an_editor_shows(tmp_path: Path) -> None:
    """U+2028 and form feeds end a line for Python's splitlines, and in no editor."""
    data = "\ufeffa red circle\r\n\r\n# not this\n  blue\u2028square \n\t# nor this\na \x0c{cat|dog}, #1"
    entries = read(tmp_path, data, "list.txt")
    assert [(each.line, each.values) for each in entries] == [
        (1, {"prompt": "a red circle"}),
        (4, {"prompt": "blue\u2028square"}),
        (6, {"prompt": "a \x0c{cat|dog}, #1"}),
    ]


def test_plain_lines_of_a_model_of_classes_are_labels(tmp_path: Path) -> None:
    assert [each.values for each in read(tmp_path, "7\nowl\n", "list", "label")] == [{"label": "7"}, {"label": "owl"}]


def test_a_json_line_says_what_a_pipeline_takes_by_its_names_or_the_flags(tmp_path: Path) -> None:
    values = {
        "prompt": "red",
        "negative_prompt": "blue",
        "count": 2,
        "seed": 2**64 - 1,
        "width": 16,
        "height": 8,
        "sampler": "DPM++ 2M",
        "num_inference_steps": 5,
        "guidance_scale": 7,
        "clip_skip": 1,
        "rng": "torch",
        "sigma_spacing": "karras",
        "guidance_interval": [0.2, 4],
        "rescale_betas_zero_snr": True,
    }
    flags = {"negative_prompt": "negative", "num_inference_steps": "steps"}
    asked = {flags.get(name, name): value for name, value in values.items() if name not in ("width", "height")}
    asked["size"] = "16x8"
    first, second = read(tmp_path, f"# a list\n{json.dumps(values)}\n\n  {json.dumps(asked)} \n")
    assert first == Entry(2, f"{tmp_path / 'list.jsonl'}, line 2", values, values)
    assert second.line == 4
    assert second.asked == asked
    assert second.values == values


def test_the_documentation_names_every_key() -> None:
    page = (Path(__file__).parents[1] / "docs" / "prompts.md").read_text("utf-8")
    assert [key for key in sorted(KINDS.keys() - SAMPLER_OPTIONS) if f"`{key}`" not in page] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a red circle", "line 2 is not a JSON object (Expecting value: line 1 column 1"),
        ('{"prompt": "red"', "line 2 is not a JSON object (Expecting ',' delimiter"),
        ('{"prompt": "red"} {"prompt": "blue"}', "line 2 is not a JSON object (Extra data"),
        ('["red"]', "line 2 must be an object, not list"),
        ('"red"', "line 2 must be an object, not str"),
        ("{}", "line 2 lacks the key 'prompt'"),
        ('{"seed": 1}', "line 2 lacks the key 'prompt'"),
        ('{"prompt": "red", "colour": 1, "style": 2}', "line 2 has unknown keys: colour, style"),
        ('{"prompt": "red", "two\\nlines": 1}', r"line 2 has unknown keys: two\nlines"),
        ('{"prompt": "red", "seed": 1, "seed": 2}', "line 2 is not a JSON object (a key is given twice)"),
        ('{"prompt": 7}', "line 2: prompt must be str, not int"),
        ('{"prompt": null}', "line 2: prompt must be str, not NoneType"),
        ('{"prompt": "red", "negative": ["blue"]}', "line 2: negative must be str, not list"),
        ('{"prompt": "red", "seed": "7"}', "line 2: seed must be int, not str"),
        ('{"prompt": "red", "seed": 1.0}', "line 2: seed must be int, not float"),
        ('{"prompt": "red", "seed": true}', "line 2: seed must be int, not bool"),
        ('{"prompt": "red", "count": false}', "line 2: count must be int, not bool"),
        ('{"prompt": "red", "steps": "many"}', "line 2: steps must be int, not str"),
        ('{"prompt": "red", "guidance_scale": "7"}', "line 2: guidance_scale must be int or float, not str"),
        ('{"prompt": "red", "guidance_scale": NaN}', "line 2 is not a JSON object (NaN is no number of JSON)"),
        ('{"prompt": "red", "seed": ' + "9" * 5000 + "}", "line 2 is not a JSON object (Exceeds the limit"),
        ("[" * 100_000, "line 2 is not a JSON object ("),
        ('{"prompt": "red", "size": "512"}', "line 2: size '512' must be WIDTHxHEIGHT in pixels"),
        ('{"prompt": "red", "size": 512}', "line 2: size must be str, not int"),
        ('{"prompt": "red", "size": "8x8", "height": 8}', "line 2 gives size and height, which are the same"),
        ('{"prompt": "red", "steps": 2, "num_inference_steps": 2}', "line 2 gives steps and num_inference_steps"),
        ('{"prompt": "red", "negative": "", "negative_prompt": ""}', "line 2 gives negative and negative_prompt"),
        (b'{"prompt": "caf\xe9"}', "line 2 is not UTF-8; save the list as UTF-8"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: str | bytes, message: str) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(RequestError) as raised:
        read(tmp_path, b'{"prompt": "good"}\n' + data + b'\n{"prompt": "good"}\n')
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("list.txt", b"", "has no line that says what to draw; give a prompt on each"),
        ("list.jsonl", b"\n# nothing\n \n", "has no line that says what to draw"),
        ("list.json", b'[{"prompt": "red"}]', "is named like one JSON value; name it .jsonl"),
        ("list.txt", "red\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("list.txt", b"a\n" * (MAX_LIST_BYTES // 2) + b"b", "is too large; a list has at most 16777216 bytes"),
    ],
)
def test_a_file_that_is_no_list(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        read(tmp_path, data, name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["missing.txt", ".", "x" * 300, "nul\0"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"the list .* cannot be read \(.*\); with the package comes paper"):
        read_prompt_list(tmp_path / name, "prompt")


def test_the_papers_prompts_come_with_the_package_unless_a_file_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = read_prompt_list(Path("paper"), "prompt")
    assert first.values == {"prompt": "Spiderman sliding between buildings"}
    assert [each.values["prompt"] for each in others] == ["Iron Man", "Black Widow"]
    Path("paper").write_text("mine")
    assert [each.values for each in read_prompt_list(Path("paper"), "prompt")] == [{"prompt": "mine"}]


def test_what_make_demo_draws_is_in_the_words_of_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = [each.values["prompt"] for each in read_prompt_list(Path("pocket"), "prompt")]
    assert len(prompts) == 24
    assert set(re.findall(r"[\w-]+", " ".join(prompts))) <= set(known_words())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["prompt", "negative", "label", "seed", "size", "width", "count", "steps", "eta", "x\ny"])
LINES = st.binary(max_size=40) | st.dictionaries(KEYS, JSON).map(lambda value: json.dumps(value).encode())


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES, max_size=4), st.sampled_from(["list.txt", "list.jsonl"]))
def test_any_bytes_are_a_list_or_one_line_of_complaint(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], name: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "random-lists"
    folder.mkdir(exist_ok=True)
    complaint = ""
    entries = []
    try:
        entries = read(folder, b"\n".join(lines), name)
    except RequestError as error:
        complaint = str(error)
    assert bool(entries) != bool(complaint)
    assert "\n" not in complaint
    assert all(isinstance(each.values["prompt"], str) for each in entries)
