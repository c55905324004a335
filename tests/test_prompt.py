"""Proves that a prompt becomes the ids that transformers' CLIPTokenizer gives, for any text, and that texts that are
long or broken are dealt with in bounded time."""

from __future__ import annotations

import time
import warnings

import pytest
from clip_tokenizer import clip_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from runtime.errors import PromptWarning, RequestError
from runtime.prompt import PromptTokenizer
from training.stable_diffusion.tokenizer import TOKENIZER_FILE


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return clip_tokenizer()


@pytest.fixture(scope="module")
def reference() -> CLIPTokenizer:
    """What diffusers calls, with the settings of the published model's folder."""
    return CLIPTokenizer(
        tokenizer_file=str(TOKENIZER_FILE),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=77,
    )


def quiet_ids(tokenizer: PromptTokenizer, prompt: str) -> list[int]:
    with warnings.catch_warnings(action="ignore"):
        ids = tokenizer.ids(prompt)
    assert ids.shape == (1, 77)
    assert ids.dtype == "int64"
    values: list[int] = ids[0].tolist()
    return values


def expected_ids(reference: CLIPTokenizer, prompt: str) -> list[int]:
    values: list[int] = reference(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    return values


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " \t\n ",
        "a photo of a cat",
        "A PHOTO  of a\nCAT",
        "it's 2026, isn't it? (masterpiece:1.3), 4k!!",
        "😀👩‍👩‍👧 émigré café e\u0301 漢字 Ελλάς",
        "\x00\x01\u200b\u200f\ufeff\U0010ffff",
        "<|startoftext|> a <|endoftext|> b",
        "word " * 75,
        "word " * 76,
        "x" * 3000,
    ],
)
def test_ids_are_those_of_transformers(tokenizer: PromptTokenizer, reference: CLIPTokenizer, prompt: str) -> None:
    assert quiet_ids(tokenizer, prompt) == expected_ids(reference, prompt)


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_of_any_text_are_those_of_transformers(
    tokenizer: PromptTokenizer, reference: CLIPTokenizer, prompt: str
) -> None:
    assert quiet_ids(tokenizer, prompt) == expected_ids(reference, prompt)


def test_begin_end_and_padding(tokenizer: PromptTokenizer) -> None:
    assert quiet_ids(tokenizer, "a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, *[49407] * 71]


def lengths(tokenizer: PromptTokenizer, prompt: str) -> list[int]:
    """How many tokens each chunk has before its end."""
    return [int((chunk.ids[0] == 49407).argmax()) - 1 for chunk in tokenizer.chunks(prompt)]


def test_75_tokens_are_one_chunk_and_the_76th_begins_another(tokenizer: PromptTokenizer) -> None:
    with warnings.catch_warnings(action="error"):
        assert lengths(tokenizer, "cat " * 75) == [75]
        assert lengths(tokenizer, "cat " * 76) == [75, 1]
        assert lengths(tokenizer, "cat " * 400) == [75] * 5 + [25]
        assert lengths(tokenizer, "") == [0]
    first, second = tokenizer.chunks("cat " * 75 + "red dog")
    assert first.ids.tolist() == tokenizer.ids("cat " * 75).tolist()
    assert second.ids.tolist() == tokenizer.ids("red dog").tolist()


@pytest.mark.parametrize(
    ("comma_at", "expected"),
    [(74, [75, 25]), (60, [61, 39]), (55, [56, 44]), (54, [75, 25]), (10, [75, 25]), (75, [75, 25])],
)
def test_a_full_chunk_ends_after_a_comma_among_its_last_twenty(
    tokenizer: PromptTokenizer, comma_at: int, expected: list[int]
) -> None:
    """Counted from 0, of 100 tokens; the web interfaces' rule, where a comma that is one too many moves on."""
    prompt = "cat " * comma_at + ", " + "dog " * (99 - comma_at)
    assert lengths(tokenizer, prompt) == expected


def test_a_break_ends_a_chunk(tokenizer: PromptTokenizer) -> None:
    first, second = tokenizer.chunks("a red cat BREAK on a mat")
    assert first.ids.tolist() == tokenizer.ids("a red cat").tolist()
    assert second.ids.tolist() == tokenizer.ids("on a mat").tolist()


def test_every_token_has_the_weight_of_its_piece(tokenizer: PromptTokenizer) -> None:
    (chunk,) = tokenizer.chunks("a (red cat:1.5) on [a mat]")
    assert chunk.ids.tolist() == tokenizer.ids("a red cat on a mat").tolist()
    expected = [1, 1, 1.5, 1.5, 1, 1 / 1.1, 1 / 1.1] + [1] * 70
    assert chunk.weights.tolist() == pytest.approx(expected)


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_of_any_prompt_are_framed_and_full(tokenizer: PromptTokenizer, prompt: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        chunks = tokenizer.chunks(prompt)
    for chunk in chunks:
        assert chunk.ids.shape == (1, 77)
        assert (chunk.ids[0, 0], chunk.ids[0, -1]) == (49406, 49407)
        assert chunk.weights.shape == (77,)


def test_of_what_is_not_done_here_it_is_said(tokenizer: PromptTokenizer) -> None:
    """In one warning of one line, however much there is."""
    with pytest.warns(PromptWarning) as said:
        tokenizer.chunks("a <lora:style:0.8> cat AND a dog")
    (message,) = (str(each.message) for each in said)
    assert [part.split(" is ")[0] for part in message.split("; ")] == ["<lora:style:0.8>", "AND"]
    with pytest.warns(PromptWarning) as said:
        tokenizer.chunks(" ".join(f"<lora:{k}\n{'x ' * 99}:1>" for k in range(1000)))
    (message,) = (str(each.message) for each in said)
    assert message.endswith("; and 996 more such things")
    assert len(message) < 700
    assert "\n" not in message


@pytest.mark.parametrize("prompt", ["word%d " * 10_000, "a" * 100_000, "😀" * 100_000, " " * 1_000_000])
def test_long_prompts_take_bounded_time(tokenizer: PromptTokenizer, prompt: str) -> None:
    begun = time.process_time()
    with warnings.catch_warnings(action="ignore"):
        tokenizer.chunks(prompt)
    assert time.process_time() - begun < 5


def test_what_is_cut_off_is_said_and_itself_shortened(tokenizer: PromptTokenizer) -> None:
    with pytest.warns(PromptWarning, match="10000 tokens in 134 chunks, of which 2400 in 32 ") as said:
        assert len(tokenizer.chunks("word " * 10_000)) == 32
    assert len(str(said[0].message)) < 200
    assert "\n" not in str(said[0].message)


@pytest.mark.parametrize("prompt", ["\udcff", "half \ud83d of a pair"])
def test_bytes_that_are_no_text_are_one_clear_error(tokenizer: PromptTokenizer, prompt: str) -> None:
    with pytest.raises(RequestError, match="the prompt is not text: character") as error:
        tokenizer.ids(prompt)
    str(error.value).encode()  # can be printed
