"""Proves that the documentation is true of this repository: the README's snippets run, or where running them would take
hours or install packages, every target, extra and option they name exists; its annotated tree names real files and all
of the top level; and links between the pages lead somewhere."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import write_folder
from pages import ROOT, commands, parameters, run, run_python, snippets
from random_weights import POCKET, random_state

from runtime.__main__ import parser as runtime_parser
from training.stable_diffusion.config import SD15

README = (ROOT / "README.md").read_text("utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("runtime/hosts/*/*.md"))]
LANGUAGES = {"bash", "python", "text"}  # text is not run: a listing or an output


def run_node(words: list[str], folder: Path) -> None:
    script, *others = words
    if not os.environ.get("NODE", "node") or not (ROOT / script).with_name("node_modules").exists():
        pytest.skip("the packages of runtime/hosts/js are not installed; make test installs them")
    finished = run([os.environ.get("NODE", "node"), str(ROOT / script), *others], folder)
    assert finished.returncode == 0, finished.stderr


def check_make(words: list[str]) -> None:
    """Let make say what it would do, which it cannot for a target that does not exist."""
    finished = run([*words, "-n"], ROOT)
    assert finished.returncode == 0, finished.stderr


def check_pip(words: list[str]) -> None:
    """Only this project is installed, with extras that it has."""
    assert words[1] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for word in words[2:]:
        named = re.fullmatch(r"-e|\.(?:\[([\w,]+)\])?", word)
        assert named, f"{word} is none of . and .[EXTRAS] and -e"
        assert set(named[1].split(",") if named[1] else ()) <= extras.keys()


def check_training(words: list[str]) -> None:
    """Parse the options of what would take hours."""
    importlib.import_module(f"training.{words[3]}.command").parser().parse_args(words[4:])


def check_npm(words: list[str]) -> None:
    """Only what the lock file of the JavaScript host says is installed."""
    assert words == ["npm", "ci", "--ignore-scripts", "--prefix", "runtime/hosts/js"]
    assert (ROOT / words[-1] / "package-lock.json").exists()


def check_web(words: list[str]) -> None:
    """Parse the options of what would serve until Ctrl-C."""
    runtime_parser().parse_args(words[3:])


RUN = ("python -m runtime", "python -m export", "node")
CHECK: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    "npm": check_npm,
    "python -m training": check_training,
    "python -m runtime web": check_web,
}


def begins_with(command: str, starts: Iterable[str]) -> str | None:
    """The one of ``starts`` that the command begins with, word for word."""
    return next((start for start in starts if f"{command} ".startswith(f"{start} ")), None)


def is_run(command: str) -> bool:
    """Whether it is run and not only looked at."""
    return bool(begins_with(command, RUN)) and not begins_with(command, CHECK)


def test_every_snippet_is_of_a_known_kind() -> None:
    assert len(re.findall("^```", README, re.MULTILINE)) == 2 * len(snippets(README))
    assert {snippet.language for snippet in snippets(README)} <= LANGUAGES
    assert [each.code for each in commands(README) if not begins_with(each.code, [*RUN, *CHECK])] == []


@pytest.mark.parametrize("command", parameters(each for each in commands(README) if begins_with(each.code, CHECK)))
def test_what_a_command_names_exists(command: str) -> None:
    CHECK[begins_with(command, CHECK) or ""](shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        "pip install .[no-such-extra]",
        "python -m training ddpm --no-such-option 1",
        "python -m runtime web --no-such-option 1",
    ],
)
def test_the_checks_notice_what_does_not_exist(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        test_what_a_command_names_exists(command)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, mnist_sample_file: Path) -> Path:
    """A folder to run snippets in, one after another, with the committed bundles, the checkpoint of a few seconds'
    training where the README's would be, and a pocket-sized Stable Diffusion where a reader has a real one."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "models_onnx").mkdir()
    for name in ("mnist-paper", "fashion-mnist-paper", "pocket"):
        (folder / "models_onnx" / name).symlink_to(ROOT / "models_onnx" / name)
    options = "--out runs/mnist-paper --epochs 1 --batch-size 200 --features 8"
    run_python(["-m", "training", "ddpm", "--dataset", str(mnist_sample_file), *options.split()], folder)
    pocket = replace(POCKET, text_encoder=replace(POCKET.text_encoder, vocab_size=SD15.text_encoder.vocab_size))
    write_folder(folder / "my-checkpoint", pocket, random_state(pocket))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", parameters(each for each in commands(README) if is_run(each.code)))
def test_command_runs(command: str, workspace: Path) -> None:
    program, *words = shlex.split(command)
    size = ["--size", "48x32"] if "--model my-model " in command else []
    if program == "node":
        run_node([*words, *size], workspace)
    else:
        run_python([*words, *(["--steps", "2"] if size else []), *size], workspace)


@pytest.mark.slow
@pytest.mark.parametrize("code", parameters(each for each in snippets(README) if each.language == "python"))
def test_python_snippet_runs(code: str, workspace: Path) -> None:
    run_python(["-c", code], workspace)


PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")


@pytest.mark.parametrize("code", parameters(each for each in snippets(PAGE) if 'load("mnist-paper")' in each.code))
def test_snippet_of_the_page_on_python_runs(code: str, tmp_path: Path) -> None:
    (tmp_path / "models_onnx").symlink_to(ROOT / "models_onnx")
    run_python(["-c", code], tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert re.findall(r"@[A-Z]+@", page.read_text("utf-8")) == []


def tree(page: str) -> list[Path]:
    """The paths of the annotated tree, the last block of the page: two spaces of indentation for each level."""
    branch: list[str] = []
    paths = []
    for line in snippets(page)[-1].code.splitlines():
        entry = re.fullmatch(r"((?:  )*)(\S+) {2,}\S.*", line)
        assert entry, f"{line!r} is no name with its description"
        branch[len(entry[1]) // 2 :] = [entry[2]]
        paths.append(Path(*branch))
    return paths


def test_everything_in_the_tree_exists() -> None:
    assert [str(path) for path in tree(README) if not (ROOT / path).exists()] == []


def test_the_tree_has_the_whole_top_level() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout, so what belongs to the repository is not known")
    committed = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    assert committed - {path.parts[0] for path in tree(README)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"", prose)
    targets = [(first or second).partition("#")[0] for first, second in links]
    relative = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    assert [target for target in relative if not (page.parent / target).exists()] == []
