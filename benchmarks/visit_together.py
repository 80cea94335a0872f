"""Stages of a visit that measure no time, all at once, each under its own limit.

    python3 -m benchmarks.visit_together smoke tests trainings sanitizer

`benchmarks.visit` runs it as its stage `together`. Each stage writes to its own log; a line says when one has ended.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.visit import Settings, last_line, settings_of
from benchmarks.visit_stages import Stage


def run(stage: Stage, settings: Settings) -> int:
    """Run a stage and report how it ended; its exit code, 124 where its limit has cut it off."""
    log, began = settings.results / f"{stage.name}.txt", time.monotonic()
    with log.open("wb") as output:
        command = ["timeout", "-k", "2", str(stage.limit), "sh", "-c", settings.command(stage)]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output).returncode
    print(f"{stage.name}: {code} after {time.monotonic() - began:.0f} s: {last_line(log)}", flush=True)
    return code


def main() -> int:
    """Run the stages that are named; 1: one did not end with 0."""
    settings = settings_of({**os.environ, "STAGES": " ".join(sys.argv[1:])})
    stages = [stage for stage in settings.stages if stage.name in sys.argv[1:]]
    with ThreadPoolExecutor(len(stages)) as pool:
        codes = list(pool.map(lambda stage: run(stage, settings), stages))
    print("; ".join(f"{stage.name} {code}" for stage, code in zip(stages, codes, strict=True)))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
