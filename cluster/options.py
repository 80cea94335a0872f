"""Command-line options that the commands of this floor share, and what they check."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from cluster.ray_runtime.resources import TrialSize, parse_ranks
from cluster.ray_runtime.session import chosen_address
from cluster.ray_runtime.trial import TrialOptions
from data_shards.places import Place, place_option
from data_shards.reading.reader import ShardReader
from dmd.config import Config
from dmd.config.loading import load_config, preset_names


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that trains on a Ray cluster."""
    parser.add_argument("--preset", help=f"one of {', '.join(preset_names())}, or a YAML file; none: the defaults")
    parser.add_argument("--data", required=True, type=place_option, metavar="SHARDS", help="what `dmd shard` wrote")
    parser.add_argument("--out", required=True, type=Path, metavar="EXPERIMENT", help="directory of the experiment")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="config values of every trial")
    group = parser.add_argument_group("cluster")
    group.add_argument("--address", help="a Ray cluster, host:port or auto (default: RAY_ADDRESS, else a local one)")
    group.add_argument("--cpus", type=int, metavar="N", help="CPUs of the local cluster (default: all)")
    group.add_argument("--ranks-per-trial", default="1", metavar="N", help="or MIN:MAX, elastic (default: 1)")
    group.add_argument("--cpus-per-rank", type=float, default=1.0, metavar="N", help="default: 1")
    group.add_argument("--gpus-per-rank", type=float, metavar="N", help="default: 1 where the cluster has GPUs, else 0")
    group.add_argument("--concurrent", type=int, metavar="N", help="trials at once (default: what fits)")
    group.add_argument("--max-failures", type=int, default=3, metavar="N", help="restarts of a trial (default: 3)")
    group.add_argument("--patience", type=int, default=600, metavar="S", help="without room for any (default: 600)")
    group.add_argument("--verbose", action="store_true", help="show what Ray and the ranks print")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the shared options ask for, checked without a cluster."""

    config: Config
    data: Place
    """Absolute path or URL of the shards."""
    out: Path
    address: str | None
    cpus: int | None
    ranks: tuple[int, int]
    cpus_per_rank: float
    gpus_per_rank: float | None
    concurrent: int | None
    max_failures: int
    patience: int
    verbose: bool

    def trial_options(self, data: Path, *, gpus: bool) -> TrialOptions:
        """What every trial shares, on a cluster that has GPUs or not.

        Raises:
            ValueError: an impossible trial size.
        """
        # Of this machine's own cluster; ranks of another have the environment of their nodes.
        on_cpu = chosen_address(self.address) is None and os.environ.get("DS_ACCELERATOR") == "cpu"
        if on_cpu and self.gpus_per_rank:
            raise ValueError(
                f"--gpus-per-rank is {self.gpus_per_rank:g}, but DS_ACCELERATOR=cpu keeps ranks on the CPU; unset one"
            )
        per_rank = (1.0 if gpus and not on_cpu else 0.0) if self.gpus_per_rank is None else self.gpus_per_rank
        size = TrialSize(
            min_ranks=self.ranks[0], max_ranks=self.ranks[1], cpus_per_rank=self.cpus_per_rank, gpus_per_rank=per_rank
        )
        return TrialOptions(
            data=str(data), ray_storage=str(self.out / "ray"), size=size, max_failures=self.max_failures
        )


def read_request(options: argparse.Namespace) -> Request:
    """Check the shared options.

    Raises:
        ValueError: a value out of range, or anything that `load_config` refuses.
    """
    for name, least in (("cpus", 1), ("concurrent", 1), ("max_failures", 0), ("patience", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; give a directory for the experiment")
    config = load_config(options.preset, options.overrides)
    encoder = Path(config.text.encoder)
    if not encoder.is_absolute() and encoder.is_dir():
        raise ValueError(f"text.encoder is {encoder}; ranks run elsewhere, give the absolute path {encoder.absolute()}")
    return Request(
        config=config,
        data=options.data.absolute(),
        out=options.out.absolute(),
        address=options.address,
        cpus=options.cpus,
        ranks=parse_ranks(options.ranks_per_trial),
        cpus_per_rank=options.cpus_per_rank,
        gpus_per_rank=options.gpus_per_rank,
        concurrent=options.concurrent,
        max_failures=options.max_failures,
        patience=options.patience,
        verbose=options.verbose,
    )


def check_test_split(reader: ShardReader) -> None:
    """Raise ValueError unless the shards have what a final evaluation needs."""
    if reader.index.num_samples("test") == 0:
        raise ValueError(f"{reader.index.root} has no test split, which the final result needs; shard a file with one")
