"""Subcommands of `dmd` that need the network but no launcher: evaluate."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

METRIC_NAMES = {
    "mae": "MAE", "corr": "Corr", "acc7": "Acc7", "acc5": "Acc5", "acc3": "Acc3", "acc2_has0": "Acc2 Has0",
    "f1_has0": "F1 Has0", "acc2_non0": "Acc2 Non0", "f1_non0": "F1 Non0",
}  # fmt: skip


def evaluate(argv: list[str]) -> int:
    """Print all metrics of a trained run on a split, for each of the eight heads."""
    parser = argparse.ArgumentParser(prog="dmd evaluate", description="Evaluate the best checkpoint of a run.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--data", metavar="SHARDS", help="other shards than those of the training")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"], help="default: test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the work (default: 1)")
    options = parser.parse_args(argv)
    if options.ranks < 1:
        raise ValueError(f"--ranks is {options.ranks}; it must be at least 1")
    if options.ranks > 1 and "RANK" not in os.environ:
        command = ["--standalone", "--nproc-per-node", str(options.ranks), "-m", "dmd.cli", "evaluate", *argv]
        cores = str(max(1, len(os.sched_getaffinity(0)) // options.ranks))
        environment = {"OMP_NUM_THREADS": cores, **os.environ}
        return subprocess.run([sys.executable, "-m", "torch.distributed.run", *command], env=environment).returncode
    return _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    import torch.distributed as dist

    from dmd.training.restore import evaluate_run

    if options.ranks > 1:
        dist.init_process_group()
    result = evaluate_run(options.run, data=options.data, split=options.split)
    leads = options.ranks == 1 or dist.get_rank() == 0
    if leads:
        print(metrics_table(result["metrics"]))
        print(f"{result['split']} split, {result['samples']} samples, checkpoint of step {result['step']}")
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.ranks > 1:
        dist.destroy_process_group()
    return 0


def metrics_table(metrics: dict[str, dict[str, float]]) -> str:
    """Heads down, metrics across."""
    lines = ["head           " + " ".join(f"{title:>9}" for title in METRIC_NAMES.values())]
    for head, values in metrics.items():
        lines.append(f"{head:<14} " + " ".join(f"{values[key]:9.4f}" for key in METRIC_NAMES))
    return "\n".join(lines)
