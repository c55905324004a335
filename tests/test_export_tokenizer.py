"""Proves that a bundle gets the tokenizer of its checkpoint: CLIP's as it is shipped, byte for byte, however a folder
writes it down; a folder's own where it is another one; and that it gives the ids of transformers' CLIPTokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from text_samples import BEGIN, CHARACTERS, CONFIG, END, VOCABULARY, write_tokenizer
from transformers import CLIPTokenizer

from export.errors import ExportError
from export.sd15_picture import PROMPTS
from export.tokenizer import PROBES, find_tokenizer
from training.stable_diffusion.config import SD15, TextEncoderConfig
from training.stable_diffusion.tokenizer import TOKENIZER_FILE

CLIP = json.loads(TOKENIZER_FILE.read_bytes())["model"]
SMALL = TextEncoderConfig(vocab_size=len(VOCABULARY), hidden_size=8, num_attention_heads=2)
# The small vocabulary with two words made of letters, so that there is something to merge.
MERGES = ["c a", "ca t</w>", "d o", "do g</w>"]
WORDS = {"ca": 90, "cat</w>": 91, "do": 92, "dog</w>": 93}


def write_folder(folder: Path, vocabulary: dict[str, int], merges: list[str], **settings: object) -> Path:
    """A checkpoint's folder with CLIP's tokenizer in two files, as the first releases have it."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END} | settings)
    )
    return folder


def expected(reference: CLIPTokenizer, prompt: str) -> list[int]:
    ids: list[int] = reference(prompt, padding="max_length", truncation=True, max_length=77).input_ids
    return ids


def test_without_one_of_its_own_a_checkpoint_gets_clips() -> None:
    for checkpoint in (None, Path(__file__).parent):
        found = find_tokenizer(checkpoint, None, SD15.text_encoder)
        assert found.data == TOKENIZER_FILE.read_bytes()
        assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (49406, 49407, 49407)


@pytest.mark.slow
def test_clips_own_in_any_form_is_the_shipped_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "old", CLIP["vocab"], CLIP["merges"])
    reference = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    reference.save_pretrained(tmp_path / "new" / "tokenizer")
    assert not (tmp_path / "new" / "tokenizer" / "merges.txt").exists()
    for checkpoint in (folder, tmp_path / "new"):
        found = find_tokenizer(checkpoint, None, SD15.text_encoder)
        assert found.data == TOKENIZER_FILE.read_bytes()
    for prompt in (*PROBES, *PROMPTS):
        assert found.encode(prompt, 77).tolist() == expected(reference, prompt), prompt


def test_a_folders_own_vocabulary_is_converted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, VOCABULARY | WORDS, MERGES)
    found = find_tokenizer(folder, None, TextEncoderConfig(vocab_size=94))
    assert found.data != TOKENIZER_FILE.read_bytes()
    assert (found.bos_token_id, found.eos_token_id) == (VOCABULARY[BEGIN], VOCABULARY[END])
    reference = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    for prompt in ("", "Cat, dog!", "catalogue  of 12 dogs", "cat " * 80):
        assert found.encode(prompt, 77).tolist() == expected(reference, prompt), prompt
    assert {91, 93} <= set(found.encode("a cat and a dog", 77).tolist())


def test_a_folder_says_what_fills_up(tmp_path: Path) -> None:
    for number, pad in enumerate(("!", {"content": "!", "lstrip": False})):
        folder = write_folder(tmp_path / str(number), VOCABULARY, [], pad_token=pad)
        found = find_tokenizer(folder, None, SMALL)
        assert found.pad_token_id == VOCABULARY["!"]
        assert found.encode("a", 5).tolist()[-2:] == [VOCABULARY["!"]] * 2


def test_a_given_tokenizer_counts_more_than_the_folders(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", CLIP["vocab"], CLIP["merges"])
    found = find_tokenizer(folder, write_tokenizer(tmp_path / "given.json"), CONFIG.text_encoder)
    assert found.encode("ab", 4).tolist() == [VOCABULARY[name] for name in (BEGIN, "a", "b</w>", END)]


def test_truncation_and_padding_of_its_own_do_not_travel(tmp_path: Path) -> None:
    reference = CLIPTokenizer.from_pretrained(write_folder(tmp_path / "old", VOCABULARY, []) / "tokenizer")
    reference.backend_tokenizer.enable_truncation(3)
    reference.backend_tokenizer.enable_padding(length=9)
    (tmp_path / "new" / "tokenizer").mkdir(parents=True)
    reference.backend_tokenizer.save(str(tmp_path / "new" / "tokenizer" / "tokenizer.json"))
    found = find_tokenizer(tmp_path / "new", None, SMALL)
    assert found.encode("abcdef", 8).tolist()[1:7] == [VOCABULARY[letter] for letter in [*"abcde", "f</w>"]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", "{", "vocab.json is not JSON"),
        ("vocab.json", "[1]", "vocab.json is not a JSON object"),
        ("vocab.json", '{"a": "b"}', "vocab.json is no tokenizer"),
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt holds 'a b c', which is no pair of tokens"),
        ("merges.txt", "#version: 0.2\na unheard\n", "vocab.json is no tokenizer"),
        ("merges.txt", None, "merges.txt cannot be read"),
        ("tokenizer.json", "{}", "tokenizer.json is no tokenizer"),
        ("tokenizer_config.json", '{"pad_token": "[PAD]"}', "its padding token '[PAD]' is not in its vocabulary"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = write_folder(tmp_path, VOCABULARY, []) / "tokenizer" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ExportError) as caught:
        find_tokenizer(tmp_path, None, SMALL)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_the_text_encoder_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has ids up to 49,407, but the text encoder knows 80 tokens; give the"):
        find_tokenizer(None, None, SMALL)
    assert len(CHARACTERS) * 2 + 2 == 80


def test_an_id_behind_a_gap_is_refused(tmp_path: Path) -> None:
    gap = {name: 500 if name == "a" else number for name, number in VOCABULARY.items()}
    with pytest.raises(ExportError, match=r"has ids up to 500, but the text encoder knows 80 tokens"):
        find_tokenizer(write_folder(tmp_path, gap, []), None, SMALL)


def test_a_tokenizer_that_fails_at_unknown_words_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}}))
    with pytest.raises(ExportError, match=r"tokenizer.json is no tokenizer .*Missing \[UNK\]") as caught:
        find_tokenizer(None, path, SMALL)
    assert "\n" not in str(caught.value)


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room
    with pytest.raises(ExportError, match=r"has 1,099,511,627,776 bytes; a tokenizer has at most"):
        find_tokenizer(None, path, SMALL)
