"""Cores: by affinity, and by what a cgroup's quota leaves."""

import os
import subprocess
import sys

from data_shards.cores import _quota, usable_cores


def test_cores_are_those_that_the_process_may_use(tmp_path):
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from data_shards.cores import usable_cores; print(usable_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
    assert _quota(tmp_path) == float("inf")
    for content, cores in (("150000 100000", 1.5), ("max 100000", float("inf")), ("odd", float("inf"))):
        (tmp_path / "cpu.max").write_text(content)
        assert _quota(tmp_path) == cores
    old = tmp_path / "old"
    old.mkdir()
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert _quota(old) == float("inf")
