"""The subcommands of this floor: `dmd shard` and `dmd verify`. Each is a thin function over the library."""

import argparse


def shard(argv: list[str]) -> int:
    """Turn a feature pickle, or made-up data, into shards with an index."""
    parser = argparse.ArgumentParser(
        prog="dmd shard",
        description="Turn an MMSA feature pickle, or made-up data (--synthetic), into WebDataset shards with an index.",
        epilog="Nothing changes in SHARDS until all shards are written; those that are there stay readable until then.",
    )
    parser.add_argument("features", nargs="?", metavar="FEATURES.pkl", help="an MMSA feature pickle")
    parser.add_argument("shards", metavar="SHARDS", help="directory for the shards; made if it is not there")
    parser.add_argument("--name", help="the data set's name (default: the file's, or synthetic)")
    parser.add_argument(
        "--samples-per-shard", type=int, default=512, metavar="N", help="samples in a tar (default: 512)"
    )
    pickled = parser.add_argument_group("feature pickle")
    pickled.add_argument(
        "--text",
        choices=("auto", "features", "tokens"),
        default="auto",
        help="store the float array `text`, the tokens `text_bert`, or (auto) the first of them that is there",
    )
    pickled.add_argument(
        "--nonfinite", choices=("refuse", "zero"), default="refuse", help="NaN and infinite values: stop, or store 0"
    )
    made = parser.add_argument_group("made-up data")
    made.add_argument(
        "--synthetic", action="store_true", help="make MOSI-shaped samples up instead of reading a pickle"
    )
    made.add_argument("--samples", type=int, default=640, metavar="N", help="how many (default: 640)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default: 0)")
    made.add_argument("--text-kind", choices=("features", "tokens"), default="features", help="default: features")
    options = parser.parse_args(argv)
    if options.synthetic == (options.features is not None):
        parser.error("give either FEATURES.pkl or --synthetic")

    from data_shards.sources.base import Source
    from data_shards.writer import build

    source: Source
    if options.synthetic:
        from data_shards.sources.synthetic import SyntheticSource

        source = SyntheticSource(
            name=options.name or "synthetic", samples=options.samples, seed=options.seed, text_kind=options.text_kind
        )
    else:
        from data_shards.sources.mmsa import MmsaSource

        source = MmsaSource(options.features, name=options.name, text=options.text, nonfinite=options.nonfinite)
        for field, count in source.nonfinite.items():
            if count:
                print(f"{field}: {count} non-finite values stored as 0")
    info = build(source, options.shards, samples_per_shard=options.samples_per_shard)
    counts = ", ".join(f"{split} {count}" for split, count in info.counts.items())
    print(f"{options.shards}: {info.name}, {counts}; {len(info.shards)} shards, generation {info.generation}")
    return 0


def verify(argv: list[str]) -> int:
    """Check every byte of a set of shards, and name each broken sample."""
    parser = argparse.ArgumentParser(
        prog="dmd verify",
        description="Compare every byte of a set of shards with its index. Exit code 1: something is broken.",
    )
    parser.add_argument("shards", metavar="SHARDS", help="directory of the shards")
    options = parser.parse_args(argv)

    from data_shards.verify import verify as check

    report = check(options.shards)
    for damage in report.damage:
        print(damage)
    total = sum(report.info.counts.values())
    verdict = f"{len(report.damage)} broken; restore them or rebuild" if report.damage else "all intact"
    print(f"{options.shards}: {total} samples in {len(report.info.shards)} shards, {report.bytes} bytes: {verdict}")
    return 1 if report.damage else 0
