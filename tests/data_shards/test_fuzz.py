"""Mutated files by the thousand: see `tests.data_shards.fuzz`, which can also be run for any time."""

import json
import subprocess
import sys

CASES = {"pickles": 8000, "indexes": 2000, "forged": 500, "shards": 1500, "tars": 500}


def test_mutated_files_give_a_clear_error_or_the_right_data():
    command = [sys.executable, "-m", "tests.data_shards.fuzz"]
    for kind, cases in CASES.items():
        command += [f"--{kind}", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert {kind: sum(outcomes.values()) for kind, outcomes in counts.items()} == CASES
    for kind, outcomes in counts.items():  # mutations that are all accepted or all rejected would test nothing
        assert outcomes["error"] > 100
        assert kind == "indexes" or outcomes["right"] > 20
