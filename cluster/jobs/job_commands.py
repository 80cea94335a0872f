"""The commands that a job can run: one row each. `dmd submit` checks a command line by its row before it is sent.

A new one is a function that checks its options and a row of `JOB_COMMANDS`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.extraction.parser import parse_extract
from cluster.parsers import evaluate_parser, parse_experiment, parse_tune, predict_parser, train_parser
from cluster.sharding.parser import parse_shard
from data_shards.places import Place, to_place
from data_shards.shard_options import FILE_OPTIONS
from data_shards.text.options import makes_text
from dmd.commands import parts_order
from dmd.config.loading import load_config
from dmd.config.options import config_of
from dmd.report.commands import report_parser
from launch.arguments import parse_train

_LARGEST_FILE = 2**20
_TRACKERS = "train.trackers="


@dataclass(frozen=True, kw_only=True)
class JobCommand:
    """A command of `dmd` that runs as a job."""

    parse: Callable[[list[str]], argparse.Namespace]
    """Raises ValueError or SystemExit for mistakes."""
    named_files: Callable[[argparse.Namespace], list[Path]]
    """Raises ValueError for options that mean nothing on the cluster; gives the files that they name and that a job may
    be given."""
    added: tuple[str, ...] = ()
    """Options that the job adds."""

    def uploads(self, root: Path, arguments: list[str]) -> list[Path]:
        """Files in the checkout `root` that a command line names. The line is checked on the way.

        Raises:
            ValueError: the command's mistakes; a file that is not there or large. SystemExit: as argparse.
        """
        options = self.parse([*self.added, *arguments])
        for here in ("print_config", "dry_run"):
            if getattr(options, here, False):
                raise ValueError(f"--{here.replace('_', '-')} needs no cluster; leave `submit` out")
        if self.added and options.address != IN_JOB:
            raise ValueError(f"--address {options.address} in a job, which works on its own cluster; leave it out")
        relative = [path for path in self.named_files(options) if not path.is_absolute()]
        for path in relative:
            if not (root / path).is_file():
                raise ValueError(f"there is no {path} in {root}, which is what the job gets")
            if (root / path).stat().st_size > _LARGEST_FILE:
                raise ValueError(f"{path} has more than 1 MiB; put it on the shared storage and name it there")
        return relative

    def trackers(self, root: Path, arguments: list[str]) -> Sequence[str]:
        """The trackers that a command line, which `uploads` has checked, asks for. A config file that only the cluster
        has cannot name them."""
        options = self.parse([*self.added, *arguments])
        if not hasattr(options, "overrides"):
            return ()
        file = None if options.config is None else root / options.config
        if file is None or file.is_file():
            return load_config(options.preset, options.overrides, file=file).train.trackers
        return load_config(None, [word for word in options.overrides if word.startswith(_TRACKERS)]).train.trackers


def _tune_files(options: argparse.Namespace) -> list[Path]:
    return [options.space, *_experiment_files(options)]


def _experiment_files(options: argparse.Namespace) -> list[Path]:
    check_places({"--data": options.data, "--out": to_place(options.out)})
    return _config_files(options)


def _train_files(options: argparse.Namespace) -> list[Path]:
    from cluster.request import check_train_options, train_request

    if options.run_is_made:
        raise ValueError("a job's own directory goes with it; give --run, an absolute path on the shared storage")
    check_places({"--data": options.data, "--run": to_place(options.run)})
    check_train_options(options)
    files = _config_files(options)
    if not files:
        train_request(options)
    return files


def _shard_files(options: argparse.Namespace) -> list[Path]:
    makes_text(options)
    others = {f"--{name.replace('_', '-')}": getattr(options, name) for name in FILE_OPTIONS}
    others["--word-vectors"] = options.word_vectors
    if options.tokenizer is not None and Path(options.tokenizer).exists():  # any other is a name on the hub
        others["--tokenizer"] = options.tokenizer
    for path in options.features:
        check_places({"FEATURES": to_place(path)})
    check_places({name: to_place(path) for name, path in others.items() if path})
    check_places({"SHARDS": options.shards})
    return []


def _extract_files(options: argparse.Namespace) -> list[Path]:
    optional = {"--labels": options.labels, "--transcripts": options.transcripts, "--face-model": options.face_model}
    check_places({"CLIPS": to_place(options.clips), "OUT": to_place(options.out)})
    check_places({name: to_place(path) for name, path in optional.items() if path is not None})
    _check_encoder(options)
    return []


def _predict_files(options: argparse.Namespace) -> list[Path]:
    from cluster.prediction.request import pool_request

    _check_encoder(options)
    pool_request(options)
    order = parts_order(options)  # so there is one input, and an output
    for model in order.models:
        check_places({"RUN": to_place(model)})
    check_places({"SHARDS": options.inputs[-1], "--out": options.out})
    if options.calibration is not None:
        check_places({"--calibration": options.calibration})
    return []


def _evaluate_files(options: argparse.Namespace) -> list[Path]:
    from cluster.prediction.request import evaluation_request

    optional = {"--data": options.data, "--json": options.json}
    for run in options.runs:
        check_places({"RUN": to_place(run)})
    check_places({name: to_place(value) for name, value in optional.items() if value is not None})
    _check_encoder(options)
    evaluation_request(options)
    return []


def _check_encoder(options: argparse.Namespace) -> None:
    """Raise ValueError for a path that means nothing elsewhere; the name of a model on the hub does."""
    encoder = options.text_encoder
    if encoder and Path(encoder).exists():
        check_places({"--text-encoder": to_place(encoder)})


def _report_files(options: argparse.Namespace) -> list[Path]:
    if options.out is None and len(options.runs) > 1:
        raise ValueError("a report of several runs needs --out; give an absolute path on the shared storage")
    for path in (*options.runs, *([] if options.out is None else [options.out])):
        check_places({"RUN" if path in options.runs else "--out": to_place(path)})
    check_places({} if options.data is None else {"--data": options.data})
    _check_encoder(options)
    return []


def _config_files(options: argparse.Namespace) -> list[Path]:
    if options.config is not None:
        return [Path(options.config)]
    config_of(options)
    return []


def check_places(places: dict[str, Place]) -> None:
    """Check the places that options name.

    Raises:
        ValueError: a place that means nothing elsewhere, or one whose secret everybody would see.
    """
    for option, place in places.items():
        if place.has_secret:
            raise ValueError(
                f"{option} {place} was given with a user or a query, which Ray's job list shows to everybody; "
                "configure fsspec on the nodes (FSSPEC_*, AWS_PROFILE) and give the URL alone"
            )
        if not place.is_url and not place.path.is_absolute():
            raise ValueError(f"{option} is {place}; a job runs elsewhere, give the absolute path on the shared storage")


IN_JOB = "auto"
"""Address of a job's own cluster, which RAY_ADDRESS names there."""
_ADDRESS = ("--address", IN_JOB)

JOB_COMMANDS = {
    "train": JobCommand(
        parse=lambda argv: parse_train(train_parser(), argv),
        named_files=_train_files,
        added=_ADDRESS,
    ),
    "tune": JobCommand(parse=parse_tune, named_files=_tune_files),
    "experiment": JobCommand(parse=parse_experiment, named_files=_experiment_files),
    "extract": JobCommand(parse=parse_extract, named_files=_extract_files, added=_ADDRESS),
    "shard": JobCommand(parse=parse_shard, named_files=_shard_files, added=_ADDRESS),
    "predict": JobCommand(
        parse=lambda argv: predict_parser().parse_args(argv),
        named_files=_predict_files,
        added=_ADDRESS,
    ),
    "evaluate": JobCommand(
        parse=lambda argv: evaluate_parser().parse_args(argv),
        named_files=_evaluate_files,
        added=_ADDRESS,
    ),
    "report": JobCommand(parse=lambda argv: report_parser().parse_args(argv), named_files=_report_files),
}
"""By their names, which setup.cfg lists too."""
