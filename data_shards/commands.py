"""The subcommands of `data_shards`: `dmd shard`, `verify`, `inspect` and `index`, thin functions over the library.

Run `dmd NAME --help`. Remote places are fsspec URLs; DMD_CACHE_DIR and DMD_CACHE_BYTES set place and size limit of the
node's copies of remote shards.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data_shards.command_line import Parser
from data_shards.cores import usable_cores
from data_shards.label_options import (
    add_label_options,
    format_counts,
    labels_from_options,
    print_ignored,
    print_labels,
)
from data_shards.places import place_option
from data_shards.shard_options import option_without_effect
from data_shards.text.options import add_text_options, makes_text, plan_text, text_choice

if TYPE_CHECKING:
    from data_shards.executor import Executor
    from data_shards.format.schema import DatasetInfo
    from data_shards.sources.arrays import HeldArrays
    from data_shards.sources.detect import SourceOptions
    from data_shards.writing.source import Source

_PLACE = "a directory, or a URL such as s3://bucket/mosi"


def shard(argv: list[str]) -> int:
    """Turn feature files, or synthetic data, into shards with an index."""
    return shard_here(parse_shard(shard_parser(), argv))


def shard_here(options: argparse.Namespace) -> int:
    """`dmd shard` in processes of this machine."""
    from data_shards.writing.process_pool import ForkedProcesses

    processes = usable_cores() if options.processes is None else options.processes
    make_shards(options, ForkedProcesses(processes))
    return 0


def make_shards(options: argparse.Namespace, executor: "Executor") -> None:
    """What `dmd shard` does with its options, as `parse_shard` gives them; prints what it has made.

    Args:
        executor: where files are looked at and shards are written.

    Raises:
        ValueError: the user's mistakes.
    """
    info = write_shards(options, executor, say=print)
    counts = ", ".join(f"{split} {count}" for split, count in info.counts.items())
    for modality, error in info.rounding.items():
        print(f"{modality}: float16 storage changed no value by more than {error:.3g}")
    print_labels(info)
    print(f"{options.shards}: {info.name}, {counts}; {len(info.shards)} shards, generation {info.generation}")


def write_shards(
    options: argparse.Namespace,
    executor: "Executor",
    *,
    arrays: "HeldArrays | None" = None,
    say: Callable[[str], None],
) -> "DatasetInfo":
    """Write the shards that options of `dmd shard` ask for.

    Args:
        executor: where files are looked at and shards are written.
        arrays: take these instead of files.
        say: takes a line for each kind of change and for all that is left out.

    Raises:
        ValueError: the user's mistakes.
    """
    if options.synthetic:
        source, about_source = _synthetic_source(options)
    else:
        source, about_source = _given_source(options, executor, arrays, say)

    from data_shards.writing.build import build  # with webdataset and torch: seconds that an error need not wait for

    with _bar(sum(source.counts().values())) as progress:
        return build(
            source,
            options.shards,
            samples_per_shard=options.samples_per_shard,
            storage=options.dtype,
            executor=executor,
            ids=options.ids,
            progress=progress,
            **about_source,
        )


def _synthetic_source(options: argparse.Namespace) -> "tuple[Source, dict[str, Any]]":
    """The source, and what `build` is to know about it."""
    from data_shards.sources.synthetic import SyntheticSource

    source = SyntheticSource(
        name=options.name or "synthetic",
        samples=options.samples,
        seed=options.seed,
        text_kind=options.text_kind,
        labels=options.label_kind,
    )
    return source, {"labels": source.declared}


def _given_source(
    options: argparse.Namespace, executor: "Executor", arrays: "HeldArrays | None", say: Callable[[str], None]
) -> "tuple[Source, dict[str, Any]]":
    """The source of the user's files or arrays, and what `build` is to know about it; says what is zeroed or
    ignored."""
    from data_shards.format.extraction_files import made_tokens_with
    from data_shards.sources.detect import open_arrays, open_source
    from data_shards.sources.labelled import LabelledSource
    from data_shards.sources.paths import to_paths, where_of
    from data_shards.sources.pickle_files import PickleFilesSource
    from data_shards.sources.table import TableSource

    reading = _reading(options)
    source = open_source(options.features, reading, executor) if arrays is None else open_arrays(arrays, reading)
    for field, count in source.nonfinite.items():
        say(f"{field}: {count} non-finite values stored as 0")
    if source.ignored:
        say(f"ignored: {format_counts(source.ignored)}")
    if isinstance(source, LabelledSource):
        for note in source.notes:
            say(note)
    many = source if isinstance(source, PickleFilesSource | TableSource) and source.num_files > 1 else None
    extraction = source.extraction if isinstance(source, TableSource | LabelledSource) else {}
    about: dict[str, Any] = {
        "where": where_of(to_paths(options.features)) if arrays is None else arrays.where,
        "labels": reading.labels,
        "zeroed": source.nonfinite,
        "ignored": source.ignored,
        "extraction": extraction,
        "tokenizer": made_tokens_with(extraction) if text_choice(options) != "features" else {},
        "memory": source.memory(),
        "file_of": many.file_of if many else None,
    }
    if not makes_text(options):
        return source, about
    text = plan_text(options, source, executor, memory=source.memory())
    for note in text.notes:
        say(note)
    about |= {
        "tokenizer": text.made_with,
        "ignored": {**source.ignored, **text.unused},
        "memory": source.memory() + text.memory,
    }
    return text.source, about


def _reading(options: argparse.Namespace) -> "SourceOptions":
    """How a source is to be read.

    Raises:
        ValueError: options that exclude each other.
    """
    from data_shards.sources.detect import SourceOptions

    labels = labels_from_options(options)
    if labels.class_names and labels.kind == "sentiments" and not options.class_labels:
        raise ValueError("--class-names names classes; say with --classes, --binary or --class-labels where they are")
    if labels.emotions and options.class_labels:
        raise ValueError("--class-labels keeps one class per sample, --emotions any number of emotions; give one")
    others = {modality: getattr(options, f"feature_{modality}") for modality in ("text", "audio", "vision")}
    return SourceOptions(
        name=options.name,
        format=options.format,
        text=text_choice(options),
        nonfinite=options.nonfinite,
        others={modality: path for modality, path in others.items() if path},
        class_labels=options.class_labels,
        labels=labels,
        need_ids=options.ids == "keep",
        label_file=options.labels,
        label_column=options.label_column,
        csd=_pairs(options.csd.split(","), "--csd"),
        splits=options.splits,
        align=options.align,
        lengths=_lengths(options.lengths),
    )


def shard_parser() -> Parser:
    """Arguments of `dmd shard`."""
    parser = Parser(
        prog="dmd shard",
        description="Turn feature files, or synthetic data (--synthetic), into WebDataset shards with an index.",
        epilog="Nothing changes in SHARDS until all shards are written; those that are there stay readable until then.",
    )
    parser.add_argument(
        "features",
        nargs="*",
        metavar="FEATURES",
        help="an MMSA, MulT, MISA or MAG-BERT pickle, a Parquet or Arrow table, computational sequences (.csd), or "
        "directories or several of one kind",
    )
    parser.add_argument(
        "shards", type=place_option, metavar="SHARDS", help=f"where the shards go: {_PLACE}; made if it is not there"
    )
    parser.add_argument("--name", help="the data set's name (default: the file's, or synthetic)")
    parser.add_argument(
        "--samples-per-shard", type=int, default=512, metavar="N", help="samples in a tar (default: 512)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="how features are stored; float16 halves the size, and its rounding error is reported (default: float32)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="writer processes (default: one per core)")
    given = parser.add_argument_group("feature files")
    given.add_argument(
        "--format", choices=("auto", "mmsa", "misa", "table", "csd"), default="auto", help="default: auto"
    )
    given.add_argument(
        "--text",
        choices=("auto", "features", "tokens"),
        default="auto",
        help="store the float array `text`, the tokens `text_bert`, or (auto) the first of them that is there",
    )
    given.add_argument(
        "--nonfinite", choices=("refuse", "zero"), default="refuse", help="NaN and infinite values: stop, or store 0"
    )
    given.add_argument(
        "--class-labels",
        action="store_true",
        help="keep `classification_labels` of an MMSA pickle, or `class` of a table, beside the sentiments, for "
        "model.task with data.classes=stored",
    )
    given.add_argument(
        "--labels",
        metavar="label.csv",
        help="take labels, splits and, where the features have none, sentences from a label file of MMSA, by clip",
    )
    given.add_argument("--label-column", metavar="NAME", help="its column of labels, such as label_T (default: label)")
    add_text_options(parser)
    add_label_options(parser)
    for modality in ("text", "audio", "vision"):
        given.add_argument(
            f"--feature-{modality}", metavar="FILE.pkl", help=f"take {modality} from another MMSA pickle, joined by id"
        )
    sequences = parser.add_argument_group("computational sequences (.csd) of the CMU Multimodal SDK")
    sequences.add_argument(
        "--csd",
        metavar="ROLE=FILE,...",
        default="",
        help="which of them is text, audio, vision, labels and (for the sentences) words",
    )
    sequences.add_argument(
        "--splits",
        metavar="FILE",
        help="which video is in which split: JSON {split: [videos]}, csv, or the SDK's folds (a .py file)",
    )
    sequences.add_argument(
        "--align",
        choices=("words", "none"),
        help="words: a step per word, with the mean of its audio and vision; none: all rows (default: words)",
    )
    sequences.add_argument(
        "--lengths",
        metavar="MODALITY=STEPS,...",
        default="",
        help="cut or pad to so many steps (default: as the longest sample)",
    )
    made = parser.add_argument_group("synthetic data")
    made.add_argument("--synthetic", action="store_true", help="make MOSI-shaped samples up instead of reading a file")
    made.add_argument("--samples", type=int, default=640, metavar="N", help="how many (default: 640)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default: 0)")
    made.add_argument("--text-kind", choices=("features", "tokens"), default="features", help="default: features")
    made.add_argument(
        "--label-kind",
        choices=("sentiments", "classes", "emotions"),
        default="sentiments",
        help="what samples have: a sentiment, one of three classes, or three emotions (default: sentiments)",
    )
    return parser


def parse_shard(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The options of `dmd shard`, by its parser or one with more options. SystemExit for those that exclude others."""
    options = parser.parse_intermixed_args(argv)
    if options.synthetic == bool(options.features):
        parser.error("give either FEATURES or --synthetic")
    if problem := option_without_effect(parser, options):
        parser.error(problem)
    return options


def verify(argv: list[str]) -> int:
    """Check every byte of a set of shards, and name each broken sample."""
    parser = Parser(
        prog="dmd verify",
        description="Compare every byte of a set of shards with its index. Exit code 1: something is broken.",
    )
    parser.add_argument("shards", type=place_option, metavar="SHARDS", help=_PLACE)
    parser.add_argument("--threads", type=int, metavar="N", help="shards read at once (default: one per core)")
    options = parser.parse_args(argv)

    from data_shards.reading.index import ShardIndex
    from data_shards.tools.verify import verify as check

    samples = sum(ShardIndex.load(options.shards).info.counts.values())
    with _bar(samples) as progress:
        report = check(options.shards, threads=options.threads or usable_cores(), progress=progress)
    for damage in report.damage:
        print(damage)
    verdict = f"{len(report.damage)} broken; restore them or rebuild" if report.damage else "all intact"
    print(f"{options.shards}: {samples} samples in {len(report.info.shards)} shards, {report.bytes} bytes: {verdict}")
    return 1 if report.damage else 0


def inspect(argv: list[str]) -> int:
    """Say what is in a set of shards: splits, shapes, labels, lengths, sizes."""
    parser = Parser(prog="dmd inspect", description="Say what is in a set of shards, from its index.")
    parser.add_argument("shards", type=place_option, metavar="SHARDS", help=_PLACE)
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="draw label and length distributions")
    options = parser.parse_args(argv)

    import json

    from data_shards.tools.summary import plot, summarize, to_text

    facts = summarize(options.shards)
    print(json.dumps(facts, indent=2) if options.json else to_text(facts))
    if options.plot:
        plot(facts, options.plot)
    return 0


def index(argv: list[str]) -> int:
    """Index externally created WebDataset tars, in place."""
    parser = Parser(
        prog="dmd index",
        description="Write an index for the tars in a directory, which then is a set of shards. The tars stay as they "
        "are. Members that can hold code (.pth, .pkl, ...) are rejected.",
        epilog="example: dmd index tars --map text=emb.npy,audio=feats.npz:audio,vision=feats.npz:face,"
        "label=json:sentiment,id=json:clip,raw_text=txt",
    )
    parser.add_argument("shards", metavar="DIR", help="a local directory with .tar files, in subdirectories too")
    parser.add_argument(
        "--map",
        metavar="NAME=MEMBER,...",
        default="",
        help="the members that hold text, audio, vision, label, and optionally id, raw_text, class, emotions, "
        "text_length, audio_length, vision_length (default: as in our own tars)",
    )
    parser.add_argument(
        "--split",
        metavar="SPLIT=PATTERN",
        action="append",
        default=[],
        help="files of a split; repeatable (default: by the word train, valid, val, dev or test in the path)",
    )
    add_label_options(parser)
    parser.add_argument(
        "--stored-labels",
        action="store_true",
        help="sentiments in the tars are in [-3, 3] already, as `dmd shard` writes them; --label-range or "
        "--label-scale says which scale they came from",
    )
    parser.add_argument("--name", help="the data set's name (default: the directory's)")
    parser.add_argument("--processes", type=int, metavar="N", help="default: one per core")
    options = parser.parse_args(argv)

    from data_shards.external.index_tars import index_tars

    with _bar(None) as progress:
        info = index_tars(
            options.shards,
            mapping=_pairs(options.map.split(","), "--map"),
            splits=_pairs(options.split, "--split"),
            name=options.name,
            labels=replace(labels_from_options(options), are_stored=options.stored_labels),
            ids=options.ids,
            processes=options.processes or usable_cores(),
            progress=progress,
        )
    print_ignored(info.ignored)
    print_labels(info)
    counts = ", ".join(f"{split} {count}" for split, count in info.counts.items())
    print(f"{options.shards}: {info.name}, {counts}; {len(info.shards)} tars, generation {info.generation}")
    return 0


def _lengths(given: str) -> dict[str, int]:
    """`--lengths` as modality -> steps."""
    from data_shards.format.schema import MODALITIES
    from data_shards.sources.conversions import to_count

    steps = {
        name: to_count(value, f"--lengths {name}") for name, value in _pairs(given.split(","), "--lengths").items()
    }
    for name, count in steps.items():
        if name not in MODALITIES or count < 1:
            raise ValueError(f"--lengths {name}={count}: name {', '.join(MODALITIES)}, and at least one step each")
    return steps


def _pairs(items: list[str], option: str) -> dict[str, str]:
    """`a=b` items as a dict."""
    pairs: dict[str, str] = {}
    for item in filter(None, items):
        name, found, value = item.strip().partition("=")
        if not found or not value:
            raise ValueError(f"{option} {item!r} is not NAME=VALUE")
        if name in pairs:
            raise ValueError(f"{option} names {name} twice: {pairs[name]} and {value}; leave one")
        pairs[name] = value
    return pairs


@contextmanager
def _bar(samples: int | None) -> Iterator[Callable[[int, int], None]]:
    """The progress of samples, with bytes per second."""
    from data_shards.progress import Progress

    with Progress(samples, "samples") as progress:
        total = 0

        def advance(count: int, size: int) -> None:
            nonlocal total
            total += size
            progress.advance(count, f"{total / progress.seconds / 2**20:.0f} MiB/s")

        yield advance
