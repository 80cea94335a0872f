"""Subcommands of `dmd` that need the network but no launcher: export, import, presets; evaluate and predict in this
process, which the floor `cluster` declares, since both run on a Ray cluster too.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command_line import Parser
from data_shards.places import Place, place_option
from dmd.checkpoint.step_option import add_step
from dmd.config.options import add_config_options, config_of
from dmd.documents import encode
from dmd.evaluation.split_option import DEFAULT_SPLIT, SPLIT_HELP, split_option
from dmd.evaluation.text_encoder_option import add_text_encoder
from dmd.text_tables import table_text

if TYPE_CHECKING:
    from dmd.checkpoint.select import Step
    from dmd.inference.inputs import Samples
    from dmd.inference.predict_parts import Order
    from dmd.inference.transcript_text import TranscriptText
    from dmd.system.trained_model import ModelCard


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add `--calibration` to a parser."""
    parser.add_argument(
        "--calibration",
        type=place_option,
        metavar="SHARDS",
        help="of an ensemble: shards whose validation split calibrates its uncertainty, or none for no calibration "
        "(default: those of the trainings)",
    )


SAMPLES_PER_PART = 1024
"""Of a directory of predictions: some 150 KB, and a minute or two of a slow CPU."""


def evaluate_parser() -> Parser:
    """Arguments of `dmd evaluate` in processes of this machine."""
    parser = Parser(
        prog="dmd evaluate",
        description="Evaluate a checkpoint of a run, the best by default, or the ensemble of several. Acc and F1 are "
        "printed in per cent; --json writes them as shares in [0, 1].",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="several are evaluated as an ensemble")
    parser.add_argument("--data", type=place_option, metavar="SHARDS", help="other shards than those of the training")
    parser.add_argument("--split", default=DEFAULT_SPLIT, type=split_option, help=SPLIT_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there too")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the work (default: 1)")
    add_step(parser)
    add_text_encoder(parser)
    return parser


def evaluate_here(argv: list[str], options: argparse.Namespace) -> int:
    """Evaluate in processes of this machine, which are started with `argv` where there are several."""
    if options.ranks < 1:
        raise ValueError(f"--ranks is {options.ranks}; it must be at least 1")
    from dmd.ranks import STORE, run_ranks

    if options.ranks > 1 and STORE not in os.environ:
        return run_ranks(["evaluate", *argv], options.ranks)
    return _evaluate(
        options.runs,
        options.data,
        options.split,
        step=options.step,
        text_encoder=options.text_encoder,
        write_to=options.json,
        ranks=options.ranks,
    )


def _evaluate(
    runs: list[Path],
    data: Place | None,
    split: str,
    *,
    step: "Step | None",
    text_encoder: str | None,
    write_to: Path | None,
    ranks: int,
) -> int:
    """Evaluate on this rank; the first one prints, and writes the metrics as JSON where that is wanted."""
    import torch
    import torch.distributed as dist

    from dmd.evaluation.ensemble import evaluate_ensemble
    from dmd.evaluation.trained_run import evaluate_run
    from dmd.kernels.backend import default_device
    from dmd.ranks import join_ranks

    if ranks > 1:
        join_ranks()  # on gloo: predictions are gathered from the CPU, so that ranks may share a GPU
    device = default_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if len(runs) > 1:
        result = evaluate_ensemble(runs, data=data, splits=[split], step=step, text_encoder=text_encoder)[split]
    else:
        result = evaluate_run(runs[0], data=data, split=split, step=step, text_encoder=text_encoder)
    is_main_rank = ranks == 1 or dist.get_rank() == 0
    if is_main_rank:
        print_evaluation(runs, result, write_to=write_to)
    if ranks > 1:
        dist.destroy_process_group()
    return 0


def print_evaluation(runs: list[Path], result: dict[str, Any], *, write_to: Path | None) -> None:
    """Print what `dmd.evaluation.trained_run.describe` says of a run, or `dmd.evaluation.ensemble.describe_ensemble` of
    several, and write it as JSON where that is wanted."""
    from dmd.checkpoint.standing import is_unfinished
    from dmd.inference.outputs import checkpoint_text

    unfinished = [run for run in runs if is_unfinished(run)]
    state = "; the training is not finished" if unfinished else ""
    if len(runs) > 1:
        print(gain_table(result))
        print()
        state = f"; trainings that are not finished: {', '.join(map(str, unfinished))}" if unfinished else ""
    print(metrics_table(result["metrics"]))
    chosen = checkpoint_text(result["members"] if len(runs) > 1 else [result])
    print(f"{result['split']} split, {result['samples']} samples, {chosen}{state}")
    if len(runs) > 1:
        print(calibration_text(result["calibration"]))
    if write_to is not None:
        write_to.write_bytes(encode(result, indent=2) + b"\n")


def gain_table(result: dict[str, Any]) -> str:
    """The fused head of an ensemble, the mean of its members', the difference, and each member."""
    from dmd.metrics import headings_of, show, unit_note

    headings = headings_of(result["metrics"]["fused"])
    rows = {
        "ensemble": result["metrics"],
        f"mean of {len(result['members'])} members": result["members_mean"],
        "gain": result["gain"],
        **{member["run"]: member["metrics"] for member in result["members"]},
    }
    return table_text(
        ["fused head", *headings.values()],
        [[title, *(show(name, of["fused"][name], 2) for name in headings)] for title, of in rows.items()],
        numbers=range(1, len(headings) + 1),
        notes=[unit_note(result["metrics"]["fused"])],
    )


def calibration_text(found: dict[str, Any] | None) -> str:
    """What an evaluation says of an ensemble's uncertainty."""
    if found is None:
        return "no validation split, so the spread was not calibrated"
    what, measure = (
        ("the spread times", "coverage error") if "scale" in found else ("temperature", "expected calibration error")
    )
    value = found.get("scale", found.get("temperature"))
    tells = f"; correlation of the spread with the error {found['correlation']:.2f}" if "scale" in found else ""
    return (
        f"uncertainty: {what} {value:.3g}, fitted on {found['samples']} {found['fitted_on']} samples; {measure} "
        f"{found['before']['error']:.3f} before, {found['after']['error']:.3f} after{tells}"
    )


def metrics_table(metrics: dict[str, dict[str, float]]) -> str:
    """Heads down, metrics across."""
    from dmd.metrics import headings_of, show, unit_note

    headings = headings_of(metrics["fused"])
    return table_text(
        ["head", *headings.values()],
        [[head, *(show(name, values[name], 2) for name in headings)] for head, values in metrics.items()],
        numbers=range(1, len(headings) + 1),
        notes=[unit_note(metrics["fused"])],
    )


def predict_parser() -> Parser:
    """Arguments of `dmd predict` in this process."""
    parser = Parser(
        prog="dmd predict",
        description="Predict clips, or samples of shards, a feature pickle or a table, labelled or not: on the "
        "terminal, into a Parquet or CSV file, or (samples of shards) into a directory of Parquet files.",
    )
    parser.add_argument(
        "model", type=Path, metavar="RUN", help="a run, or what `dmd export` wrote; more of them are an ensemble"
    )
    parser.add_argument(
        "inputs",
        type=place_option,
        nargs="+",
        metavar="CLIP|FEATURES|SHARDS",
        help="video or sound files, a folder of them, a feature pickle, a table, or shards; behind the runs",
    )
    parser.add_argument(
        "--out",
        type=place_option,
        metavar="FILE|DIR/",
        help="a .parquet or .csv file; or a directory or bucket for parts, which the same command continues (default: "
        "a table on the terminal)",
    )
    parser.add_argument(
        "--split",
        action="append",
        type=split_option,
        help=f"{SPLIT_HELP}; may be repeated; a file without splits is taken whole, and with --id all splits are",
    )
    parser.add_argument("--id", action="append", metavar="ID", help="only this sample; may be repeated")
    parser.add_argument(
        "--nonfinite",
        choices=("refuse", "zero"),
        default="refuse",
        help="NaN and infinite values of features: stop, or read them as 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--samples-per-part",
        type=int,
        default=SAMPLES_PER_PART,
        metavar="N",
        help="of a directory (default: %(default)s)",
    )
    add_step(parser)
    add_text_encoder(parser)
    add_calibration(parser)
    _add_clip_options(parser.add_argument_group("clips", "Features and text are made as those of the training were."))
    return parser


def _add_clip_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--transcript",
        metavar="TEXT|FILE",
        help="what is said, or a .json, .csv, .srt or .txt of it; of several clips a folder of such files, or a .csv "
        "of all (default: beside the clips)",
    )
    group.add_argument("--face-model", type=Path, metavar="FILE.task", help="MediaPipe's face_landmarker.task")
    group.add_argument(
        "--tokenizer", metavar="PATH", help="the tokenizer of the training (default: where it was; nothing is fetched)"
    )
    group.add_argument("--word-vectors", metavar="FILE", help="those of the training (default: where they were)")


def predict_here(options: argparse.Namespace) -> int:
    """Predict in this process."""
    from dmd.inference.outputs import is_directory

    if options.out is not None and is_directory(options.out):
        from dmd.inference.predict_parts import compute_here, predict_parts

        print(f"{options.out}: {predict_parts(parts_order(options), compute_here)}")
        return 0
    return _predict_file(options)


def parts_order(options: argparse.Namespace) -> "Order":
    """What is asked for with a directory as the output.

    Raises:
        ValueError: a file, or single samples.
    """
    from dmd.inference.input_options import check_options
    from dmd.inference.outputs import is_directory
    from dmd.inference.predict_parts import Order
    from dmd.model.text_base import base_name

    if options.out is None or not is_directory(options.out):
        given = "is not given" if options.out is None else f"{options.out} is a file, which one process writes"
        raise ValueError(f"--out {given}; leave --address out, or give a directory")
    if options.id:
        raise ValueError(
            f"--out {options.out} is a directory, which takes whole splits; name a .parquet file with --id"
        )
    models, inputs = models_and_inputs(options)
    place = _one_place(inputs)
    check_options(_given(options), "parts", place)
    return Order(
        models=tuple(models),
        data=place.absolute(),
        out=options.out.absolute(),
        splits=_asked_splits(options),
        samples_per_part=options.samples_per_part,
        step=options.step,
        text_encoder=None if options.text_encoder is None else base_name(options.text_encoder),
        calibration=options.calibration,
    )


def models_and_inputs(options: argparse.Namespace) -> tuple[list[Path], list[Place]]:
    """What `dmd predict` was given: directories of models first, and then what they predict.

    Raises:
        ValueError: nothing behind the models; among them something that is neither a model nor a clip.
    """
    from dmd.inference.clips import are_clips
    from dmd.inference.inputs import is_named_as_input
    from dmd.inference.model_files import is_model

    def names_model(place: Place) -> bool:
        if place.is_url or is_named_as_input(place.path):
            return False
        return is_model(place.path) or not place.path.exists()  # which is an error of its own

    *others, last = options.inputs
    models = list(takewhile(names_model, others))
    if not last.is_url and is_model(last.path):
        raise ValueError(f"{last} is a model; name what it predicts behind it: clips, features or shards")
    inputs = [*others[len(models) :], last]
    first = inputs[0]
    if len(inputs) > 1 and not first.is_url and not is_named_as_input(first.path) and not are_clips(first.path):
        raise ValueError(f"{first} is named as a RUN, and holds none; leave it out, or name a run or an export")
    return [options.model, *(place.path for place in models)], inputs


def _one_place(inputs: list[Place]) -> Place:
    """The one input of what is no clip."""
    if len(inputs) > 1:
        raise ValueError(f"{len(inputs)} inputs were given, which only clips may be; predict {inputs[1]} by itself")
    return inputs[0]


def _asked_splits(options: argparse.Namespace) -> list[str] | None:
    return list(dict.fromkeys(options.split)) if options.split else None


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The values of options that differ from their defaults, None for the others."""
    default = predict_parser().get_default
    return {name: None if value == default(name) else value for name, value in vars(options).items()}


def _predict_file(options: argparse.Namespace) -> int:
    from dmd.inference.calibrated_files import check_calibration, with_calibration
    from dmd.inference.clips import reads_states
    from dmd.inference.input_options import check_options, kind_of
    from dmd.inference.model_files import read_files
    from dmd.inference.outputs import (
        check_suffix,
        checkpoint_text,
        predictions,
        printed,
        schema,
        to_table,
        write_predictions,
    )
    from dmd.inference.transcript_text import TranscriptText
    from dmd.kernels.backend import default_device

    out = None if options.out is None else options.out.path
    if out is not None:
        check_suffix(out)
    models, inputs = models_and_inputs(options)
    kind = kind_of(inputs[0])
    check_options(_given(options), kind, inputs[0])
    files = read_files(models, options.step, text_encoder=options.text_encoder)
    card = files.card
    text = TranscriptText(card, tokenizer=options.tokenizer, word_vectors=options.word_vectors)
    # the encoder whose states clips get, or else the one that the model stands on
    of_clips, of_model = options.text_encoder, None
    if kind != "clips" or not reads_states(card, text):
        of_clips, of_model = None, options.text_encoder
    check_calibration(files, models, data=options.calibration, text_encoder=of_model)
    if kind == "clips":
        samples = _clips(options, inputs, card, text, text_encoder=of_clips)  # tells how far it is
    else:
        samples = _shown(_begun(_samples(options, inputs, card)))
    files = with_calibration(files, models, data=options.calibration, text_encoder=of_model)
    model = files.build(default_device(), text_encoder=of_model)
    counts: Counter[str] = Counter()
    tables = (to_table(*pair) for pair in predictions(model, _counted(samples, counts)))
    if out is None:
        print(printed(tables), checkpoint_text(files.sources), sep="\n")
        return 0
    columns = schema(model.scoring, heads=files.heads, spaces=files.spaces, of_ensemble=files.is_ensemble)
    rows = write_predictions(out, tables, columns)
    of_splits = ", ".join(f"{split} {count}" for split, count in counts.items() if split)
    counted = f" ({of_splits})" if of_splits else ""
    print(f"{out}: {rows} predictions{counted}; {checkpoint_text(files.sources)}")
    return 0


def _clips(
    options: argparse.Namespace,
    inputs: list[Place],
    card: "ModelCard",
    text: "TranscriptText",
    *,
    text_encoder: str | None,
) -> "Iterator[Samples]":
    """The clips that are to be predicted."""
    from dmd.inference.clips import FeatureMaker, clip_jobs
    from dmd.inference.inputs import read_clips

    jobs = clip_jobs([place.path for place in inputs], options.transcript)
    maker = FeatureMaker(card, text, face_model=options.face_model, text_encoder=text_encoder)
    return read_clips(jobs, card, maker, text, ids=options.id)


def _samples(options: argparse.Namespace, inputs: list[Place], card: "ModelCard") -> "Iterator[Samples]":
    """The samples of shards or features that are to be predicted."""
    from dmd.inference.inputs import read_samples

    return read_samples(
        _one_place(inputs),
        card,
        splits=_asked_splits(options),
        default=None if options.id else DEFAULT_SPLIT,
        ids=options.id,
        nonfinite=options.nonfinite,
        tokenizer=options.tokenizer,
        word_vectors=options.word_vectors,
    )


def _begun(batches: "Iterator[Samples]") -> "Iterator[Samples]":
    """The same samples, of which the first are read here and raise what is wrong with the input."""
    return chain(list(islice(batches, 1)), batches)


def _shown(batches: "Iterable[Samples]") -> "Iterator[Samples]":
    """The same samples; how many are done is told meanwhile."""
    from data_shards.progress import Progress

    with Progress(None, "samples") as progress:
        for samples in batches:
            yield samples
            progress.advance(len(samples.ids))


def _counted(batches: "Iterable[Samples]", counts: "Counter[str]") -> "Iterator[Samples]":
    for samples in batches:
        counts[samples.split] += len(samples.ids)
        yield samples


def export(argv: list[str]) -> int:
    """Write a trained model, or an ensemble of several, as one directory that `dmd.load` reads without DeepSpeed and
    Ray, or push it to the hub."""
    parser = Parser(prog="dmd export", description=export.__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run, or another export; several are an ensemble"
    )
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--no-program", action="store_true", help="no torch.export program")
    parser.add_argument("--merge", action="store_true", help="add LoRA's adapters to the text encoder's weights")
    add_step(parser)
    add_text_encoder(parser)
    add_calibration(parser)
    group = parser.add_argument_group("the Hugging Face hub", "DIR has a README.md that the hub reads as a model card.")
    group.add_argument("--license", metavar="ID", help="of the model, as the hub names it, such as mit (default: none)")
    group.add_argument(
        "--push", metavar="OWNER/NAME", help="upload DIR there; the token is that of `hf auth login`, or HF_TOKEN"
    )
    group.add_argument(
        "--private", action="store_true", help="make the repository of --push a private one; a public one is an error"
    )
    group.add_argument(
        "--replace-readme", action="store_true", help="with --push: also a README.md that was changed on the hub"
    )
    options = parser.parse_args(argv)
    if options.private and options.push is None:
        raise ValueError("--private is of the repository that --push makes; leave it out, or give --push OWNER/NAME")
    if options.replace_readme and options.push is None:
        raise ValueError("--replace-readme is of the repository of --push; leave it out, or give --push OWNER/NAME")

    from dmd.inference.any_export import export_any
    from dmd.inference.hub import check_push, push_to_hub
    from dmd.inference.model_files import sources_of
    from dmd.inference.outputs import checkpoint_text

    if options.push is not None:
        check_push(options.push)
    reason = export_any(
        options.runs,
        options.out,
        step=options.step,
        program=not options.no_program,
        text_encoder=options.text_encoder,
        merge=options.merge,
        license=options.license,
        name=None if options.push is None else options.push.rpartition("/")[2],
        calibration=options.calibration,
    )
    program = "with a torch.export program" if reason is None else f"without a torch.export program ({reason})"
    chosen = checkpoint_text(sources_of(options.out))
    print(f"{options.out}: {chosen}, {program}; in Python: model = dmd.load({str(options.out)!r})")
    if options.push is not None:
        url = push_to_hub(
            options.out, options.push, private=options.private or None, replace_readme=options.replace_readme
        )
        print(f'{url}; in Python: dmd.from_pretrained("{options.push}")')
    return 0


def import_(argv: list[str]) -> int:
    """Make a run directory from a published checkpoint (.pth of mdswyz/DMD)."""
    parser = Parser(prog="dmd import", description=import_.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.pth")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory to make")
    parser.add_argument("--data", type=place_option, metavar="SHARDS", help="shards to evaluate on by default")
    add_config_options(parser, words="what it was trained with, such as text.encoder=PATH")
    options = parser.parse_intermixed_args(argv)
    if options.preset is None and options.config is None:
        parser.error("say what it was trained with: --preset NAME, or --config FILE")

    from dmd.published.import_checkpoint import import_run

    report = import_run(options.file, options.run, config_of(options), data=options.data)
    print(f"{options.run}: mapped {len(report.mapped)} tensors")
    missing = "missing (published files hold no GD-Units; these stay as drawn)"
    listed = (("skipped (unused or buffers)", report.skipped), ("unknown", report.unknown), (missing, report.missing))
    for what, names in listed:
        print(f"{what}: {len(names)}{': ' if names else ''}{', '.join(names)}")
    return 0


def presets(argv: list[str]) -> int:
    """List the presets, or print one in full."""
    parser = Parser(prog="dmd presets", description=presets.__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one in full")
    options = parser.parse_args(argv)

    from dmd.config.preset_files import preset_comment, preset_names

    if options.name is None:
        for name in preset_names():
            print(f"{name:<16} {preset_comment(name)}")
        return 0
    from dmd.config.explain import annotated
    from dmd.config.loading import load_config

    print(annotated(load_config(options.name)), end="")
    return 0
