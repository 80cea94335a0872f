"""Options of `dmd shard` about text that is made of transcripts."""

import argparse
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_shards.executor import Executor
    from data_shards.sources.mmsa import TextChoice
    from data_shards.text.making import TextPlan
    from data_shards.writing.source import Source


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "text of transcripts", "Text is made of `raw_text`, in the place of the features or tokens in the files."
    )
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument(
        "--tokenizer",
        metavar="NAME_OR_PATH",
        help="token ids by the tokenizer of a text encoder: a model directory, a name on the hub, or BERT's vocab.txt",
    )
    kinds.add_argument(
        "--word-vectors",
        metavar="FILE",
        help="features of each word, from a text file of GloVe, word2vec or fastText (.vec)",
    )
    kinds.add_argument("--vocab", help=argparse.SUPPRESS)
    group.add_argument(
        "--text-length",
        type=int,
        metavar="N",
        help="tokens or words of each sample; longer transcripts are cut (default: those of the longest transcript, or "
        "as many as the tokenizer's model takes)",
    )


def makes_text(options: argparse.Namespace) -> bool:
    """Whether text is made of transcripts.

    Raises:
        ValueError: options that exclude each other.
    """
    if options.vocab is not None:
        raise ValueError(
            f"--vocab is --tokenizer, which gives the same token ids; give --tokenizer {shlex.quote(options.vocab)}"
        )
    made = options.tokenizer is not None or options.word_vectors is not None
    if options.text_length is not None and not made:
        raise ValueError("--text-length is of text that is made of transcripts; give --tokenizer or --word-vectors too")
    if options.text_length is not None and options.text_length < 1:
        raise ValueError(f"--text-length {options.text_length} is too short; give 1 or more")
    option = "--tokenizer" if options.tokenizer is not None else "--word-vectors"
    if made and options.text != "auto":
        raise ValueError(f"{option} makes the text of raw_text; leave --text {options.text} out")
    if made and options.feature_text is not None:
        raise ValueError(f"{option} makes the text of raw_text; leave --feature-text out")
    return made


def text_choice(options: argparse.Namespace) -> "TextChoice":
    """Which text a source is to read."""
    choice: TextChoice = "transcripts" if makes_text(options) else options.text
    return choice


def plan_text(options: argparse.Namespace, source: "Source", executor: "Executor", *, memory: int) -> "TextPlan":
    """The text that the options ask for.

    Args:
        source: of the samples, read with `text_choice`.
        executor: where transcripts are looked at.
        memory: bytes that reading the source takes at most.

    Raises:
        ValueError: as `plan_tokens` and `plan_word_features`.
    """
    from data_shards.text.making import plan_tokens, plan_word_features
    from data_shards.text.tokenizer import load_tokenizer

    if options.word_vectors is not None:
        return plan_word_features(source, options.word_vectors, executor, length=options.text_length, memory=memory)
    tokenizer = load_tokenizer(options.tokenizer)
    return plan_tokens(source, tokenizer, executor, length=options.text_length, memory=memory)
