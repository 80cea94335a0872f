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
