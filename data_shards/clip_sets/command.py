"""What `dmd extract` does with its options, wherever the clips are extracted."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.clip_sets.clip_files import find_clips
from data_shards.clip_sets.extract import Summary, extract_set
from data_shards.clip_sets.jobs import JobPlan, Transcripts, plan_jobs
from data_shards.clip_sets.one_clip import LoadStates, Makers
from data_shards.clip_sets.parser import settings_of
from data_shards.executor import IndependentExecutor
from data_shards.extraction.preparation import prepare
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.transcript_files import read_transcript_table
from data_shards.format.extraction_files import FAILURES_FILE, WARNINGS_FILE
from data_shards.label_checks import needs_declaration
from data_shards.label_options import format_counts
from data_shards.progress import Progress
from data_shards.sources.label_table import read_label_table
from data_shards.text.tokenizer import load_tokenizer

SOME_FAILED = 1
"""Exit code with --strict, where a clip or a row failed."""
_SHOWN_FAILURES = 5


class ClipProgress(Progress):
    """How many clips have ended."""

    def __init__(self, clips: int) -> None:
        super().__init__(clips, "clips")
        self.with_features = 0

    def __call__(self, done: int, failed: int) -> None:
        """So many clips have features, so many have failed."""
        self.with_features = done
        self.set(done + failed, f"{failed} failed" if failed else "")


def extract_clips(
    options: argparse.Namespace,
    executor: IndependentExecutor,
    *,
    load_states: Callable[[], LoadStates],
    watch: Callable[[ClipProgress], None] = lambda progress: None,
) -> int:
    """Extract the clips and print what became of them; returns the exit code.

    Args:
        options: as `parser.extract_parser` gives them.
        load_states: gives what loads a text encoder; called where the settings ask for hidden states.
        watch: is handed the progress before the first clip.

    Raises:
        ValueError: the user's mistakes.
    """
    settings, makers = _prepared(options, load_states)
    plan = _plan(options)
    print(f"{options.clips}: {len(plan.jobs)} clips", flush=True)
    if plan.notes:
        print(f"read: {format_counts(plan.notes)}")
    with ClipProgress(len(plan.jobs)) as progress:
        watch(progress)
        summary = extract_set(
            plan,
            options.out,
            settings,
            makers,
            executor,
            seconds=options.clip_seconds,
            restart=options.restart,
            progress=progress,
        )
    _print_summary(options.out, summary)
    print(f"next: {_next_command(options, plan)}", flush=True)
    return SOME_FAILED if options.strict and summary.failed else 0


def _prepared(options: argparse.Namespace, load_states: Callable[[], LoadStates]) -> tuple[ExtractionSettings, Makers]:
    """The settings with the facts of this machine, and what makes features."""
    settings = settings_of(options)
    tokenizer = load_tokenizer(settings.text_encoder) if settings.text == "tokens" else None
    if settings.text != "raw":
        settings = replace(settings, text_encoder=_named_everywhere(settings.text_encoder))
    makers = Makers(
        face_model=options.face_model,
        tokenizer=tokenizer,
        load_states=load_states() if settings.text == "states" else None,
    )
    states = makers.states(settings)
    return prepare(settings, face_model=makers.face_model, tokenizer=tokenizer, states=states), makers


def _named_everywhere(encoder: str) -> str:
    """A name on the hub, or the path of a directory or a file from any working directory."""
    return str(Path(encoder).absolute()) if Path(encoder).exists() else encoder


def _plan(options: argparse.Namespace) -> JobPlan:
    emotions = [name.strip() for name in (options.emotions or "").split(",") if name.strip()]
    if emotions and options.labels is None:
        raise ValueError("--emotions names columns of --labels; give both")
    labels = None if options.labels is None else read_label_table(options.labels, emotions=emotions)
    return plan_jobs(find_clips(options.clips), labels, _transcripts(options.transcripts))


def _transcripts(place: Path | None) -> Transcripts:
    if place is None or place.is_dir():
        return Transcripts(folder=place)
    if not place.is_file():
        raise ValueError(f"--transcripts {place} is not there; give a folder of transcripts, or a csv file of all")
    return Transcripts(file=place, table=read_transcript_table(place))


def _print_summary(out: Path, summary: Summary) -> None:
    counts = ", ".join(f"{split} {count}" for split, count in summary.counts.items())
    there = sum(summary.counts.values()) - summary.extracted
    before = f", {there} of them before" if there else ""
    if summary.warnings:
        print(f"warnings: {format_counts(summary.warnings)}; {out / WARNINGS_FILE} says which clips")
    if summary.left_out:
        print(
            f"removed: features of {len(summary.left_out)} clips that {out} held and this command does not name, the "
            f"first is {summary.left_out[0]}"
        )
    for name, reason in summary.failed[:_SHOWN_FAILURES]:
        print(f"failed: {name}: {reason}")
    if len(summary.failed) > _SHOWN_FAILURES:
        print(f"failed: {len(summary.failed) - _SHOWN_FAILURES} more, in {out / FAILURES_FILE}")
    print(f"{out}: {counts}{before}; {len(summary.failed)} failed")


def _next_command(options: argparse.Namespace, plan: JobPlan) -> str:
    """What reads the features: shards where there are labels, else a prediction."""
    out, labels = shlex.quote(str(options.out)), plan.jobs[0].labels
    if not labels:
        return f"dmd predict RUN {out}"
    words = ["dmd shard", out, "SHARDS"]
    if options.text == "raw":
        words.append("--tokenizer NAME")
    if options.emotions:
        return " ".join([*words, f"--emotions {shlex.quote(','.join(labels))}"])
    if "label" in labels and needs_declaration([float(job.labels["label"]) for job in plan.jobs]):
        words.append("--label-range LOW HIGH")
    if "class" in labels:
        words.append("--class-labels" if "label" in labels else "--classes")
        words += _class_names([job.labels["class"] for job in plan.jobs])
    return " ".join(words)


def _class_names(classes: Sequence[float | int | str]) -> list[str]:
    """The option that names classes, which the user may put in another order; none of class numbers."""
    names = sorted({name for name in classes if isinstance(name, str)})
    if not names:
        return []
    return ["--class-names", "NAME,..." if any("," in name for name in names) else shlex.quote(",".join(names))]
