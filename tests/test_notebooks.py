"""examples/: notebooks that run as they stand, with the outputs that the repository shows."""

import base64

import pytest

from tests.support.imports import ROOT
from tests.support.notebooks import NOTEBOOKS, execute, kinds, read

LARGEST_PICTURE = 60_000
"""Bytes."""


def test_every_notebook_is_executed():
    assert sorted(path.name for path in (ROOT / "examples").glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_whole_and_small(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", ())]
    assert pictures
    assert all(len(base64.b64decode(picture)) < LARGEST_PICTURE for picture in pictures)
    assert str(ROOT) not in str(outputs)


@pytest.mark.slow
def test_the_notebooks_run(tmp_path, monkeypatch):
    """One after the other, in an empty directory; each cell puts out what the repository shows of it."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    for name in NOTEBOOKS:
        for stored, cell in zip(read(name).cells, execute(name, tmp_path).cells, strict=True):
            assert kinds(stored) == kinds(cell), cell.source
