"""A `dmd` command as several processes of this machine that share its work.

They meet at a file and talk over the loopback, so that nothing listens to other hosts. The first that fails ends all.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from data_shards.cores import usable_cores

STORE = "DMD_STORE"
"""Names the file."""
_LOOK_SECONDS = 0.05
_OWN_WORDS_SECONDS = 1.0
"""How long rank 0, whose stderr is the user's, may take to say the same after another rank has failed."""


def run_ranks(arguments: list[str], ranks: int) -> int:
    """Run `dmd ARGUMENTS` on that many ranks; the exit code of the first that fails, whose message is shown."""
    cores = str(max(1, usable_cores() // ranks))
    with tempfile.TemporaryDirectory(prefix="dmd-ranks-") as name:
        folder = Path(name)
        common = {"OMP_NUM_THREADS": cores, "GLOO_SOCKET_IFNAME": "lo", **os.environ, STORE: str(folder / "store")}
        common["WORLD_SIZE"] = str(ranks)
        processes = []
        for rank in range(ranks):
            with (folder / f"errors{rank}").open("wb") as errors:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "dmd.cli", *arguments],
                        env={**common, "RANK": str(rank)},
                        stderr=None if rank == 0 else errors,
                    )
                )
        try:
            failed = _first_failure(processes)
            if failed:
                with suppress(subprocess.TimeoutExpired):
                    processes[0].wait(_OWN_WORDS_SECONDS)
        finally:
            for process in processes:
                process.terminate()
                process.wait()
        if failed is None:
            return 0
        if processes[0].returncode > 0:  # it has met the same, and has said so itself
            failed = 0
        if failed > 0:
            print((folder / f"errors{failed}").read_text(errors="replace"), file=sys.stderr, end="")
        code = processes[failed].returncode
        return code if code > 0 else 128 - code


def join_ranks() -> None:
    """In a process that `run_ranks` started: join the others."""
    import torch.distributed as dist

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = f"file://{os.environ[STORE]}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=ranks, timeout=timedelta(minutes=30))


def _first_failure(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for the end of all, or of the first that fails; its number, rank 0's where several have failed."""
    while True:
        codes = [process.poll() for process in processes]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None or all(code == 0 for code in codes):
            return failed
        time.sleep(_LOOK_SECONDS)
