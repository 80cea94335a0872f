"""How many launches a step of 160 samples makes in the form that CUDA runs, and that it waits for none of them."""

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
LAUNCHES = 700
"""At most, without a text encoder; the published code makes 88,000."""


def test_a_step_is_few_launches_and_no_wait(tmp_path):
    """Counted without a GPU; fewer samples make as many launches."""
    out = tmp_path / "launches.csv"
    command = [sys.executable, "-m", "benchmarks.launches", "mosi-aligned", "--forms", "fused", "--text", "features"]
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
    rows = list(csv.DictReader(out.open()))
    assert {row["precision"] for row in rows} == {"fp32", "bf16"}
    for row in rows:
        assert int(row["triton"]) > 100
        assert int(row["torch"]) > 100
        assert int(row["launches"]) <= LAUNCHES
        assert int(row["host_syncs"]) == 0
