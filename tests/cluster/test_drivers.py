"""The processes of a trial that only wait load as little as they can: Ray starts them anew for each trial."""

import subprocess
import sys


def test_a_driver_and_a_controller_load_no_torch():
    code = "import sys, cluster.experiments.drivers; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
