"""A training on one device in the caller's own process, which is left as it was: what `dmd.train` does.

The loop, the engine and the checkpoints are those of a rank that the launcher starts; there is no supervisor, so an
error is raised, and Ctrl-C asks for a stop.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from data_shards.places import Place
from data_shards.terminal import clear
from dmd.checkpoint.resume import Resume
from dmd.config import Config
from dmd.kernels.backend import default_device, float32_products
from dmd.training.callbacks import Callback
from dmd.training.outcome import Outcome
from launch.network.interfaces import choose_interfaces
from launch.network.rank_environment import rank_environment
from launch.trainer.determinism import make_deterministic, restored_determinism
from launch.trainer.host_tuning import freed_memory_kept
from launch.trainer.preflight import check_command
from launch.trainer.threads import set_threads

_STDERR = 2
_NO_PORT = 0
"""A rank that is alone meets nobody."""
_training = threading.Lock()
"""Held by the training of this process: process group, environment and random numbers are the process's own."""


def train_in_process(
    config: Config,
    data: Place,
    run: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: Resume = "auto",
    overrides: Sequence[str] = (),
) -> Outcome:
    """Train; see `dmd.train`.

    Args:
        overrides: what the caller set of the config, as `section.key=value`, for a warning where nothing reads it.
    """
    begin = time.perf_counter()
    if not _training.acquire(blocking=False):
        raise ValueError(
            "this process trains already, in another thread or around this callback, and dmd.train trains one model at "
            "a time: call it when the other call has returned, or in another process"
        )
    try:
        outcome = _train_alone(
            config,
            data,
            run.absolute(),  # a callback may change the working directory
            callbacks=callbacks,
            resume=resume,
            overrides=overrides,
        )
    finally:
        _training.release()
    print(outcome.text(run, time.perf_counter() - begin), flush=True)
    return outcome


def _train_alone(
    config: Config,
    data: Place,
    run: Path,
    *,
    callbacks: Sequence[Callback],
    resume: Resume,
    overrides: Sequence[str],
) -> Outcome:
    """Train while no other thread of this process does."""
    if dist.is_available() and dist.is_initialized():
        raise ValueError(
            "this process is in a process group already, and dmd.train makes one of its own: leave it with "
            "torch.distributed.destroy_process_group(), or train on several ranks with `dmd train --ranks N`"
        )
    with _as_before(default_device()):
        check_command(config, data, run, resume=resume, overrides=overrides, num_ranks=1, here=True)
        if config.train.deterministic:
            make_deterministic(os.environ)
        timeout = timedelta(seconds=config.train.collective_timeout)
        with _alone(timeout) as device, freed_memory_kept() if device.type == "cpu" else nullcontext():
            return _train(config, data, run, device, callbacks=callbacks, resume=resume)


def _train(
    config: Config,
    data: Place,
    run: Path,
    device: torch.device,
    *,
    callbacks: Sequence[Callback],
    resume: Resume,
) -> Outcome:
    """Train as the only rank of the process group."""
    from launch.trainer.build import make_training

    set_threads(run, device)
    interrupts = _Interrupts()
    training = make_training(
        config, data, run, device=device, resume=resume, stop_requested=lambda: interrupts.asked, callbacks=callbacks
    )
    try:
        with interrupts:
            return training.run()
    finally:
        training.reader.close()


@contextmanager
def _as_before(device: torch.device) -> Iterator[None]:
    """Restore after the block what a rank changes of its process: environment, threads and switches of torch, its
    random numbers, how errors are printed, the level of DeepSpeed's log."""
    environment = dict(os.environ)
    threads = torch.get_num_threads()
    deepspeed_log = logging.getLogger("DeepSpeed")
    level = deepspeed_log.level
    told_by = sys.excepthook  # torch's says the rank before each line of a traceback
    try:
        os.environ |= rank_environment(rank=0, ranks=1, port=_NO_PORT, local_rank=device.index or 0)
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        choose_interfaces(os.environ)
        with (
            restored_determinism(),
            float32_products(tf32=False),
            torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]),
        ):
            yield
    finally:
        deepspeed_log.setLevel(level)
        sys.excepthook = told_by
        torch.set_num_threads(threads)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ |= environment


@contextmanager
def _quiet_linker() -> Iterator[None]:
    """Nothing is printed by processes that are started in the block. DeepSpeed asks a linker which libraries are there,
    and in a notebook silences another descriptor than the linker's."""
    own, nowhere = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        os.dup2(own, _STDERR)
        os.close(own)
        os.close(nowhere)


@contextmanager
def _alone(timeout: timedelta) -> Iterator[torch.device]:
    """A process group of this process alone, which is left after the block; it listens to nobody."""
    from launch.trainer.deepspeed_library import deepspeed, get_accelerator
    from launch.trainer.engine import join_process_group

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # its import has set another
    backend = get_accelerator().communication_backend_name()
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        with _quiet_linker():
            device = join_process_group(timeout)
        yield device
    finally:
        if deepspeed.comm.is_initialized():  # lets go of its own groups, too
            deepspeed.comm.destroy_process_group()
        else:
            dist.destroy_process_group()


class _Interrupts:
    """In its block Ctrl-C asks for a stop, and a second one is KeyboardInterrupt.

    Signals reach the main thread alone; in another one, and where the program ignores SIGINT, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether it has."""
        self._previous: Any = None

    def __enter__(self) -> None:
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(previous):
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True
        said = f"{clear(sys.stderr)}Ctrl-C: stopping after a checkpoint; a second one ends at once\n"
        with suppress(OSError):  # not by a stream, which this may have interrupted in a write
            os.write(_STDERR, said.encode())
