"""Starts DeepSpeed's launcher for `launch/train.py` and carries signals to it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("train.py")


def default_ranks() -> int:
    """One rank per GPU of this machine; one where there is none."""
    return max(1, torch.cuda.device_count())


def run_launcher(ranks: int, arguments: list[str]) -> int:
    """Run the training script on `ranks` processes of this machine; returns its exit code.

    SIGINT and SIGTERM reach every rank: the stock launcher leaves its children alone with them (STACK.md B3).
    """
    accelerator = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    command = [
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks), "--master_port",
        str(_free_port()), str(SCRIPT), *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**accelerator, **os.environ}, start_new_session=True)

    def forward(number: int, frame: object) -> None:
        os.killpg(process.pid, number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
