"""The notebooks of examples/, executed: by a test in an empty directory, and to write their outputs anew.

python -m tests.support.notebooks    # writes the outputs of the executed notebooks into examples/
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.support.imports import ROOT

NOTEBOOKS = ("train_on_arrays.ipynb", "predict_and_features.ipynb")
"""In the order in which they are executed: the second reads what the first has written."""
PATIENCE = 300
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def read(name: str) -> NotebookNode:
    """A notebook as it is in the repository."""
    return nbformat.read(ROOT / "examples" / name, as_version=4)


def execute(name: str, folder: Path) -> NotebookNode:
    """A notebook that was executed in a folder; a cell that fails is a `CellExecutionError`."""
    notebook = read(name)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=PATIENCE, kernel_name=_KERNEL["name"], resources=resources, record_timing=False
    )
    client.execute()
    return notebook


def kinds(cell: NotebookNode) -> list[list[str]]:
    """What a cell has put out, but for what it has to warn of: `stdout`, or the types of its data."""
    found: list[list[str]] = []
    for output in cell.get("outputs", ()):
        kind = [output.name] if output.output_type == "stream" else sorted(output.data)
        if kind != ["stderr"] and found[-1:] != [kind]:
            found.append(kind)
    return found


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs whose consecutive pieces of a stream are one."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last: Any = joined[-1] if joined else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, where ipywidgets is not installed
    with tempfile.TemporaryDirectory() as folder:
        for name in NOTEBOOKS:
            executed = execute(name, Path(folder))
            executed.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
            for cell in executed.cells:
                if cell.cell_type == "code":
                    cell.outputs = _joined(cell.outputs)
            nbformat.write(executed, ROOT / "examples" / name)
