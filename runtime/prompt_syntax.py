r"""What people type into prompts beside words: weights, breaks, and what other programs understand.

    (word)        counts 1.1 times as much, ((word)) 1.21 times
    (word:1.3)    counts 1.3 times as much
    [word]        counts 1.1 times less
    \( \) \[ \] \\   are the characters themselves
    BREAK         begins the next chunk of 75 tokens

So the web interfaces have it, and nothing is ever wrong. A bracket without its counterpart is text (there, one that is
never closed counts to the end). ``<lora:x:0.8>``, ``[a:b:0.5]``, ``[a|b]`` and ``AND`` mean something there that is not
done here; they are replaced by what comes nearest, or are text, and each is named in ``Prompt.notes``. So is a bracket
that holds brackets and yet ends like an edit, ``[a [b]:0.5]``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from runtime.errors import printable

ROUND, SQUARE = 1.1, 1 / 1.1
MAX_WEIGHT = 100.0
SHOWN = 60  # characters of a prompt that a message repeats
COUNTERPART = {")": "(", "]": "["}
NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"  # no other digits, which few languages read
LEXEME = re.compile(r"\\[()\[\]\\]|[()\[\]]|[^()\[\]\\]+|\\", re.DOTALL)
WEIGHT = re.compile(rf":\s*({NUMBER})\s*$")
EXTRA_NETWORK = re.compile(r"<[A-Za-z]\w*:[^<>]*>")
COMPOSED = re.compile(rf"(?::\s*{NUMBER}\s*)?\bAND\b")  # in the web interfaces each part may end in a weight
BREAK = re.compile(r"\bBREAK\b")
OPEN = r"(?<!\\)\["
PART = r"(?:\([^()\[\]]*\)|[^()\[\]:|])*"  # of what is edited or alternated; weights may stand in it
EDITED = re.compile(rf"{OPEN}((?:{PART}:){{1,2}})\s*{NUMBER}\s*\]")
ALTERNATED = re.compile(rf"{OPEN}({PART})\|[^\[\]]*\]")
MAX_NESTED = 8  # edits within edits


@dataclass(frozen=True)
class Piece:
    """A part of a prompt whose words all count alike.

    Attributes:
        text: without any syntax.
        weight: how many times as much as usual it counts.
    """

    text: str
    weight: float


@dataclass(frozen=True)
class Prompt:
    """A prompt that was understood.

    Attributes:
        sections: what stands between breaks; at least one.
        notes: what was found in it and is not done here, in words.
    """

    sections: tuple[tuple[Piece, ...], ...]
    notes: tuple[str, ...]


def parse(text: str) -> Prompt:
    """Understand a prompt, whatever it is."""
    text, notes = replace_foreign(text)
    sections: list[list[tuple[str, float]]] = [[]]
    for part, weight in weighted(text):
        first, *others = BREAK.split(part)
        sections[-1].append((first, weight))
        sections += [[(other, weight)] for other in others]
    if len(sections) > 1 and not "".join(part for part, _ in sections[-1]).strip():
        sections.pop()  # a break at the end begins nothing
    return Prompt(tuple(map(joined, sections)), tuple(notes))


def joined(parts: Iterable[tuple[str, float]]) -> tuple[Piece, ...]:
    """Parts that count alike in one piece, since words go on where nothing changes."""
    told = (part for part in parts if part[0])
    alike = itertools.groupby(told, key=lambda part: part[1])
    return tuple(Piece("".join(text for text, _ in group), weight) for weight, group in alike)


def replace_foreign(text: str) -> tuple[str, list[str]]:
    """Put what comes nearest in the place of what is not done here."""
    notes: list[str] = []

    def network(found: re.Match[str]) -> str:
        notes.append(
            f"{shortened(found[0])} is left out: LoRAs are merged when a model is exported (--lora), others not at all"
        )
        return ""

    def edited(found: re.Match[str]) -> str:
        parts = re.findall(rf"({PART}):", found[1])
        chosen = next((part for part in reversed(parts) if part.strip()), "")
        notes.append(
            f"{shortened(found[0])} is taken for {shortened(chosen)!r} from the first step on: "
            "prompts do not change halfway"
        )
        return chosen

    def alternated(found: re.Match[str]) -> str:
        notes.append(f"{shortened(found[0])} is taken for {shortened(found[1])!r}: prompts do not alternate")
        return found[1]

    def composed(found: re.Match[str]) -> str:
        notes.append("AND is taken for a comma: prompts are not composed")
        return ","

    text, times = COMPOSED.subn(composed, EXTRA_NETWORK.sub(network, text))
    text = WEIGHT.sub("", text) if times else text
    for _ in range(MAX_NESTED):
        before, text = text, ALTERNATED.sub(alternated, EDITED.sub(edited, text))
        if text == before:
            break
    notes += [f"{found} is read as text: it is not understood" for found in not_understood(text)]
    return text, list(dict.fromkeys(notes))


def not_understood(text: str) -> Iterator[str]:
    """What still looks like an edit or an alternation, shortened: square brackets around a bar, or before a number."""
    lexemes = LEXEME.findall(text)
    begins = [0, *itertools.accumulate(map(len, lexemes))]
    closing = {end: begin for end, begin in counterparts(lexemes).items() if lexemes[end] == "]"}
    opening = {begin: end for end, begin in closing.items()}
    within, found = [], set()
    for i, lexeme in enumerate(lexemes):
        if i in opening:
            within.append(i)
        elif i in closing:
            within.pop()
            if WEIGHT.search(lexemes[i - 1]):
                found.add(closing[i])
        elif within and "|" in lexeme:
            found.add(within[-1])
    for begin in sorted(found):
        yield shortened(text[begins[begin] : min(begins[opening[begin] + 1], begins[begin] + 2 * SHOWN)])


def shortened(text: str) -> str:
    """As much of a text as a message repeats, on one line."""
    line = " ".join(text.split())
    return printable(line if len(line) <= SHOWN else f"{line[:SHOWN]}…")


def weighted(text: str) -> list[tuple[str, float]]:
    """The parts of a prompt, in order, with their weights; brackets that have a counterpart are gone."""
    lexemes = LEXEME.findall(text)
    closing = counterparts(lexemes)
    opening = {begin: end for end, begin in closing.items()}
    explicit = {
        end: float(found[1]) for end in closing if lexemes[end] == ")" and (found := WEIGHT.search(lexemes[end - 1]))
    }
    parts: list[tuple[str, float]] = []
    weights = [1.0]
    for i, lexeme in enumerate(lexemes):
        if i in opening:
            usual = ROUND if lexeme == "(" else SQUARE
            weights.append(bounded(weights[-1] * explicit.get(opening[i], usual)))
        elif i in closing:
            weights.pop()
        else:
            own = WEIGHT.sub("", lexeme) if i + 1 in explicit else lexeme
            parts.append((own[1:] if len(own) == 2 and own[0] == "\\" else own, weights[-1]))
    return parts


def bounded(weight: float) -> float:
    """Within ± ``MAX_WEIGHT``: beyond it no picture is left, and far beyond no number."""
    return max(-MAX_WEIGHT, min(MAX_WEIGHT, weight))


def counterparts(lexemes: Iterable[str]) -> dict[int, int]:
    """Where each bracket that closes one has that one; whatever stands open in between is text."""
    found: dict[int, int] = {}
    still_open: list[tuple[str, int]] = []
    waiting = dict.fromkeys(COUNTERPART.values(), 0)
    for i, lexeme in enumerate(lexemes):
        if lexeme in waiting:
            still_open.append((lexeme, i))
            waiting[lexeme] += 1
        elif lexeme in COUNTERPART and waiting[COUNTERPART[lexeme]]:
            kind = ""
            while kind != COUNTERPART[lexeme]:
                kind, found[i] = still_open.pop()
                waiting[kind] -= 1
    return found
