"""Runs the tutorial from top to bottom and writes it back with its outputs: ``python -m tests.tutorial``, some minutes.

What is written holds nothing that differs from run to run but what was computed: no times, no traces of a machine.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "training" / "tutorial.ipynb"
LONGEST_CELL = 900  # seconds, on a machine that is busy

# Runs in the kernel before the first cell: it talks to Jupyter on this machine, and to nobody else.
NO_NETWORK = """
import socket

def at_home(connect):
    def checked(self, address):
        if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"the tutorial asked for the network: {address}")
        return connect(self, address)
    return checked

socket.socket.connect = at_home(socket.socket.connect)
socket.socket.connect_ex = at_home(socket.socket.connect_ex)
"""


def read(path: Path = NOTEBOOK) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run every cell where JupyterLab would, beside the notebook, but without a network and without data sets.

    Raises:
        CellExecutionError: a cell failed.
    """
    with TemporaryDirectory() as folder:
        startup = Path(folder, "ipython", "profile_default", "startup")
        startup.mkdir(parents=True)
        (startup / "no_network.py").write_text(NO_NETWORK)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DIFFUSION_ANYWHERE_")}
        environment = kept | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(Path(folder, "ipython"))}
        client = NotebookClient(
            notebook,
            timeout=LONGEST_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env=environment)
    return notebook


def printed(cell: NotebookNode, name: str = "stdout") -> str:
    """What a cell wrote to one of its streams."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == name)


def write(notebook: NotebookNode, path: Path = NOTEBOOK) -> None:
    """Write a notebook that was run: the memory addresses of objects are left out, and what cells and outputs say of
    themselves."""
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
            if "text" in output:
                output.text = re.sub(r" at 0x[0-9a-f]+", "", output.text)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    began = time.monotonic()
    executed = execute(read())
    write(executed)
    lines = [line for cell in executed.cells if cell.cell_type == "code" for line in printed(cell).splitlines()]
    print(*(line for line in lines if line.startswith(("✓", "✗"))), sep="\n")
    size = NOTEBOOK.stat().st_size
    print(f"{NOTEBOOK}: {time.monotonic() - began:.0f} s, {size:,} bytes", file=sys.stderr)
