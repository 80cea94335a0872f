"""Options of `dmd shard` that only synthetic data or only files take: elsewhere such an option is a mistake, not
silence. What only some kinds of files take, `data_shards.sources.detect` looks at when it knows the kind."""

import argparse

OF_SYNTHETIC = ("samples", "seed", "text_kind", "label_kind")
"""As `argparse` stores them, like the others here."""
FILE_OPTIONS = ("labels", "splits", "feature_text", "feature_audio", "feature_vision")
"""Those that name a file beside FEATURES."""
OF_FILES = (
    *FILE_OPTIONS,
    "format",
    "text",
    "nonfinite",
    "class_labels",
    "label_column",
    "tokenizer",
    "word_vectors",
    "vocab",
    "text_length",
    "label_range",
    "label_scale",
    "classes",
    "binary",
    "class_names",
    "emotions",
    "protocol",
    "ids",
    "csd",
    "align",
    "lengths",
)
OF_BOTH = ("features", "shards", "synthetic", "name", "samples_per_shard", "dtype", "processes")


def option_without_effect(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """What is wrong with the first option that means nothing for the source; "" where all mean something."""
    what, others = ("--synthetic", OF_FILES) if options.synthetic else ("FEATURES", OF_SYNTHETIC)
    for name in others:
        if getattr(options, name) != parser.get_default(name):
            owner = "files" if options.synthetic else "--synthetic"
            return f"--{name.replace('_', '-')} is of {owner}, and means nothing beside {what}; leave it out"
    return ""
