"""Proves what prompts are understood to say, by hand-worked cases, and that whatever is
typed is understood somehow, in bounded time."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.prompt_syntax import MAX_WEIGHT, parse

SYNTAX = st.sampled_from(
    ["(", ")", "[", "]", "\\", ":", "1.3", "|", " BREAK ", "AND", "<lora:x:1>", "a", "red, ", "\n"]
)
PROMPTS = st.one_of(st.text(max_size=200), st.lists(SYNTAX, max_size=60).map("".join))


def understood(text: str) -> list[list[tuple[str, float]]]:
    return [[(piece.text, round(piece.weight, 6)) for piece in section] for section in parse(text).sections]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a red cat", [("a red cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a ((red)) cat", [("a ", 1), ("red", 1.21), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", 0.909091), (" cat", 1)]),
        ("[[red]]", [("red", 0.826446)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: 1.3 )", [("red", 1.3)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(red:0)", [("red", 0)]),
        ("(red:-1)", [("red", -1)]),
        ("(a (red:2) cat:0.5)", [("a ", 0.5), ("red", 1), (" cat", 0.5)]),
        ("([red])", [("red", 1)]),
        ("((red):2)", [("red", 2.2)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(12:30)", [("12", 30)]),
        ("(red:x)", [("red:x", 1.1)]),
        ("(red:\u0661.\u0663)", [("red:\u0661.\u0663", 1.1)]),
        ("(red:1.3:)", [("red:1.3:", 1.1)]),
        ("a: 1.3", [("a: 1.3", 1)]),
        (r"\(red\)", [("(red)", 1)]),
        (r"(\(red\):1.3)", [("(red)", 1.3)]),
        (r"a \\ b", [("a \\ b", 1)]),
        (r"a \n b", [(r"a \n b", 1)]),
        ("(red", [("(red", 1)]),
        ("red)", [("red)", 1)]),
        ("(red]", [("(red]", 1)]),
        ("((red)", [("(", 1), ("red", 1.1)]),
        ("(a [b) c]", [("a [b", 1.1), (" c]", 1)]),
        (r"\[a|b\] cat", [("[a|b] cat", 1)]),
        (r"\[a:b:0.5\] cat", [("[a:b:0.5] cat", 1)]),
        (")(", [(")(", 1)]),
        ("()", []),
        ("smile :)", [("smile :)", 1)]),
        ("(red:1e9)", [("red:1e9", 1.1)]),
        ("(red:99999)", [("red", MAX_WEIGHT)]),
        ("(red)(blue)", [("redblue", 1.1)]),
    ],
)
def test_weights(text: str, pieces: list[tuple[str, float]]) -> None:
    assert understood(text) == [pieces]
    assert parse(text).notes == ()


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("red BREAK blue", [[("red ", 1)], [(" blue", 1)]]),
        ("redBREAK blue", [[("redBREAK blue", 1)]]),
        ("red break blue", [[("red break blue", 1)]]),
        ("BREAK", [[]]),
        ("red BREAK", [[("red ", 1)]]),
        ("red BREAK BREAK ", [[("red ", 1)], [(" ", 1)]]),
        ("BREAK red", [[], [(" red", 1)]]),
        ("(red BREAK blue:2)", [[("red ", 2)], [(" blue", 2)]]),
        ("a BREAK BREAK b", [[("a ", 1)], [(" ", 1)], [(" b", 1)]]),
    ],
)
def test_breaks(text: str, sections: list[list[tuple[str, float]]]) -> None:
    assert understood(text) == sections


@pytest.mark.parametrize(
    ("text", "instead", "note"),
    [
        ("a <lora:style:0.8>cat", "a cat", "<lora:style:0.8> is left out"),
        ("<hypernet:x:1>", "", "<hypernet:x:1> is left out"),
        ("[red:blue:0.5] cat", "blue cat", "[red:blue:0.5] is taken for 'blue'"),
        ("[red::8] cat", "red cat", "[red::8] is taken for 'red'"),
        ("[blue:0.5] cat", "blue cat", "[blue:0.5] is taken for 'blue'"),
        ("[cow|horse]", "cow", "[cow|horse] is taken for 'cow'"),
        ("[a|b|c]", "a", "[a|b|c] is taken for 'a'"),
        ("red AND blue", "red , blue", "AND is taken for a comma"),
        ("a <ti:abc:1>cat", "a cat", "<ti:abc:1> is left out"),
        ("[(a:1.2):b:0.5] x", "b x", "[(a:1.2):b:0.5] is taken for 'b'"),
        ("[a:(b:1.2):0.5] x", "b x", "[a:(b:1.2):0.5] is taken for '(b:1.2)'"),
        ("[a|b:1.2|c]", "a", "[a|b:1.2|c] is taken for 'a'"),
        ("[:x|b] c", ":x|b c", "[:x|b] is read as text"),
        ("[a [b]:0.5] x", "a b:0.5 x", "[a [b]:0.5] is read as text"),
        ("[a [b]|c] x", "a b|c x", "[a [b]|c] is read as text"),
        ("a:1.2 AND b:0.8", "a, b", "AND is taken for a comma"),
        ("<lora:x\ny:1>", "", "<lora:x y:1> is left out"),
        (f"<lora:{'x' * 999}:1>", "", f"<lora:{'x' * 54}… is left out"),
    ],
)
def test_what_is_not_done_here_is_named(text: str, instead: str, note: str) -> None:
    prompt = parse(text)
    assert "".join(piece.text for piece in prompt.sections[0]) == instead
    assert len(prompt.notes) == 1, prompt.notes
    assert prompt.notes[0].startswith(note)
    assert parse(f"{text} {text}").notes == prompt.notes  # once is enough


@pytest.mark.parametrize("text", ["a <lora> b", "red and blue", "SAND", "[a:b] c", "a|b", "<lora:x:1"])
def test_what_only_looks_like_it_is_text(text: str) -> None:
    assert parse(text).notes == ()


@settings(max_examples=500, deadline=None)
@given(PROMPTS)
def test_anything_is_understood(text: str) -> None:
    prompt = parse(text)
    for section in prompt.sections:
        for piece in section:
            assert piece.text
            assert math.isfinite(piece.weight)
        weights = [piece.weight for piece in section]
        assert all(before != after for before, after in itertools.pairwise(weights))


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_characters="()[]\\"), max_size=100))
def test_text_without_syntax_stays_as_it_is(text: str) -> None:
    prompt = parse(text)
    if not prompt.notes and len(prompt.sections) == 1:
        assert "".join(piece.text for piece in prompt.sections[0]) == text


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=100))
def test_escaped_text_is_itself(text: str) -> None:
    escaped = "".join(f"\\{character}" if character in "()[]\\" else character for character in text)
    prompt = parse(escaped)
    if not prompt.notes and len(prompt.sections) == 1:
        assert "".join(piece.text for piece in prompt.sections[0]) == text


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10**5,
        "(" * 50_000 + ")" * 50_000,
        "([" * 30_000 + ")" * 30_000,
        "\\" * 10**5,
        " " * 10**5,
        "[a:" * 30_000,
        "[a|" * 30_000,
        "<lora:" * 15_000,
        "BREAK " * 16_000,
        "(a:1" * 25_000 + ")" * 9,
        ":" * 10**5,
        "[" * 50_000 + ":1]" * 50_000,
        "[a [b]" * 10_000 + "|c]" * 10_000,
        ":1 AND " * 15_000,
    ],
)
def test_a_hundred_thousand_characters_are_no_hang(text: str) -> None:
    """Their square would be minutes."""
    parse(text)
