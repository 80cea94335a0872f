"""The command lines of what runs on a cluster: its own commands parse them, and `dmd submit` checks them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import dmd.commands
from data_shards.command_line import Parser
from data_shards.places import place_option
from dmd.config.options import add_config_options, add_print_config, key_hint, require_options
from launch.arguments import train_parser as launcher_parser

TUNE = "Search hyperparameters by validation loss on a Ray cluster; the same command again continues."
EXPERIMENT = "Train a preset, and ablations of it, with several seeds on a Ray cluster; one table of test results."
DEFAULT_TRIALS = 20
"""Trials of a search by `random` or `tpe`; `grid` tries every point."""
TRAIN_OPTIONS = ("cpus_per_rank", "gpus_per_rank")
"""Options of `dmd train` that need an address, here or of the job that runs the command."""
CPUS_PER_RANK = 1.0


def tune_parser() -> Parser:
    """Arguments of `dmd tune`."""
    parser = Parser(
        prog="dmd tune",
        description=TUNE,
        examples=[
            "dmd tune --preset mosi-aligned --data shards/mosi --out experiments/lr --space cluster/spaces/mosi.yaml",
            "dmd train --config experiments/lr/best.yaml --data shards/mosi --run runs/best",
        ],
        hint=key_hint,
    )
    parser.add_argument("--space", type=Path, metavar="FILE", help="YAML; see cluster/spaces")
    parser.add_argument("--trials", type=int, metavar="N", help=f"default: {DEFAULT_TRIALS}, or all points of a grid")
    parser.add_argument("--search", choices=("random", "grid", "tpe"), default="random", help="default: random")
    parser.add_argument("--search-seed", type=int, default=0, metavar="N", help="seed of random and tpe (default: 0)")
    parser.add_argument("--scheduler", choices=("asha", "none"), default="asha", help="default: asha")
    parser.add_argument("--grace", type=int, default=1, metavar="N", help="epochs that ASHA lets every trial run")
    parser.add_argument("--reduction", type=float, default=3, metavar="X", help="ASHA keeps one of X (default: 3)")
    parser.add_argument("--final-seeds", metavar="1111,...", help="train the best config with these, then test it")
    _add_shared_options(parser)
    return parser


def experiment_parser() -> Parser:
    """Arguments of `dmd experiment`."""
    parser = Parser(
        prog="dmd experiment",
        description=EXPERIMENT,
        examples=[
            "dmd experiment --preset mosi-aligned --data shards/mosi --out experiments/seeds "
            "--ablation no-graph:objective.distillation_weight=0"
        ],
        hint=key_hint,
    )
    parser.add_argument("--seeds", default="1111,1112,1113,1114,1115", help="default: 1111,...,1115")
    parser.add_argument(
        "--ablation",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE[,KEY=VALUE]",
        help="a changed copy of the preset, such as no-graph:objective.distillation_weight=0; may be repeated",
    )
    _add_shared_options(parser)
    return parser


def parse_tune(argv: Sequence[str]) -> argparse.Namespace:
    """The options of `dmd tune`."""
    parser = tune_parser()
    options = parser.parse_intermixed_args(argv)
    require_options(parser, options, ["space", "data", "out"])
    return options


def parse_experiment(argv: Sequence[str]) -> argparse.Namespace:
    """The options of `dmd experiment`."""
    parser = experiment_parser()
    options = parser.parse_intermixed_args(argv)
    require_options(parser, options, ["data", "out"])
    return options


def train_parser() -> Parser:
    """Arguments of `dmd train`: those of the launcher, and those of a Ray cluster."""
    parser = launcher_parser()
    group = parser.add_argument_group(
        "a Ray cluster", "places --ranks ranks (default: as GPUs have room, without GPUs one)"
    )
    group.add_argument("--address", help="host:port of the cluster's head, or auto; none: ranks are started from here")
    _add_rank_size(group)
    parser.set_defaults(cpus_per_rank=None)
    return parser


def _add_rank_size(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--cpus-per-rank", type=float, default=CPUS_PER_RANK, metavar="N", help="default: 1")
    group.add_argument("--gpus-per-rank", type=float, metavar="N", help="default: 1 where the cluster has GPUs, else 0")


def predict_parser() -> Parser:
    """Arguments of `dmd predict`, here or on a cluster."""
    parser = dmd.commands.predict_parser()
    _add_pool_options(parser)
    return parser


def evaluate_parser() -> Parser:
    """Arguments of `dmd evaluate`, here or on a cluster."""
    parser = dmd.commands.evaluate_parser()
    _add_pool_options(parser)
    return parser


def _add_pool_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cluster")
    group.add_argument("--address", help="a Ray cluster, host:port or auto; local: one of this machine's own")
    group.add_argument("--actors", type=int, metavar="N", help="processes that hold the model (default: what fits)")
    group.add_argument("--cpus-per-actor", type=float, metavar="N", help="default: 1")
    group.add_argument(
        "--gpus-per-actor", type=float, metavar="N", help="default: 1 where the cluster has GPUs, else 0"
    )
    group.add_argument("--patience", type=int, metavar="S", help="without an answer of any actor (default: 600)")
    group.add_argument("--verbose", action="store_true", help="show what Ray and the actors print")


def _add_shared_options(parser: Parser) -> None:
    add_config_options(parser, words="config values of every trial")
    add_print_config(parser)
    parser.add_argument("--data", type=place_option, metavar="SHARDS", help="what `dmd shard` wrote")
    parser.add_argument("--out", type=Path, metavar="EXPERIMENT", help="directory of the experiment")
    group = parser.add_argument_group("cluster")
    group.add_argument("--address", help="a Ray cluster, host:port or auto (default: RAY_ADDRESS, else a local one)")
    group.add_argument("--cpus", type=int, metavar="N", help="CPUs of the local cluster (default: all)")
    group.add_argument("--ranks-per-trial", default="1", metavar="N", help="or MIN:MAX, elastic (default: 1)")
    _add_rank_size(group)
    group.add_argument("--concurrent", type=int, metavar="N", help="trials at once (default: what fits)")
    group.add_argument("--max-failures", type=int, default=3, metavar="N", help="restarts of a trial (default: 3)")
    group.add_argument("--patience", type=int, default=600, metavar="S", help="without room for any (default: 600)")
    group.add_argument("--verbose", action="store_true", help="show what Ray and the ranks print")
