"""Arguments of a training, the same for `dmd train` and for the script that the launcher runs."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from data_shards.command_line import Parser
from data_shards.places import place_option
from dmd.config.options import add_config_options, add_print_config, key_hint, require_options
from launch.made_runs import choose_run

_RUN = "directory of the run: all it writes (default: runs/PRESET-001, or the next number that is free)"


def make_parser(prog: str | None = None, *, examples: Sequence[str] = ()) -> Parser:
    """The parser of both commands."""
    parser = Parser(
        prog=prog,
        description="Train DMD on shards with DeepSpeed. With --run the same command again continues the run.",
        examples=examples,
        hint=key_hint,
    )
    add_config_options(parser)
    parser.add_argument("--data", type=place_option, metavar="SHARDS", help="what `dmd shard` wrote")
    parser.add_argument("--run", type=Path, metavar="RUN", help=_RUN)
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|STEP",
        help="auto (default): from the newest whole checkpoint, if there is one; never: reject a run directory with "
        "checkpoints; STEP: from that one, discarding later ones",
    )
    return parser


def parse_rank(argv: Sequence[str]) -> argparse.Namespace:
    """The options of `launch/train.py`, the script that the launcher runs on every rank."""
    parser = make_parser()
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher appends it
    options = parser.parse_intermixed_args(argv)
    require_options(parser, options, ["data"])
    if options.run is None:
        parser.error("every rank needs the same directory, and none can make up its name: give --run RUN")
    return options


def parse_train(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The options of `dmd train`, by its parser or one with more options; `command` is what the user typed."""
    options = parser.parse_intermixed_args(argv)
    options.command = shlex.join(["dmd", "train", *argv])
    require_options(parser, options, ["data"])
    if options.run is None and options.host_rank is not None:
        parser.error("the commands of all hosts need the same directory, and none can make up its name: give --run RUN")
    choose_run(options)
    return options


def train_parser() -> Parser:
    """The parser of `dmd train`, where ranks are started from here; a Ray cluster has more (`cluster.parsers`)."""
    parser = make_parser(
        "dmd train",
        examples=[
            "dmd train --preset mosi-aligned --data shards/mosi --ranks 2 train.seed=1112",
            "dmd train --config runs/first/run.json --data shards/mosi --run runs/again --dry-run",
        ],
    )
    add_print_config(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check all, time a few steps on this machine, say what a training takes and writes; start none",
    )
    parser.add_argument("--ranks", type=int, help="processes on this machine (default: one per GPU, on a CPU one)")
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="start again from the newest checkpoint when a rank or a host is lost, N times in total (default: 0)",
    )
    parser.add_argument(
        "--min-ranks",
        type=int,
        metavar="M",
        help="restart on the hosts that are left, if they hold M ranks (default: as many as before)",
    )
    parser.add_argument(
        "--patience",
        type=int,
        default=600,
        metavar="S",
        help="seconds that a restart waits for hosts, or for room on a Ray cluster (default: 600)",
    )
    several = parser.add_argument_group("several hosts", "a hostfile has one `NAME slots=RANKS` per line, rank 0 first")
    several.add_argument("--hosts", type=Path, metavar="HOSTFILE", help="start the ranks of all hosts through ssh")
    several.add_argument(
        "--host-rank",
        type=int,
        metavar="N",
        help="start the ranks of this host alone, the N-th of the hostfile from 0: one such command per host, no ssh",
    )
    several.add_argument("--port", type=int, help="TCP port on rank 0's host (default: 29500; one host: a free one)")
    several.add_argument("--ssh-port", type=int, help="where sshd listens (default: as ssh says)")
    return parser


def check_restarts(options: argparse.Namespace) -> None:
    """Raise ValueError unless `--restarts`, `--min-ranks` and `--patience` go together."""
    if options.restarts < 0:
        raise ValueError(f"--restarts is {options.restarts}; it must be at least 0")
    if options.patience < 1:
        raise ValueError(f"--patience is {options.patience}; it must be at least 1")
    if options.min_ranks is not None and not options.restarts:
        raise ValueError(f"--min-ranks is {options.min_ranks} without --restarts; say how many restarts there may be")


def rank_arguments(options: argparse.Namespace) -> list[str]:
    """The command line of a rank for parsed options; paths become absolute, ranks may start elsewhere.

    Everybody on a host can read it in the process list, so a URL is redacted there; `launch.starting.private_variables`
    carries it in full.
    """
    arguments = ["--data", str(options.data.absolute()), "--run", str(options.run.absolute())]
    arguments += ["--resume", options.resume]
    if options.preset is not None:
        arguments += ["--preset", options.preset]
    if options.config is not None:
        arguments += ["--config", str(Path(options.config).absolute())]
    return [*arguments, *options.overrides]
