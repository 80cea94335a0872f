"""Arguments of a training, the same for `dmd train` and for the script that the launcher runs."""

import argparse
from pathlib import Path

from data_shards.places import place_option
from dmd.config.loading import preset_names


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of both commands."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Train DMD on shards with DeepSpeed. The same command again continues the run."
    )
    parser.add_argument("--preset", help=f"one of {', '.join(preset_names())}, or a YAML file; none: the defaults")
    parser.add_argument("--data", required=True, type=place_option, metavar="SHARDS", help="what `dmd shard` wrote")
    parser.add_argument("--run", required=True, type=Path, metavar="RUN", help="directory of the run: all it writes")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|STEP",
        help="auto (default): from the newest whole checkpoint, if there is one; never: reject a run directory with "
        "checkpoints; STEP: from that one, discarding later ones",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="config values, such as train.seed=7")
    return parser


def train_parser() -> argparse.ArgumentParser:
    """The parser of `dmd train`, where ranks are started from here; a Ray cluster has more (`cluster.parsers`)."""
    parser = make_parser("dmd train")
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
        is_file = options.preset.endswith((".yaml", ".yml"))
        arguments += ["--preset", str(Path(options.preset).absolute()) if is_file else options.preset]
    return [*arguments, *options.overrides]
