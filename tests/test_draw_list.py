"""Proves that a list becomes a folder with the pictures that its prompts give alone, whatever the batch size; that a
list which was stopped, which failed in parts or whose disk was full goes on where it was; and that nobody's file is
replaced unasked."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundle
import tiny_text_bundle
from PIL import Image

from runtime import load
from runtime.draw_list import Report, draw_list
from runtime.errors import PromptWarning, RequestError
from runtime.image import METADATA_KEY
from runtime.picture_index import Index, locked
from runtime.pipeline import Pipeline
from runtime.prompt_list import read_prompt_list
from runtime.result import Result

PROMPTS = """\
{"prompt": "a red circle", "seed": 40, "count": 3}
{"prompt": "Blue/Square: Ünïcode?", "negative": "red"}
{"prompt": "円", "size": "8x10", "steps": 4, "guidance_scale": 1.5}
{"prompt": "green"}
"""
NAMES = ["00001-a-red-circle", "00002-a-red-circle", "00003-a-red-circle", "00004-blue-square-unicode", "00005"]
NAMES = [f"{name}.png" for name in [*NAMES, "00006-green"]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    tiny_bundle.write(folder)
    tiny_text_bundle.write(folder)
    return folder


@pytest.fixture
def text(bundles: Path) -> Pipeline:
    return load(bundles / "tiny-text", "cpu")


@pytest.fixture
def classes(bundles: Path) -> Pipeline:
    return load(bundles / "tiny", "cpu")


def run(pipeline: Pipeline, folder: Path, lines: str = PROMPTS, **options: Any) -> Report:
    """Draw a list of JSON lines into ``folder``/out."""
    path = folder / "list.jsonl"
    path.write_text(lines, encoding="utf-8")
    subject = "label" if lines.startswith('{"label"') else "prompt"
    return draw_list(pipeline, read_prompt_list(path, subject), folder / "out", **options)


def index(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """First and other lines of the index."""
    head, *records = map(json.loads, (folder / "out" / "index.jsonl").read_text().splitlines())
    return head, records


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}


def pixels(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / "out" / name) as picture:
        return np.asarray(picture)


class Watched:
    """A pipeline that notes what is drawn, and is interrupted where that is asked for."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, stop_before: int = 10**6) -> None:
        self.seeds: list[int] = []
        whole = pipeline.draw

        def draw(recipe: Any, conditions: Any, seeds: Any, progress: Any = None) -> Result:
            if len(self.seeds) >= stop_before:
                raise KeyboardInterrupt
            self.seeds += seeds
            return whole(recipe, conditions, seeds, progress)

        monkeypatch.setattr(pipeline, "draw", draw)


def test_each_picture_is_the_one_that_its_prompt_gives_alone(text: Pipeline, tmp_path: Path) -> None:
    report = run(text, tmp_path, seed=7, defaults={"clip_skip": 1})
    assert (report.drawn, report.kept, report.failures, report.seed) == (6, 0, (), 7)
    assert sorted(contents(tmp_path)) == [*NAMES, "index.jsonl"]
    alone = [
        *(text("a red circle", seed=seed, clip_skip=1) for seed in (40, 41, 42)),
        text("Blue/Square: Ünïcode?", negative_prompt="red", seed=7 + 3, clip_skip=1),
        text("円", width=8, height=10, num_inference_steps=4, guidance_scale=1.5, seed=7 + 4, clip_skip=1),
        text("green", seed=7 + 5, clip_skip=1),
    ]
    for name, result in zip(NAMES, alone, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path, name), result.images[0], name)


def test_the_index_says_what_was_asked_what_was_used_and_what_came_of_it(text: Pipeline, tmp_path: Path) -> None:
    run(text, tmp_path, seed=7)
    head, records = index(tmp_path)
    assert head == {"format_version": 1, "seed": 7}
    assert [each["number"] for each in records] == [1, 2, 3, 4, 5, 6]
    assert [each["line"] for each in records] == [1, 1, 1, 2, 3, 4]
    assert [each["file"] for each in records] == NAMES
    assert records[4]["asked"] == {"prompt": "円", "size": "8x10", "steps": 4, "guidance_scale": 1.5}
    for record in records:
        data = (tmp_path / "out" / record["file"]).read_bytes()
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
        with Image.open(tmp_path / "out" / record["file"]) as picture:
            assert record["settings"] == json.loads(picture.info[METADATA_KEY])
    used = records[4]["settings"]
    assert (used["width"], used["height"], used["num_inference_steps"], used["seed"]) == (8, 10, 4, 11)


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_files_do_not_depend_on_the_batch_size(text: Pipeline, tmp_path: Path, batch_size: int) -> None:
    run(text, tmp_path, seed=7)
    expected = contents(tmp_path)
    shutil.rmtree(tmp_path / "out")
    run(text, tmp_path, seed=7, defaults={"batch_size": batch_size})
    assert contents(tmp_path) == expected


def test_what_is_made_alike_is_drawn_in_one_batch(
    text: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    whole = text.draw
    monkeypatch.setattr(text, "draw", lambda *request: batches.append(list(request[2])) or whole(*request))
    rows: list[tuple[int, int]] = []
    run(text, tmp_path, seed=7, defaults={"batch_size": 3}, progress=lambda *done: rows.append(done))
    assert batches == [[40, 41, 42], [10], [11], [12]]  # the fourth line's settings are the second's, but it is apart
    assert rows == [(done, 34) for done in range(1, 35)]


def test_classes(classes: Pipeline, tmp_path: Path) -> None:
    lines = '{"label": "owl", "count": 2}\n{"label": 0, "seed": 99}\n{"label": "all"}\n'
    assert run(classes, tmp_path, lines, seed=3).drawn == 6
    expected = [(2, 3), (2, 4), (0, 99), (0, 6), (1, 7), (2, 8)]
    _, records = index(tmp_path)
    words = ["cat", "dog", "owl"]
    assert [each["file"] for each in records] == [f"{k:05}-{words[c]}.png" for k, (c, _) in enumerate(expected, 1)]
    for record, (label, seed) in zip(records, expected, strict=True):
        image = classes(label, seed=seed).images[0, ..., 0]
        np.testing.assert_array_equal(pixels(tmp_path, record["file"]), image)


def test_the_same_call_draws_nothing_twice(text: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(text, tmp_path)
    before = contents(tmp_path)
    watched = Watched(text, monkeypatch)
    report = run(text, tmp_path)  # without a seed: the list's own is in the index
    assert (report.drawn, report.kept, watched.seeds) == (0, 6, [])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("stop_before", [0, 1, 3, 5])
def test_a_list_that_was_stopped_goes_on(
    text: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_before: int, batch_size: int
) -> None:
    with monkeypatch.context() as patch:
        first = Watched(text, patch, stop_before)
        with pytest.raises(KeyboardInterrupt):
            run(text, tmp_path, defaults={"batch_size": batch_size})
    head, records = index(tmp_path)
    assert [each["file"] for each in records] == NAMES[: len(first.seeds)]
    second = Watched(text, monkeypatch)
    report = run(text, tmp_path, defaults={"batch_size": batch_size})
    assert (report.drawn, report.kept) == (6 - len(first.seeds), len(first.seeds))
    assert [*first.seeds, *second.seeds] == [40, 41, 42, *(head["seed"] + k for k in (3, 4, 5))]
    resumed = contents(tmp_path)
    shutil.rmtree(tmp_path / "out")
    run(text, tmp_path, seed=head["seed"])
    assert contents(tmp_path) == resumed


def test_what_a_killed_process_leaves_is_mended(text: Pipeline, tmp_path: Path) -> None:
    """Half a line at the end, a line whose picture was not there yet, and half a picture under its name aside."""
    run(text, tmp_path, seed=7)
    expected = contents(tmp_path)
    file = tmp_path / "out" / "index.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    for name in NAMES[4:]:
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / f".{NAMES[4]}.0123abcd").write_bytes(b"half")
    (tmp_path / "out" / ".index.jsonl.0123abcd").write_bytes(b"half")
    assert run(text, tmp_path).drawn == 2
    assert contents(tmp_path) == expected


def test_lines_may_be_added_at_the_end_and_comments_anywhere(text: Pipeline, tmp_path: Path) -> None:
    run(text, tmp_path, seed=7)
    report = run(text, tmp_path, f'# moved by a line\n{PROMPTS}{{"prompt": "white"}}\n')
    assert (report.drawn, report.kept) == (1, 6)
    assert [each["line"] for each in index(tmp_path)[1]] == [2, 2, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (1, "40", "41", "line 1 has changed since .*00001.*: seed was 40 and is 41"),
        (
            2,
            "Blue/Square: Ünïcode?",
            "Blue!",
            'line 2 has changed since .*00004.*: prompt was "Blue/.*" and is "Blue!"',
        ),
        (3, '"steps": 4', '"steps": 5', "line 3 has changed since .*00005.*: num_inference_steps was 4 and is 5"),
    ],
)
def test_a_line_that_has_changed_is_refused_or_drawn_anew(
    text: Pipeline, tmp_path: Path, line: int, old: str, new: str, message: str
) -> None:
    run(text, tmp_path, seed=7)
    before, changed = contents(tmp_path), PROMPTS.replace(old, new)
    with pytest.raises(RequestError, match=message):
        run(text, tmp_path, changed)
    assert contents(tmp_path) == before
    report = run(text, tmp_path, changed, overwrite=True)
    assert report.drawn == sum(each["line"] == line for each in index(tmp_path)[1])
    anew = contents(tmp_path)
    shutil.rmtree(tmp_path / "out")
    run(text, tmp_path, changed, seed=7)
    assert contents(tmp_path) == anew  # the old picture is gone where its name was another


def test_flags_count_as_part_of_what_is_asked(text: Pipeline, tmp_path: Path) -> None:
    run(text, tmp_path, seed=7)
    with pytest.raises(RequestError, match=r"line 1 has changed since .*: guidance_scale was 3.0 and is 2"):
        run(text, tmp_path, defaults={"guidance_scale": 2})
    with pytest.raises(RequestError, match=r"line 2 has changed since .*: seed was 10 and is 11"):
        run(text, tmp_path, seed=8)
    assert run(text, tmp_path, defaults={"guidance_scale": 3, "batch_size": 5}).kept == 6


def test_files_that_are_not_the_lists_are_kept_unless_overwrite(text: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAMES[3]).write_text("precious")
    (tmp_path / "out" / "notes.txt").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(RequestError, match=r"00004-.* exists, and the index does not know it; add --overwrite"):
        run(text, tmp_path, seed=7)
    assert contents(tmp_path) == before
    assert run(text, tmp_path, seed=7, overwrite=True).drawn == 6
    assert (tmp_path / "out" / "notes.txt").read_text() == "precious"
    (tmp_path / "out" / NAMES[3]).write_text("retouched")
    with pytest.raises(RequestError, match=r"00004-.* has been altered since it was drawn; add --overwrite"):
        run(text, tmp_path)
    report = run(text, tmp_path, overwrite=True)
    assert (report.drawn, report.kept) == (1, 5)


@pytest.mark.parametrize("kind", ["tiny-text", "tiny"])
def test_pictures_that_begin_at_others(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each line its own picture, found from the list's folder; and one for all that name none, found as flags are."""
    pipeline = load(bundles / kind, "cpu")
    monkeypatch.chdir(tmp_path)
    for name, colour in (("a.png", 40), ("b.png", 200)):
        Image.new("L", (8, 8), colour).save(name)
    what = '"prompt": "red"' if kind == "tiny-text" else '"label": 1'
    lines = f'{{{what}, "image": "a.png", "strength": 0}}\n{{{what}}}\n{{{what}, "image": "a.png", "count": 2}}\n'
    rows: list[tuple[int, int]] = []
    report = run(
        pipeline,
        tmp_path,
        lines,
        seed=7,
        defaults={"image": Path("b.png"), "strength": 0.5, "batch_size": 2},
        progress=lambda *done: rows.append(done),
    )
    assert report.drawn == 4
    assert rows == [(done, 10) for done in range(1, 11)]
    subject: Any = "red" if kind == "tiny-text" else 1
    begun = [("a.png", 0, 7), ("b.png", 0.5, 8), ("a.png", 0.5, 9), ("a.png", 0.5, 10)]
    _, records = index(tmp_path)
    for record, (image, strength, seed) in zip(records, begun, strict=True):
        alone = pipeline(subject, image=image, strength=strength, seed=seed)
        np.testing.assert_array_equal(pixels(tmp_path, record["file"]), alone.images[0].squeeze())
        assert record["settings"] == alone.metadata_of(0)
    Image.new("L", (8, 8), 90).save("a.png")
    with pytest.raises(RequestError, match=r"line 1 has changed since .*: image_sha256 was"):
        run(pipeline, tmp_path, lines, defaults={"image": Path("b.png"), "strength": 0.5})
    Path("a.png").unlink()
    with pytest.raises(RequestError, match=r"line 1: the picture .*a\.png does not exist"):
        run(pipeline, tmp_path, lines, defaults={"image": Path("b.png")})


def test_a_failure_is_noted_and_the_others_are_drawn(
    text: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance that overflows; the whole batch fails with it, and its other pictures are drawn all the same."""
    lines = '{"prompt": "red"}\n{"prompt": "a", "guidance_scale": 1e60, "count": 2}\n{"prompt": "blue"}\n'
    report = run(text, tmp_path, lines, seed=7, defaults={"batch_size": 4})
    assert (report.drawn, report.kept) == (2, 0)
    assert [(each.number, each.line) for each in report.failures] == [(2, 2), (3, 2)]
    _, records = index(tmp_path)
    assert ["error" in each for each in records] == [False, True, True, False]
    assert "row 1 of 10 is no longer finite" in records[1]["error"]
    assert "file" not in records[1]
    watched = Watched(text, monkeypatch)
    report = run(text, tmp_path, lines, defaults={"batch_size": 4})
    assert len(report.failures) == 2
    assert set(watched.seeds) == {8, 9}  # what failed is tried again, the rest is there


def test_one_picture_of_a_batch_that_fails(text: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for what has the seed 41, nor for a batch that it is in."""
    whole = text.draw

    def draw(recipe: Any, conditions: Any, seeds: Any, progress: Any = None) -> Result:
        if 41 in seeds:
            raise MemoryError
        return whole(recipe, conditions, seeds, progress)

    monkeypatch.setattr(text, "draw", draw)
    report = run(text, tmp_path, seed=7, defaults={"batch_size": 8})
    assert report.drawn == 5
    assert [(each.number, each.error) for each in report.failures] == [
        (2, "there is not enough memory for this; ask for a smaller picture, or a smaller batch")
    ]


def test_a_size_that_memory_does_not_allow_fails_alone(
    text: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.memory_plan.available_bytes", lambda: 2**28)
    monkeypatch.setattr("runtime.memory_plan.held_bytes", lambda: 0)
    report = run(text, tmp_path, '{"prompt": "red", "size": "2048x2048"}\n{"prompt": "red", "seed": 1}\n')
    assert report.drawn == 1
    assert "--ignore-memory" in str(report.failures[0].error)


def test_what_is_cut_off_is_said_with_its_line_and_once(text: Pipeline, tmp_path: Path) -> None:
    with pytest.warns(PromptWarning) as said:
        run(text, tmp_path, f'{{"prompt": "red"}}\n{{"prompt": "{"red " * 192}a square", "count": 2}}\n')
    (message,) = (str(each.message).removeprefix(str(tmp_path)) for each in said)
    assert message.startswith(
        "/list.jsonl, line 2: the prompt has 194 tokens in 33 chunks, of which 192 in 32 are read"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "red", "width": 9}', "width is 9; tiny-text draws multiples of 2: 8"),
        ('{"prompt": "red", "steps": 0}', "num_inference_steps is 0"),
        ('{"prompt": "red", "steps": 101}', "num_inference_steps 101 exceeds num_train_timesteps 100"),
        ('{"prompt": "red", "seed": -1}', "seed -1 is out of range"),
        ('{"prompt": "red", "seed": 18446744073709551616}', "is out of range"),
        ('{"prompt": "red", "count": 0}', "count is 0; it must be a whole number from 1 to 99999"),
        ('{"prompt": "red", "count": 99999}', "the list asks for more than 99999 pictures; divide it"),
        ('{"prompt": "red", "clip_skip": 9}', "clip_skip is 9"),
        ('{"prompt": "red", "rng": "dice"}', "rng 'dice' is unknown"),
        ('{"prompt": "red", "sampler": "eulerr"}', "sampler 'eulerr' is unknown"),
        ('{"prompt": "red", "sampler": "ddpm", "eta": 1}', "sampler ddpm has no option 'eta'"),
        ('{"prompt": "red", "eta": []}', "eta is []"),
        ('{"prompt": "red", "eta": "two\\nlines"}', r"eta is two\nlines"),
        ('{"prompt": "red", "strength": 0.5}', "strength 0.5 says how much of an image changes"),
        ('{"prompt": "red", "image": "list.jsonl"}', "list.jsonl cannot be read as a picture"),
        ('{"prompt": "red", "image": "."}', " is no file"),
        ('{"prompt": "red", "label": 1}', "tiny-text draws what a prompt says; leave out label"),
        ('{"prompt": "\\ud800"}', "the prompt is not text: character 1"),
    ],
)
def test_an_entry_that_does_not_suit_the_model_costs_nothing(
    text: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as raised:
        run(text, tmp_path, f'{{"prompt": "good"}}\n{line}\n')
    assert str(raised.value).startswith(f"{tmp_path / 'list.jsonl'}, line 2: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": 3}', "label '3' is none of 0 to 2 (cat, dog, owl) or all"),
        ('{"label": -1}', "label '-1' is none of 0 to 2"),
        ('{"label": "horse"}', "label 'horse' is none of 0 to 2"),
        ('{"label": 1, "prompt": "red"}', "tiny draws classes and takes no text; leave out prompt"),
        ('{"label": 1, "negative": "red"}', "tiny draws classes and takes no text; leave out negative_prompt"),
        ('{"label": 1, "size": "9x8"}', "tiny draws 8x8 pixels only, not 9x8"),
    ],
)
def test_an_entry_that_does_not_suit_a_model_of_classes(
    classes: Pipeline, tmp_path: Path, line: str, message: str
) -> None:
    with pytest.raises(RequestError, match=r"list.jsonl, line 2: ") as raised:
        run(classes, tmp_path, f'{{"label": 0}}\n{line}\n')
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


RECORD = '{"number": 1, "line": 1, "asked": {}, "settings": {}, "file": "%s", "sha256": ""}\n'
HEAD = '{"format_version": 1, "seed": 7}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("hello\n", "is not an index of pictures, or damaged"),
        ("\n", "is not an index of pictures, or damaged"),
        ("[1]\n", "line 1 must be an object, not list"),
        ('{"format_version": 2, "seed": 7}\n', "format_version is 2"),
        ('{"format_version": 1, "seed": -7}\n', "seed is -7"),
        (HEAD + "{}\n", "line 2 lacks the key 'number'"),
        (HEAD + "{\n" + RECORD % "00001.png", "is not an index of pictures, or damaged"),
        (HEAD + RECORD % "../00001.png", "file is '../00001.png', which is no name of a picture here"),
        (HEAD + RECORD % "/etc/passwd", "which is no name of a picture here"),
        ("[" * 100_000 + "\n", "is not an index of pictures, or damaged"),
    ],
)
def test_an_index_that_is_not_ours_is_left_alone(text: Pipeline, tmp_path: Path, data: str, message: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.jsonl").write_text(data)
    with pytest.raises(RequestError) as raised:
        run(text, tmp_path, overwrite=True)
    assert message in str(raised.value)
    assert str(raised.value).endswith("; choose another folder")
    assert contents(tmp_path) == {"index.jsonl": data.encode()}


def test_two_runs_do_not_draw_into_one_folder(text: Pipeline, tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(RequestError, match="another process is drawing into"):
        run(text, tmp_path)
    assert run(text, tmp_path).drawn == 6


def test_a_full_disk_loses_nothing_and_the_list_goes_on(text: Pipeline, small_disk: Path) -> None:
    """Room for some of the pictures; those are whole, the index knows them all, and more room is used."""
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(free - 40_000))
    with pytest.raises(RequestError, match=r"cannot be written \(No space left on device\)"):
        run(text, small_disk, '{"prompt": "red", "count": 30}\n', seed=7)
    _, records = index(small_disk)
    files = {each["file"] for each in records}
    assert 0 < len(files) < 30
    assert files == contents(small_disk).keys() - {"index.jsonl"}
    ballast.unlink()
    assert run(text, small_disk, '{"prompt": "red", "count": 30}\n').kept == len(files)
    for record in index(small_disk)[1]:
        assert hashlib.sha256((small_disk / "out" / record["file"]).read_bytes()).hexdigest() == record["sha256"]


def test_an_index_is_read_as_it_was_written(tmp_path: Path, text: Pipeline) -> None:
    from runtime.picture_index import read_index

    run(text, tmp_path, seed=7)
    found = read_index(tmp_path / "out", seed=0)
    assert isinstance(found, Index)
    before = contents(tmp_path)
    found.save()
    assert contents(tmp_path) == before
