"""`dmd extract` in processes of this machine, and how the command ends, here or on a cluster."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from cluster.ray_runtime.stopping import StopRequests, stop_requests
from data_shards.clip_sets.command import ClipProgress, extract_clips
from data_shards.clip_sets.one_clip import LoadStates
from data_shards.cores import usable_cores
from data_shards.executor import IndependentExecutor, TasksLost
from data_shards.spawned_processes import SpawnedProcesses
from dmd.exit_codes import LOST, STOPPED

OpenExecutor = Callable[[StopRequests], AbstractContextManager[IndependentExecutor]]


def extract_here(options: argparse.Namespace) -> int:
    """Extract clips in processes of this machine; returns the exit code. Raises ValueError: the user's mistakes."""
    processes = usable_cores() if options.processes is None else options.processes
    executor = SpawnedProcesses(processes=processes, attempts=1 + options.max_failures)
    return run_extraction(options, lambda stop: nullcontext(executor))


def run_extraction(options: argparse.Namespace, open_executor: OpenExecutor) -> int:
    """Extract clips; returns the exit code.

    Raises:
        ValueError: the user's mistakes.
    """
    running: list[ClipProgress] = []
    with stop_requests() as stop:
        try:
            with open_executor(stop) as executor:
                return extract_clips(options, executor, load_states=_load_states, watch=running.append)
        except KeyboardInterrupt:
            why, code = "stopped on request", STOPPED
        except TasksLost as error:
            why, code = str(error), LOST
    done = running[0].with_features if running else 0
    print(f"{why}; clips with features: {done} ({options.out}); the same command continues")
    return code


def _load_states() -> LoadStates:
    """What loads an encoder, with PyTorch, which other texts need not."""
    from dmd.extraction.text_states import load_text_states

    return load_text_states
