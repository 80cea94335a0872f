"""Subcommands of `dmd` that start ranks: train, demo."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def train(argv: list[str]) -> int:
    """Train DMD on shards with DeepSpeed; the same command again continues the run."""
    from launch.train import make_parser

    parser = make_parser("dmd train")
    parser.add_argument("--ranks", type=int, help="processes on this machine (default: one per GPU, on a CPU one)")
    options = parser.parse_args(argv)
    return _train(options)


def _train(options: argparse.Namespace) -> int:
    from dmd.presets import load_config
    from launch.runner import default_ranks, run_launcher
    from launch.setup import check_training, open_shards

    ranks = default_ranks() if options.ranks is None else options.ranks
    if ranks < 1:
        raise ValueError(f"--ranks is {ranks}; it must be at least 1")
    config = load_config(options.preset, options.overrides)
    with open_shards(options.data, config) as reader:
        check_training(config, reader, options.run, ranks)
    arguments = ["--data", options.data, "--run", str(options.run), *options.overrides]
    if options.preset is not None:
        arguments = ["--preset", options.preset, *arguments]
    return run_launcher(ranks, arguments)


def demo(argv: list[str]) -> int:
    """Made-up data, shards, a training on two ranks, a test result: the whole way in minutes."""
    parser = argparse.ArgumentParser(prog="dmd demo", description=demo.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where to write (default: a new temporary directory)")
    parser.add_argument("--ranks", type=int, default=2, help="default: 2")
    options = parser.parse_args(argv)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="dmd-demo-"))
    shards, run = folder / "shards", folder / "run"
    steps = (
        ["shard", "--synthetic", str(shards)],
        ["verify", str(shards)],
        ["train", "--preset", "demo", "--data", str(shards), "--run", str(run), "--ranks", str(options.ranks)],
        ["evaluate", str(run), "--split", "test"],
    )
    for step in steps:
        print(f"\n$ dmd {' '.join(step)}", flush=True)
        code = subprocess.run([sys.executable, "-m", "dmd.cli", *step]).returncode
        if code:
            return code
    print(f"\nLogs: {sys.executable} -m tensorboard.main --logdir {run}")
    return 0
