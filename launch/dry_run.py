"""`dmd train --dry-run`: what a training is, takes and writes, from its shards and a few timed steps; starts none."""

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_shards.format.schema import DatasetInfo
from data_shards.progress import duration
from data_shards.reading.index import ShardIndex
from data_shards.units import size_text
from dmd.checkpoint.format import checkpoint_paths, read_state
from dmd.checkpoint.resume import choose_checkpoint, parse_resume
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.standing import finished_at
from dmd.config import Config
from dmd.config.loading import all_keys, config_to_dict
from dmd.data.plan import EpochPlan
from dmd.data.targets import resolve_task
from dmd.exit_codes import FAILED, MEMORY
from dmd.training.step import make_plan
from launch.starting.rank_layout import RankLayout
from launch.trainer.timed_steps import StepFacts, TimingRequest, time_steps

_time = partial(duration, fine=True)
_WIDTH = 12
_NO_MEMORY = re.compile(r"was killed|OutOfMemoryError|MemoryError|can't allocate memory")
"""In what is said of a lost process, where it stands for a lack of memory."""
_IN_THE_MAKING = 1
"""Checkpoints that are there beside those that are kept, while the next one is written."""


def dry_run(config: Config, options: argparse.Namespace, layout: RankLayout) -> int:
    """Print what the training of a checked command line would be; returns the exit code.

    Raises:
        ValueError: as the training would.
    """
    index = ShardIndex.load(options.data)
    changed = _changed(config)
    config = resolve_task(config, index.info)
    plan = make_plan(config, index.num_samples("train"), layout.num_ranks)
    done = _steps_done(options.run, parse_resume(options.resume))
    _print("shards", _shards(index))
    _print("config", f"{_origins(options)}; task {config.model.task}; {changed} are not the default")
    _print("ranks", _ranks(plan, layout))
    _print("steps", _steps(config, plan))
    _print("starts", _start(options.run, done, made=options.run_is_made))
    left = _all_steps(config, plan) - done
    if left <= 0 or finished_at(options.run) == done > 0:
        return 0
    print("Timing steps of one rank here; the first line comes when the first step has ended:", flush=True)
    ranks_here = layout.ranks if layout.hosts is None else max(layout.hosts.slots.values())
    request = TimingRequest(
        config=config,
        data=options.data.absolute(),
        run=options.run.absolute(),
        ranks=layout.num_ranks,
        ranks_here=ranks_here,
    )
    facts = time_steps(request)
    if isinstance(facts, str):
        short = _NO_MEMORY.search(facts) is not None
        fix = "; train.ghost_batches_per_forward=1 takes the least" if short else ""
        print(f"dmd train: error: steps could not be timed: {facts}{fix}", file=sys.stderr)
        return MEMORY if short else FAILED
    for what, text in _measured(config, plan, facts, left=left):
        _print(what, text)
    _print("writes", _writes(config, options.run, facts))
    _print("measured", _what_was_measured(plan, layout, config))
    return 0


def _print(what: str, text: str) -> None:
    """A line; on a terminal as many as its width asks for."""
    line = f"{what:<{_WIDTH}}{text}"
    if sys.stdout.isatty():
        line = textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent=" " * _WIDTH)
    print(line, flush=True)


def _shards(index: ShardIndex) -> str:
    info = index.info
    counts = ", ".join(f"{split} {count}" for split, count in info.counts.items())
    return f"{index.root}: {info.name}, {counts} samples; {_shapes(info)}"


def _shapes(info: DatasetInfo) -> str:
    """Steps and dimension of each modality."""
    sizes = {modality: f"{info.lengths[modality]} x {dim}" for modality, dim in info.dims.items()}
    if info.text_kind == "tokens":
        sizes["text"] = f"{info.lengths['text']} tokens"
    return ", ".join(f"{modality} {size}" for modality, size in sizes.items())


def _changed(config: Config) -> str:
    """How many values of a config are not the default, of how many."""
    values, defaults = config_to_dict(config), config_to_dict(Config())
    keys = [key.split(".") for key in all_keys()]
    changed = sum(values[section][name] != defaults[section][name] for section, name in keys)
    return f"{changed} of {len(keys)} values"


def _origins(options: argparse.Namespace) -> str:
    """Where a config comes from."""
    origins = {"preset": options.preset, "file": options.config, "words": " ".join(options.overrides)}
    return ", ".join(f"{what} {value}" for what, value in origins.items() if value) or "the defaults"


def _ranks(plan: EpochPlan, layout: RankLayout) -> str:
    where = "this machine" if layout.hosts is None else f"{len(layout.hosts.slots)} hosts"
    step = f"{plan.ghost_batches_per_step} ghost batches of {plan.ghost_batch_size} samples a step"
    if plan.sharers:
        most = max(map(len, plan.sharers))
        return f"{plan.num_ranks} on {where}; {step}, each shared by up to {most} ranks"
    most = -(-plan.ghost_batches_per_step // plan.num_ranks)
    return f"{plan.num_ranks} on {where}; {step}, {'all of them' if plan.num_ranks == 1 else f'up to {most} a rank'}"


def _all_steps(config: Config, plan: EpochPlan) -> int:
    """Steps of the training at most."""
    train = config.train
    by_epochs = train.epochs * plan.num_steps
    return by_epochs if train.max_steps is None else min(by_epochs, train.max_steps)


def _steps(config: Config, plan: EpochPlan) -> str:
    train = config.train
    limit = "" if train.max_steps is None else f", train.max_steps={train.max_steps}"
    return (
        f"{plan.num_steps} an epoch, {_all_steps(config, plan)} at most ({train.epochs} epochs{limit}); fewer where "
        f"{train.early_stop} epochs bring no better validation loss"
    )


def _steps_done(run: Path, resume: "str | int") -> int:
    """The step that the training would continue from; 0: a new one."""
    path, _ = choose_checkpoint(run / CHECKPOINTS, resume)  # type: ignore[arg-type]
    if path is None:
        return 0
    return next(step for step, there in checkpoint_paths(run / CHECKPOINTS).items() if there == path)


def _start(run: Path, done: int, *, made: bool) -> str:
    if made:
        return f"anew, in {run} or the next name that is free then"
    if done == 0:
        return f"anew, in {run}"
    if finished_at(run) == done:
        return f"nothing: {run} is finished, at step {done}"
    cursor = read_state(checkpoint_paths(run / CHECKPOINTS)[done])["cursor"]
    return f"at step {done} of {run} (epoch {cursor['epoch']}, step {cursor['step']} in it)"


def _measured(config: Config, plan: EpochPlan, facts: StepFacts, *, left: int) -> Iterator[tuple[str, str]]:
    """What a step takes, and what follows from it."""
    trained, sizes = facts.sizes.trained_bytes, facts.sizes
    yield "network", f"{sizes.parameters:,} parameters; {trained // 4:,} are trained"
    activations = max(0, facts.peak - sizes.state_bytes - trained - facts.optimizer)
    libraries = f", beside {size_text(facts.libraries)} of libraries" if facts.libraries else ""
    yield (
        "memory",
        f"{size_text(facts.peak)} of a rank at most{libraries}: weights {size_text(sizes.state_bytes)}, gradients "
        f"{size_text(trained)}, Adam {size_text(facts.optimizer)}; the rest, {size_text(activations)}, is activations "
        "and data",
    )
    passes = f"{facts.passes} pass{'es' * (facts.passes > 1)} of {facts.at_once} ghost batches"
    yield (
        "step",
        f"{_time(facts.step)} ({len(facts.seconds)} timed, {_time(min(facts.seconds))} to "
        f"{_time(max(facts.seconds))}; the first {_time(facts.first)}): {passes} on {facts.device} with "
        f"{facts.threads} threads, kernels {facts.kernels}, {facts.precision}",
    )
    epoch = plan.num_steps * facts.step + facts.validation
    yield "epoch", f"{_time(epoch)}, of which {_time(facts.validation)} are the validation"
    total = left * facts.step + -(-left // plan.num_steps) * facts.validation
    yield "training", f"{_time(total)} at most, for {left} steps"


def _writes(config: Config, run: Path, facts: StepFacts) -> str:
    one = sum(facts.checkpoint.values())
    kept = config.train.keep_checkpoints + 1
    there = next(path for path in (run, *run.absolute().parents) if path.exists())
    most = size_text((kept + _IN_THE_MAKING) * one)
    return (
        f"{run}: checkpoints of {size_text(one)}, {kept} of them and one in the making at most, {most}; logs and "
        f"run.json beside them; {size_text(shutil.disk_usage(there).free)} are free"
    )


def _what_was_measured(plan: EpochPlan, layout: RankLayout, config: Config) -> str:
    cores = f"{os.cpu_count()} cores"
    if plan.num_ranks == 1:
        return f"steps of this training, on this machine ({cores}) as busy as it is; epochs are extrapolated"
    of_zero = " and memory that ZeRO divides" if config.train.zero_stage else ""
    elsewhere = "" if layout.hosts is None else " Other hosts count as fast as this one."
    return (
        f"one of {plan.num_ranks} ranks, alone on this machine ({cores}). Not in it: gradients on their way between "
        f"ranks, ranks that wait for each other or compete for memory{of_zero}.{elsewhere}"
    )
