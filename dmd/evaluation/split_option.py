"""The option `--split` of the commands that evaluate."""

import argparse

DEFAULT_SPLIT = "valid"
"""What evaluate, predict, report and missing look at; the test split is asked for."""
SPLIT_HELP = f"train, valid (or val, dev, validation) or test (default: {DEFAULT_SPLIT})"


def split_option(name: str) -> str:
    """The split that `--split NAME` means, for `argparse`."""
    from data_shards.sources.splits import named_split

    try:
        return named_split(name, "split")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
