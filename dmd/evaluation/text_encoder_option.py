"""The option `--text-encoder` of the commands that load a model."""

import argparse


def add_text_encoder(parser: argparse.ArgumentParser) -> None:
    """Add the option to a parser."""
    parser.add_argument(
        "--text-encoder",
        metavar="PATH",
        help="where the text encoder's own weights are, of a model that holds adapters (default: where they were)",
    )
