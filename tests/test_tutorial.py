"""Proves that the tutorial is true: every function it names exists, every formula has its number and its source, every
section ends with an expectation, and, run from top to bottom without a network, every expectation holds, and holds
still after the changes that the sections suggest. What is committed are the outputs of one run, and nothing else."""

from __future__ import annotations

import ast
import dis
import re
from collections import Counter
from pathlib import Path
from types import CodeType
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode

from tests.tutorial import NOTEBOOK, ROOT, execute, printed, read

LARGEST_FILE = 3_000_000
NAMED = re.compile(r"`((?:training|export|runtime)/[\w/]+\.py):([\w.]+)`")
HELD, DID_NOT = "✓ held: ", "✗ did not hold: "

# For each cell with something to change: a line's part as it stands, and a change that the text before it suggests.
CHANGES = {
    "forward-expect": ("SHRINK = True", "SHRINK = False"),
    "closed-expect": ("STEPS = 400", "STEPS = 1000"),
    "posterior-expect": ("STEP = 8", "STEP = 2"),
    "loss-expect": ('VARIANCE = "posterior"', 'VARIANCE = "beta"'),
    "training-expect": ("LABEL_SHIFT = 1", "LABEL_SHIFT = 5"),
    "reverse-expect": ("FRESH = True", "FRESH = False"),
    "guidance-expect": ("SCALE = 2", "SCALE = 0"),
    "samplers-expect": ('SAMPLER = "dpmpp_2m"', 'SAMPLER = "heun"'),
    "clip-expect": ("a red dress on a white", "a red sneaker on a brown"),
    "vae-expect": ("BY = 2", "BY = -3"),
    "unet-expect": ('BACKGROUND = "blue"', 'BACKGROUND = "orange"'),
    "export-expect": ("BATCH = 7", "BATCH = 50"),
    "same-expect": ("1, 10", "5, 20"),
}


@pytest.fixture(scope="module")
def notebook() -> NotebookNode:
    return read()


def texts(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def defined(path: Path, name: str) -> bool:
    """Whether a file defines a function, class, constant or, as ``Class.name``, a part of a class."""
    scope: list[ast.stmt] = ast.parse(path.read_text("utf-8")).body
    for part in name.split("."):
        found = next((statement for statement in scope if part in names(statement)), None)
        if found is None:
            return False
        scope = getattr(found, "body", [])
    return True


def names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_every_function_that_it_names_exists(notebook: NotebookNode) -> None:
    named = [match for text in texts(notebook) for match in NAMED.findall(text)]
    assert len(set(named)) > 30
    assert [f"{path}:{name}" for path, name in named if not defined(ROOT / path, name)] == []


def test_every_other_path_that_it_names_is_a_file(notebook: NotebookNode) -> None:
    quoted = [each for text in texts(notebook) for each in re.findall(r"`[^`\n]+`", text)]
    paths = [each.strip("`") for each in quoted if re.search(r"\.(py|md)\b", each) and not NAMED.fullmatch(each)]
    assert "docs/bundle.md" in paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("name", ["q_sampel", "NoiseSchedule.betas", "Denoiser.call", "q_sample.schedule"])
def test_a_name_that_does_not_exist_is_noticed(name: str) -> None:
    assert defined(ROOT / "training/ddpm/diffusion.py", "Denoiser.__call__")
    assert not defined(ROOT / "training/ddpm/diffusion.py", name)


def test_every_formula_has_its_number_and_where_it_is_from(notebook: NotebookNode) -> None:
    """The line with the arrow names a function, or a publication, or says that the formula is a step or a fact."""
    numbers = []
    for text in texts(notebook):
        sources = [line for line in text.splitlines() if line.startswith("→ (")]
        displayed = re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)
        tags = [re.findall(r"\\tag\{(\d+)\}", formula) for formula in displayed]
        assert [formula for formula, tag in zip(displayed, tags, strict=True) if len(tag) != 1] == []
        for (tag,) in tags:
            (line,) = [line for line in sources if f"({tag})" in line.partition("`")[0].partition(";")[0]]
            assert NAMED.search(line) or re.search(r"step of the derivation|facts|et al\. \d{4}", line), line
        numbers += [int(tag) for (tag,) in tags]
    assert len(numbers) > 30
    assert numbers == list(range(1, len(numbers) + 1))


def test_no_formula_uses_what_github_does_not_typeset(notebook: NotebookNode) -> None:
    assert [text for text in texts(notebook) if re.search(r"\\(operatorname|bm|newcommand|def)\b", text)] == []


def test_formulas_that_are_referred_to_exist(notebook: NotebookNode) -> None:
    prose = "\n".join(texts(notebook))
    last = max(map(int, re.findall(r"\\tag\{(\d+)\}", prose)))
    referred = [int(number) for number in re.findall(r"\((\d+)\)", prose)]
    assert len(referred) > 60
    assert max(referred) <= last


def test_every_section_ends_with_something_to_change_and_an_expectation(notebook: NotebookNode) -> None:
    headings = [k for k, cell in enumerate(notebook.cells) if re.match(r"## \d+ · ", cell.source)]
    assert [int(notebook.cells[k].source.split()[1]) for k in headings] == list(range(1, len(headings) + 1))
    closing = next(k for k, cell in enumerate(notebook.cells) if cell.source.startswith("## Where to go from here"))
    for end in [*headings[1:], closing]:
        task, check = notebook.cells[end - 2 : end]
        assert task.cell_type == "markdown"
        assert "**Change it.**" in task.source
        assert "*Expect:*" in task.source
        assert check.cell_type == "code"
        assert "expect(" in check.source
        changed = re.findall(r"`([A-Z_]+)(?: = [^`]+)?`", task.source.partition("**Change it.**")[2])
        assert any(re.search(rf"^(?:\w+, )*{name}\b.* = ", check.source, re.MULTILINE) for name in changed), changed


def bound_and_needed(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell binds, and those that it needs as they are: it reads them before it binds them, or in a
    function, which may be called when other cells have run."""
    bound, needed = set(), set()

    def scan(block: CodeType, is_cell: bool, later: bool) -> None:
        for step in dis.get_instructions(block):
            if isinstance(step.argval, CodeType):  # those of comprehensions and lambdas, "<listcomp>", run at once
                scan(step.argval, False, later or not step.argval.co_name.startswith("<"))
            elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and (later or step.argval not in bound):
                needed.add(step.argval)
            elif step.opname == "STORE_NAME" and is_cell:
                bound.add(step.argval)

    scan(compile(source, "cell", "exec"), True, False)
    return bound, needed


def test_what_a_cell_binds_and_needs() -> None:
    cell = "def f():\n    return a\nb = [c for c in range(d)]\nfor e in b:\n    g = e + h\n    h = g"
    bound, needed = bound_and_needed(cell)
    assert bound == {"f", "b", "e", "g", "h"}
    assert needed == {"a", "range", "d", "h"}


def test_any_cell_may_be_run_again_after_all_others(notebook: NotebookNode) -> None:
    """What a cell needs of others is bound in one place: nothing that ran later gave the name another meaning."""
    cells = {cell.id: bound_and_needed(cell.source) for cell in code(notebook)}
    needed = {name: cell for cell, (_, names) in cells.items() for name in names}
    places = {name: [cell for cell, (bound, _) in cells.items() if name in bound] for name in needed}
    assert sum(map(bool, places.values())) > 100
    assert {name: (where, needed[name]) for name, where in places.items() if len(where) > 1} == {}


def test_its_links_lead_somewhere(notebook: NotebookNode) -> None:
    links = [link for text in texts(notebook) for link in re.findall(r"\]\(([^)#]+)\)", text)]
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


def test_the_file_holds_no_noise(notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < LARGEST_FILE
    assert [cell.id for cell in notebook.cells if not re.fullmatch(r"[a-z][a-z-]+", cell.id)] == []
    assert [cell.id for cell in notebook.cells if cell.metadata] == []
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert not re.search(r"/tmp/|/home/|/root/|(?<![\w+/])0x[0-9a-f]{6}", NOTEBOOK.read_text("utf-8"))


def expectations(cell: NotebookNode) -> int:
    """How many times a cell calls ``expect``."""
    calls = [node.func for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    return sum(isinstance(function, ast.Name) and function.id == "expect" for function in calls)


def check_outputs(notebook: NotebookNode) -> None:
    """What a run from top to bottom leaves: no errors, nothing on standard error, and expectations that hold."""
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [printed(cell, "stderr") for cell in cells if printed(cell, "stderr")] == []
    assert [cell.id for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    lines = [(cell, line) for cell in cells for line in printed(cell).splitlines()]
    assert [(cell.source, line) for cell, line in lines if line.startswith(DID_NOT)] == []
    held = Counter(cell.id for cell, line in lines if line.startswith(HELD))
    assert [cell.id for cell in cells if held[cell.id] != expectations(cell)] == []


def test_expect_says_whether_its_claim_held(notebook: NotebookNode, capsys: pytest.CaptureFixture[str]) -> None:
    (setup,) = [cell for cell in notebook.cells if cell.id == "setup"]
    (definition,) = [each for each in ast.parse(setup.source).body if "expect" in names(each)]
    scope: dict[str, Any] = {}
    exec(compile(ast.Module([definition], []), "setup", "exec"), scope)
    for held in (True, False, np.bool_(True), np.bool_(False)):
        scope["expect"]("one is one", held)
        assert capsys.readouterr().out == f"{HELD if held else DID_NOT}one is one\n"


def two_expectations(text: str = f"{HELD}a\n{HELD}b\n", count: int = 1, **others: str) -> NotebookNode:
    """A notebook that was run, of one cell; ``others`` are texts by the name of their stream."""
    streams = {"stdout": text} | others
    outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in streams.items()]
    cell = nbformat.v4.new_code_cell('expect("a", x)\nexpect("b", y)', execution_count=count, outputs=outputs)
    return nbformat.v4.new_notebook(cells=[cell])


@pytest.mark.parametrize(
    "damaged",
    [
        two_expectations(f"{HELD}a\n{DID_NOT}b\n"),
        two_expectations(f"{HELD}a\n{HELD}b\n{DID_NOT}c\n"),
        two_expectations(f"{HELD}a\n"),
        two_expectations(f"{HELD}a, {HELD}b\n"),
        two_expectations(""),
        two_expectations(stderr="a warning"),
        two_expectations(count=2),
    ],
    ids=["failed", "also failed", "silent", "on one line", "not run", "warned", "not the first"],
)
def test_an_expectation_that_did_not_hold_is_noticed(damaged: NotebookNode) -> None:
    check_outputs(two_expectations())
    with pytest.raises(AssertionError):
        check_outputs(damaged)


def test_an_error_is_noticed() -> None:
    failed = two_expectations()
    failed.cells[0].outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[]))
    with pytest.raises(AssertionError):
        check_outputs(failed)


def test_the_committed_outputs_are_those_of_one_run(notebook: NotebookNode) -> None:
    check_outputs(notebook)
    pictures = [output for cell in code(notebook) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 20


def wording(cell: NotebookNode) -> str:
    """What a cell printed, but for its numbers, which machines round otherwise."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", printed(cell))


def changed(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells with something to change, each with its change."""
    cells = [cell for cell in code(notebook) if cell.id.endswith("-expect")]
    assert [cell.id for cell in cells] == list(CHANGES)
    assert [cell.id for cell in cells if cell.source.count(CHANGES[cell.id][0]) != 1] == []
    return [nbformat.v4.new_code_cell(cell.source.replace(*CHANGES[cell.id])) for cell in cells]


def test_there_is_a_change_for_every_section(notebook: NotebookNode) -> None:
    sections = sum(len(re.findall(r"^## \d+ · ", text, re.MULTILINE)) for text in texts(notebook))
    assert len(changed(notebook)) == sections


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_and_every_expectation_holds_with_and_without_changes(
    notebook: NotebookNode,
) -> None:
    """The changed cells are run after all others, in their order and backwards, as a reader might come to them."""
    together = nbformat.from_dict(notebook)
    together.cells += [*changed(notebook), *reversed(changed(notebook))]
    executed = execute(together)
    check_outputs(executed)
    own = code(notebook)
    assert [wording(cell) for cell in own] == [wording(cell) for cell in code(executed)[: len(own)]]
