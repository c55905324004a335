"""Proves that learned words are found in prompts as people type them, that the text encoder is told their vectors and
nothing else changes, and that a picture says which they were and can be drawn again with them."""

from __future__ import annotations

import json
import os
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text_bundle as tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from runtime import load
from runtime.__main__ import main
from runtime.embeddings import Embedding, Embeddings, Fit
from runtime.errors import PromptWarning, RequestError
from runtime.image import METADATA_KEY, encode_image
from runtime.prompt import COMMA_WITHIN, divided
from runtime.text_to_image import TextToImage

STYLE = np.array([[3, 5], [-2, 7]], np.float32)
TOY = np.array([[11, 13]], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two learned words, my-style and <toy> (in toy_v1), one that fits no tiny model, and a preview."""
    made = tmp_path_factory.mktemp("words")
    save_file({"emb_params": STYLE}, made / "my-style.safetensors")
    save_file({"<toy>": TOY}, made / "toy_v1.safetensors")
    (made / "others").mkdir()
    save_file({"emb_params": np.zeros((1, 768), np.float32)}, made / "others" / "wide.safetensors")
    Image.new("RGB", (8, 8)).save(made / "red.png")
    return made


@pytest.fixture(scope="module")
def pipeline(folder: Path, words: Path) -> TextToImage:
    loaded = load(folder, "cpu", embeddings=[words / "my-style.safetensors", words / "toy_v1.safetensors"])
    assert isinstance(loaded, TextToImage)
    return loaded


def states(pipeline: TextToImage, prompt: str) -> np.ndarray:
    (group,) = pipeline.encode([{"prompt": prompt, "negative_prompt": ""}], 0, guided=False)
    told: np.ndarray = group.conditioning.cond["encoder_hidden_states"][0]
    return told


def rows(*parts: str | np.ndarray) -> np.ndarray:
    """What the tiny text encoder says of one chunk: rows of its table and vectors, between begin and end."""
    table = [tiny.TABLE[tiny.ids(part)[1 : 1 + len(part.split())]] if isinstance(part, str) else part for part in parts]
    inner = np.concatenate(table)
    ends = tiny.TABLE[[tiny.EOS] * (tiny.MAX_LENGTH - 1 - len(inner))]
    return np.concatenate([tiny.TABLE[[tiny.BOS]], inner, ends])


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a my-style circle", ["a", STYLE, "circle"]),
        ("MY-Style", [STYLE]),
        ("a <toy> on toy_v1", ["a", TOY, "on", TOY]),
        ("my-style my-style <toy>", [STYLE, STYLE, TOY]),
        ("<toy> my-style", [TOY, STYLE]),
        ("a circle", ["a circle"]),
    ],
)
def test_a_learned_word_is_its_vectors(pipeline: TextToImage, prompt: str, parts: list[Any]) -> None:
    np.testing.assert_array_equal(states(pipeline, prompt), rows(*parts))


def test_a_weight_is_of_all_vectors(pipeline: TextToImage) -> None:
    plain = rows("a", STYLE, "circle").astype(np.float64)
    weights = np.array([1, 1, 1.5, 1.5, 1, 1, 1, 1])[:, None]
    expected = plain * weights * plain.mean() / (plain * weights).mean()
    np.testing.assert_allclose(states(pipeline, "a (my-style:1.5) circle"), expected, rtol=1e-6)


def test_vectors_stay_in_one_chunk(pipeline: TextToImage) -> None:
    expected = np.concatenate([rows("a red circle on a"), rows(STYLE, "square")])
    np.testing.assert_array_equal(states(pipeline, "a red circle on a my-style square"), expected)


def in_chunks(sizes: Sequence[int], commas: set[int], room: int) -> list[list[int]]:
    """The web interfaces' rule, word by word: where each word of so many tokens goes."""
    chunks: list[list[int]] = [[]]
    for word, size in enumerate(sizes):
        used = sum(sizes[k] for k in chunks[-1])
        if used == room and word not in commas:
            last = max((k for k in chunks[-1] if k in commas), default=None)
            behind = [k for k in chunks[-1] if last is not None and k > last]
            if last is not None and sum(sizes[k] for k in behind) < COMMA_WITHIN:
                chunks[-1] = [k for k in chunks[-1] if k <= last]
                chunks.append(behind)
                used = sum(sizes[k] for k in behind)
        if used + size > room:
            chunks.append([])
        chunks[-1].append(word)
    return chunks


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 1, 1, 2, 5, 9, 30]), max_size=150), st.integers(30, 40))
def test_chunks_are_those_of_the_rule(kinds: list[int], room: int) -> None:
    """A comma (0), a token, or a learned word of so many vectors."""
    comma, first = 1, 100
    tokens, sizes, commas, lengths = [], [], set(), {}
    for word, kind in enumerate(kinds):
        ids = [comma] if kind == 0 else [first + word * 50 + k for k in range(kind)]
        if kind > 1:
            lengths[ids[0]] = kind
        if kind == 0:
            commas.add(word)
        tokens += [(each, 1.0) for each in ids]
        sizes.append(len(ids))
    expected = [sum(sizes[word] for word in chunk) for chunk in in_chunks(sizes, commas, room)]
    assert [len(chunk) for chunk in divided(tokens, room, comma, lengths)] == expected


SYNTAX = [
    "my-style",
    "<toy>",
    "a red",
    "(",
    ")",
    "[",
    "]",
    ":1.2",
    ":",
    "|",
    "BREAK",
    "AND",
    "<x>",
    "embedding:",
    "\\",
    " ",
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.sampled_from(SYNTAX), st.text(max_size=5)), max_size=40).map("".join))
def test_whatever_is_typed_words_stay_whole(pipeline: TextToImage, prompt: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        chunks = pipeline.tokenizer.chunks(prompt)
    known = [row.tolist() for row in (*STYLE, *TOY)]
    for chunk in chunks:
        assert chunk.ids.shape == (1, tiny.MAX_LENGTH)
        learned = [(at, each - tiny.VOCAB_SIZE) for at, each in enumerate(chunk.ids[0]) if each >= tiny.VOCAB_SIZE]
        vectors = [known.index(chunk.extra_embeddings[row].tolist()) for _, row in learned]
        assert [at + 1 for (at, _), k in zip(learned, vectors, strict=True) if k == 0] == [
            at for (at, _), k in zip(learned, vectors, strict=True) if k == 1
        ]


NAMES = ("cat", "cat style", "<cat-toy>", "bad-hands-5", "été", "foo (1)", "<s0>", "<s1>")
FIT = Fit("tiny", 2, 6)


def named() -> Embeddings:
    return Embeddings(FIT, [Embedding(name, STYLE, "0" * 64) for name in NAMES])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", ["a ", "CAT"]),
        ("a CAT, a dog", ["a ", "CAT", ", a dog"]),
        ("cats and concatenate cat2 my_cat", ["cats and concatenate cat2 my_cat"]),
        ("a cat  Style cat", ["a ", "CAT STYLE", " ", "CAT"]),
        ('"<cat-toy>," <CAT-TOY>.', ['"', "<CAT-TOY>", '," ', "<CAT-TOY>", "."]),
        ("two <cat-toy>s", ["two ", "<CAT-TOY>", "s"]),
        ("bad-hands-5,bad-hands-55", ["BAD-HANDS-5", ",bad-hands-55"]),
        ("e\u0301te\u0301 ÉTÉ", ["ÉTÉ", " ", "ÉTÉ"]),
        ("foo (1)", ["FOO (1)"]),
        ("<s0><s1>", ["<S0>", "<S1>"]),
        ("embedding:cat, x", ["CAT", ", x"]),
        ("Embedding: <cat> <cat", ["CAT", " <", "CAT"]),
        ("embedding:<cat-toy> < cat >", ["<CAT-TOY>", " ", "CAT"]),
        ("<cat-toy> <cat-toy>_1 x", ["<CAT-TOY>", " x"]),
        ("cat cat_1 cat_1", ["CAT", " cat_1"]),
        ("<cat-toy> <cat-toy>_2", ["<CAT-TOY>", " <", "CAT", "-toy>_2"]),
        ("", []),
    ],
)
def test_names_in_a_text(text: str, expected: list[str]) -> None:
    """Names in capitals here."""
    assert [part if isinstance(part, str) else part.name.upper() for part in named().split(text)] == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from([*NAMES, "<", ">", "_1", "embedding:", " ", "x"]), st.text(max_size=8))))
def test_no_other_letter_is_lost(parts: list[str]) -> None:
    """Of what remains, everything was there before, in the same order."""
    text = "".join(parts)
    left = [part for part in named().split(text) if isinstance(part, str)]
    position = 0
    whole = unicodedata.normalize("NFC", text)
    for part in left:
        position = whole.index(part, position) + len(part)


def test_a_million_characters_are_no_hang() -> None:
    many = Embeddings(FIT, [Embedding(f"<cat-toy-{k}>", TOY, "") for k in range(300)])
    for text in ("<" * 10**5, "<cat-toy-" * 10**4, "<cat-toy-7> " * 10**4, "cat " * 10**5, "x" * 10**6):
        many.split(text)


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a <dog> circle", ["<dog>"]),
        ("a <toy>_1", ["<toy>_1"]),
        ("embedding:other, red", ["embedding:other"]),
        ("(embedding:other:1.2)", ["embedding:other"]),
        ("<3 a < b > c <|endoftext|> <my-style>", []),
    ],
)
def test_a_word_that_is_not_known_is_said(pipeline: TextToImage, prompt: str, names: list[str]) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipeline.tokenizer.chunks(prompt)
    expected = [f"{name} is read as text: no embedding is called so" for name in names]
    assert [str(each.message) for each in said] == expected


def test_without_any_it_is_said_too(folder: Path) -> None:
    with pytest.warns(PromptWarning, match="<dog> is read as text: no embedding is called so"):
        load(folder, "cpu")("a <dog>", num_inference_steps=1)


def test_a_pipeline_stays_as_it_is_and_shares_its_graphs(folder: Path, words: Path) -> None:
    plain = load(folder, "cpu")
    assert isinstance(plain, TextToImage)
    before = plain("my-style", seed=1).sample
    learned = plain.with_embeddings({"my-style": words / "toy_v1.safetensors"})
    assert learned.networks is plain.networks
    np.testing.assert_array_equal(states(learned, "a my-style"), rows("a", TOY))
    assert (
        plain("my-style", seed=1).sample.tobytes() == before.tobytes() != learned("my-style", seed=1).sample.tobytes()
    )


def test_threads_read_a_folder_together(folder: Path, words: Path) -> None:
    prompts = ["my-style", "toy_v1 red", "a my-style toy_v1", "red"] * 2
    alone = [load(folder, "cpu", embeddings=words)(prompt, seed=3).sample.tobytes() for prompt in prompts]
    shared = load(folder, "cpu", embeddings=words)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda prompt: shared(prompt, seed=3).sample.tobytes(), prompts)) == alone
    assert len(set(alone)) == 4


def test_files_of_a_folder_are_looked_at_when_they_are_named(folder: Path, words: Path) -> None:
    """By their own names only; a picture without an embedding is none, and the word is the model's own."""
    shared = load(folder, "cpu", embeddings=words)
    assert isinstance(shared, TextToImage)
    np.testing.assert_array_equal(states(shared, "a toy_v1 red"), rows("a", TOY, "red"))
    with pytest.raises(RequestError, match="'wide' has vectors of 768 numbers, as those of Stable Diffusion 1 have"):
        shared("a wide circle")


def test_of_files_called_alike_the_best_is_taken(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"no embedding")
    save_file({"emb_params": TOY}, tmp_path / "X.safetensors")
    info = PngInfo()
    info.add_text("sd-ti-embedding", "eyB9")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.preview.png", pnginfo=info)
    os.mkfifo(tmp_path / "a.png")  # nobody will write into it
    shared = load(folder, "cpu", embeddings=tmp_path)
    assert isinstance(shared, TextToImage)
    np.testing.assert_array_equal(states(shared, "x"), rows(TOY))


def test_files_that_diffusers_calls_alike_have_their_tokens(folder: Path, tmp_path: Path) -> None:
    files = []
    for token, vectors in (("<one>", TOY), ("<two>", STYLE)):
        (tmp_path / token).mkdir()
        files.append(tmp_path / token / "learned_embeds.safetensors")
        save_file({token: vectors}, files[-1])
    shared = load(folder, "cpu", embeddings=files)
    assert isinstance(shared, TextToImage)
    np.testing.assert_array_equal(states(shared, "<two> a <one>"), rows(STYLE, "a", TOY))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["my-style", "others/../my-style"], "the name 'my-style' is given to two embeddings"),
        ({"***": "my-style"}, "the name '***' has no letter that could be typed"),
        (["missing"], "missing.safetensors does not exist"),
        (["others/wide"], "it was learned for another model"),
        ([("x", "..")], "which is no file"),
        ([7], "embeddings has int; it must be files, folders, pairs of name and file, or a mapping"),
        (7, "embeddings has NoneType; it must be files"),
        ([("a", "b", "c")], "embeddings has tuple"),
    ],
)
def test_bad_embeddings_are_one_line(folder: Path, words: Path, given: Any, message: str) -> None:
    def path(name: Any) -> Any:
        return words / f"{name}.safetensors" if isinstance(name, str) and name != ".." else name

    if isinstance(given, dict):
        given = {name: path(file) for name, file in given.items()}
    elif isinstance(given, list):
        given = [path(each) for each in given]
    if message == "which is no file":
        given, message = [("x", words)], "is a folder, whose files have names; leave out 'x'"
    with pytest.raises(RequestError) as error:
        load(folder, "cpu", embeddings=given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_more_vectors_than_a_chunk_holds(folder: Path, tmp_path: Path) -> None:
    save_file({"emb_params": np.zeros((7, 2), np.float32)}, tmp_path / "long.safetensors")
    with pytest.raises(RequestError, match="'long' has 7 vectors; tiny-text reads 6"):
        load(folder, "cpu", embeddings=tmp_path / "long.safetensors")


def carried(path: str) -> dict[str, Any]:
    with Image.open(path) as picture:
        made: dict[str, Any] = json.loads(picture.info[METADATA_KEY])
        made["words"] = picture.info["parameters"]
    return made


def test_from_the_command_line_to_a_picture_and_back(
    models: Path, words: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    style, toy = f"style={words / 'my-style.safetensors'}", str(words / "toy_v1.safetensors")
    flags = ["--embedding", style, "--embedding", toy]
    drawn = ["--model", "tiny-text", "a style circle", "--negative", "<toy>", "--seed", "7", "-o", "out.png"]
    assert main([*drawn, *flags]) == 0
    made = carried("out.png")
    assert [(each["name"], each["vectors"]) for each in made["embeddings"]] == [("style", 2), ("toy_v1", 1)]
    hashes = [each["sha256"][:12] for each in made["embeddings"]]
    assert made["words"].endswith(f'TI hashes: "style: {hashes[0]}, toy_v1: {hashes[1]}"')
    capsys.readouterr()
    assert main(["replay", "out.png", *flags]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert "drawn with style (" in refusal(main, "replay", "out.png")
    assert "now it would be with no learned word; give the same files" in refusal(main, "replay", "out.png")
    assert "now it would be with toy_v1" in refusal(main, "replay", "out.png", "--embedding", toy)
    assert "with style" in refusal(main, "replay", "out.png", "--embedding", f"style={toy}", "--embedding", f"b={toy}")


def test_from_a_folder_to_a_list(models: Path, words: Path, refusal: Callable[..., str]) -> None:
    Path("list.txt").write_text("a my-style\nred\n")
    assert main(["--model", "tiny-text", "--prompts", "list.txt", "--embeddings", str(words), "-o", "out"]) == 0
    lines = [json.loads(line) for line in Path("out/index.jsonl").read_text().splitlines()[1:]]
    assert [len(line["settings"].get("embeddings", ())) for line in lines] == [1, 0]
    Path("list.txt").write_text("red\na wide circle\n")
    error = refusal(main, "--model", "tiny-text", "--prompts", "list.txt", "--embeddings", words, "-o", "new")
    assert "line 2: the embedding 'wide' has vectors of 768 numbers" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny-text", "a", "--embedding", "missing.pt"], "missing.pt does not exist"),
        (["--model", "tiny-text", "a", "--embeddings", "missing"], "--embeddings missing is no folder"),
        # No system takes such a name, not even to say that it is not there.
        (["--model", "tiny-text", "a", "--embedding", 300 * "x"], f"{300 * 'x'} is no file of an embedding"),
        (["--model", "tiny-text", "a", "--embedding", f"x={300 * 'x'}"], f"{300 * 'x'} is no file of an embedding"),
        (["--model", "tiny-text", "a", "--embeddings", 300 * "x"], f"--embeddings {300 * 'x'} is no folder"),
        (["--model", "tiny", "--embedding", "FILE"], "draws classes and takes no text; leave out the embeddings"),
    ],
)
def test_bad_flags_are_one_line(
    models: Path, words: Path, refusal: Callable[..., str], arguments: list[str], message: str
) -> None:
    given = [str(words / "my-style.safetensors") if word == "FILE" else word for word in arguments]
    assert message in refusal(main, *given, "-o", "out.png")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([{"name": "x", "sha256": "/etc/passwd", "vectors": 1}], "was drawn with x (/etc/passwd)"),
        ([{"name": "x" * 999, "sha256": "\n", "vectors": 1}], "was drawn with xxx"),
        ([{"name": "x", "sha256": "0", "vectors": 1, "file": "/etc/passwd"}], "has unknown keys: file"),
        ([{"name": "x"}], "lacks the key 'sha256'"),
        ("x", "embeddings must be list"),
    ],
)
def test_what_a_strangers_picture_says_of_them(
    models: Path, refusal: Callable[..., str], told: Any, message: str
) -> None:
    assert main(["--model", "tiny-text", "red", "--seed", "7", "-o", "out.png"]) == 0
    with Image.open("out.png") as picture:
        pixels, made = np.asarray(picture), json.loads(picture.info[METADATA_KEY])
    Path("out.png").write_bytes(encode_image(pixels, ".png", made | {"embeddings": told}))
    assert message in refusal(main, "replay", "out.png")
