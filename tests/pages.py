"""Pages of the documentation as programs: their snippets, and what comes of running them.

``python tests/pages.py docs/tasks.md`` runs all of a page in an empty folder, from top to bottom, and puts the pictures
that the page shows where it shows them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MODELS = "models_onnx"


class Snippet(NamedTuple):
    language: str
    code: str
    line: int


def snippets(page: str) -> list[Snippet]:
    """The fenced blocks of a page, with the line that each begins on."""
    blocks = re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", page, re.MULTILINE)
    return [Snippet(block[1].strip(), block[2], page[: block.start()].count("\n") + 2) for block in blocks]


def commands(page: str) -> list[Snippet]:
    """The commands of the bash blocks, one by one; a backslash at the end of a line joins it to the next."""
    found = []
    for language, code, line in snippets(page):
        if language == "bash":
            joined = re.sub(r"\\\n\s*", " ", code).splitlines()
            found += [Snippet(language, text, line) for text in joined if text and not text.startswith("#")]
    return found


def parameters(found: Iterable[Snippet]) -> list[object]:
    return [pytest.param(snippet.code, id=f"line{snippet.line}:{snippet.code[:50]}") for snippet in found]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run with the clone on the path, this Python as ``python``, and without what an outer make tells an inner one."""
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DIFFUSION_ANYWHERE_MODELS"}
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    environment = {**kept, "PYTHONPATH": str(ROOT), "PATH": path}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def run_python(words: list[str], folder: Path) -> None:
    finished = run([sys.executable, *words], folder)
    assert finished.returncode == 0, finished.stderr


class Run(NamedTuple):
    """A snippet, and what of its output the page shows below it, which may be nothing."""

    snippet: Snippet
    shown: str


def runs(page: str) -> list[Run]:
    """The snippets of a page to run, in their order. A block of text is what the one above it prints."""
    found = snippets(page)
    return [
        Run(snippet, following.code if following and following.language == "text" else "")
        for snippet, following in zip(found, [*found[1:], None], strict=True)
        if snippet.language != "text"
    ]


def run_snippet(each: Run, folder: Path) -> None:
    """Run a snippet of bash or Python as a reader would; it must say what the page shows, and warn of nothing."""
    interpreter = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    finished = run([*interpreter[each.snippet.language], each.snippet.code], folder)
    assert (finished.returncode, finished.stderr) == (0, ""), f"line {each.snippet.line}: {finished.stderr}"
    missing = [line for line in each.shown.splitlines() if line not in finished.stdout.splitlines()]
    assert missing == [], f"line {each.snippet.line}: {finished.stdout}"


def pictures(page: Path) -> list[Path]:
    """The pictures that a page shows of a folder called like itself."""
    named = re.findall(rf'(?:\]\(|src=")({page.stem}/[^)"]+)', page.read_text("utf-8"))
    return [page.parent / name for name in dict.fromkeys(named)]


def empty_folder(folder: Path) -> Path:
    """A folder to run a page in: there is nothing in it but the models of the clone."""
    (folder / MODELS).symlink_to(ROOT / MODELS)
    return folder


def draw(page: Path) -> None:
    """Run a page, and put the pictures that it shows, and no others, where it shows them."""
    target = page.with_suffix("")
    with tempfile.TemporaryDirectory() as name:
        folder = empty_folder(Path(name))
        for each in runs(page.read_text("utf-8")):
            print(f"{page}:{each.snippet.line}", flush=True)
            run_snippet(each, folder)
        missing = [path.name for path in pictures(page) if not (folder / path.name).exists()]
        assert missing == [], f"{page} shows what its commands do not make: {missing}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in pictures(page):
            shutil.copy(folder / path.name, path)
    print(f"{target}: {len(pictures(page))} pictures, {sum(path.stat().st_size for path in pictures(page)):,} bytes")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        draw(Path(argument))
