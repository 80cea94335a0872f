"""The command lines of `dmd tune` and `dmd experiment`: their own commands parse them, and `dmd submit` checks them."""

import argparse
from pathlib import Path

from cluster.options import add_cluster_options

TUNE = "Search hyperparameters by validation loss on a Ray cluster; the same command again continues."
EXPERIMENT = "Train a preset, and ablations of it, with several seeds on a Ray cluster; one table of test results."


def tune_parser() -> argparse.ArgumentParser:
    """Arguments of `dmd tune`."""
    parser = argparse.ArgumentParser(prog="dmd tune", description=TUNE)
    parser.add_argument("--space", required=True, type=Path, metavar="FILE", help="YAML; see cluster/spaces")
    parser.add_argument("--trials", type=int, metavar="N", help="default: 20, or all points of a grid")
    parser.add_argument("--search", choices=("random", "grid", "tpe"), default="random", help="default: random")
    parser.add_argument("--search-seed", type=int, default=0, metavar="N", help="seed of random and tpe (default: 0)")
    parser.add_argument("--scheduler", choices=("asha", "none"), default="asha", help="default: asha")
    parser.add_argument("--grace", type=int, default=1, metavar="N", help="epochs that ASHA lets every trial run")
    parser.add_argument("--reduction", type=float, default=3, metavar="X", help="ASHA keeps one of X (default: 3)")
    parser.add_argument("--final-seeds", metavar="1111,...", help="train the best config with these, then test it")
    add_cluster_options(parser)
    return parser


def experiment_parser() -> argparse.ArgumentParser:
    """Arguments of `dmd experiment`."""
    parser = argparse.ArgumentParser(prog="dmd experiment", description=EXPERIMENT)
    parser.add_argument("--seeds", default="1111,1112,1113,1114,1115", help="default: 1111,...,1115")
    parser.add_argument(
        "--ablation",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE[,KEY=VALUE]",
        help="a changed copy of the preset, such as no-graph:objective.distillation_weight=0; may be repeated",
    )
    add_cluster_options(parser)
    return parser
