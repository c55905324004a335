"""Stand-ins for bundles whose every file holds one number, to tell a whole one from a mixture.

``python tests/export_generations.py TARGET`` replaces one by the next for ever, as fast as it can, for tests to kill.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it finds the packages beside it

from export.staging import replacing
from runtime.bundle import CONFORMANCE, MANIFEST

GRAPH = "unet-fp32.onnx"


def write_generation(folder: Path, number: int) -> None:
    """As much of a bundle as staging looks at: a manifest that names the graph, and ``number`` in every file."""
    folder.mkdir(exist_ok=True)
    (folder / GRAPH).write_text(f"{number} " * 10_000)
    (folder / CONFORMANCE).write_text(f"{number} " * 1_000)
    graphs = {"unet": {"fp32": {"file": GRAPH, "external_data": []}}}
    (folder / MANIFEST).write_text(json.dumps({"number": number, "graphs": graphs}))


def generation(folder: Path) -> int:
    """The one generation that every file of a whole bundle is of."""
    number: int = json.loads((folder / MANIFEST).read_text())["number"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, CONFORMANCE, GRAPH])
    assert (folder / GRAPH).read_text() == f"{number} " * 10_000
    assert (folder / CONFORMANCE).read_text() == f"{number} " * 1_000
    return number


if __name__ == "__main__":
    print("ready", flush=True)
    for count in itertools.count(1):
        with replacing(Path(sys.argv[1])) as aside:
            write_generation(aside, count)
