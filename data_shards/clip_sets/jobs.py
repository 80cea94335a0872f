"""Which clips are to be extracted: the clips of a folder, joined with the rows of a label file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.clip_sets.clip_files import ClipFiles, transcript_file, unused_transcripts
from data_shards.extraction.transcript import Transcript
from data_shards.format.schema import SPLITS
from data_shards.sources.label_table import ID_SEPARATOR, LabelRow, LabelTable


@dataclass(frozen=True, kw_only=True)
class ClipJob:
    """One clip to extract. Picklable."""

    id: str
    split: str
    """Empty for clips that are to be predicted: there is no label file, or it has neither splits nor labels."""
    labels: dict[str, float | int | str]
    """Column -> label; empty for a clip without."""
    media: Path
    place: str = ""
    """Path of `media` in the folder of the clips, where there is one."""
    start: float = 0.0
    """Seconds."""
    stop: float | None = None
    is_segment: bool = False
    """Whether the label file says which seconds of the media file are the clip."""
    transcript: Transcript | None = None
    """Of a table or the label file."""
    transcript_file: Path | None = None
    """Of the media file; of a segment only a file with times of words says what is said in it, else `transcript`."""
    transcript_origin: str = "no transcript"
    """For people."""


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What is to be extracted, and what is not."""

    jobs: tuple[ClipJob, ...]
    """By split and id."""
    faults: tuple[tuple[str, str], ...]
    """(clip or row, reason) of what cannot be extracted."""
    notes: dict[str, int] = field(default_factory=dict)
    """What was read otherwise than written, or not read -> how often."""


@dataclass(frozen=True, kw_only=True)
class Transcripts:
    """Where transcripts come from, beside the label file; by default from files beside the clips."""

    folder: Path | None = None
    file: Path | None = None
    """Of the table."""
    table: dict[str, Transcript] = field(default_factory=dict)
    """By clip id."""


def plan_jobs(clips: ClipFiles, labels: LabelTable | None, transcripts: Transcripts) -> JobPlan:
    """Join clips with labels and transcripts.

    Args:
        labels: None: all clips, without labels.

    Raises:
        ValueError: no clip has a row, so the files do not belong together; or rows lack a split.
    """
    if labels is None:
        jobs, faults = _all_clips(clips, transcripts)
        notes: dict[str, int] = {}
    else:
        jobs, faults = _clips_of_rows(clips, labels, transcripts)
        notes = dict(labels.notes)
    _check_jobs(clips, labels, jobs, faults)
    listed = {name for name, _ in faults}
    faults += [(name, reason) for name, reason in clips.faults if name not in listed]
    jobs.sort(key=lambda job: ((*SPLITS, "").index(job.split), job.id))
    notes.update(clips.unknown)
    for job in jobs:
        notes[job.transcript_origin] = notes.get(job.transcript_origin, 0) + 1
    known = {name for job in jobs for name in (job.id, _media_id(job))}
    if unused := transcripts.table.keys() - known:
        notes["transcripts of no clip"] = len(unused)
    if files := _unused_files(clips, labels, transcripts, jobs):
        notes["transcript files that no clip uses"] = len(files)
    return JobPlan(jobs=tuple(jobs), faults=tuple(faults), notes=notes)


def _unused_files(
    clips: ClipFiles, labels: LabelTable | None, transcripts: Transcripts, jobs: Sequence[ClipJob]
) -> list[Path]:
    folders = {clips.folder, transcripts.folder or clips.folder}
    read = (transcripts.file, None if labels is None else labels.path, *(job.transcript_file for job in jobs))
    return unused_transcripts(folders, [path for path in read if path is not None])


def _all_clips(clips: ClipFiles, transcripts: Transcripts) -> tuple[list[ClipJob], list[tuple[str, str]]]:
    jobs, faults = [], []
    for name, media in clips.media.items():
        if len(media) > 1:
            faults.append((name, _several(media)))
            continue
        spoken = _spoken(None, name, media[0], clips, transcripts)
        jobs.append(ClipJob(id=name, split="", labels={}, media=media[0], place=_place(media[0], clips), **spoken))
    return jobs, faults


def _clips_of_rows(
    clips: ClipFiles, labels: LabelTable, transcripts: Transcripts
) -> tuple[list[ClipJob], list[tuple[str, str]]]:
    jobs, faults = [], list(labels.faults)
    used: dict[str, LabelRow] = {}
    for row in labels.rows:
        key = _clip_of_row(row, clips)
        if key is None:
            faults.append((row.id, _no_clip(row, clips)))
            continue
        before = used.setdefault(key, row)
        media = clips.media[key]
        if len(media) > 1:
            faults.append((row.id, _several(media)))
        elif before is not row and not (_is_segment(row) and _is_segment(before)):
            faults.append((row.id, f"line {before.line} ({before.id}) has the same clip; leave one, or give times"))
        else:
            jobs.append(_job(row, key, media[0], clips, transcripts))
    named = used.keys() | {clips.find(name) for name in labels.faulty}
    faults += [(name, f"no row of {labels.path.name}") for name in clips.media if name not in named]
    return jobs, faults


def _job(row: LabelRow, key: str, media: Path, clips: ClipFiles, transcripts: Transcripts) -> ClipJob:
    return ClipJob(
        id=row.id,
        split=row.split,
        labels=row.labels,
        media=media,
        place=_place(media, clips),
        start=row.start or 0.0,
        stop=row.stop,
        is_segment=_is_segment(row),
        **_spoken(row, key, media, clips, transcripts),
    )


def _spoken(row: LabelRow | None, key: str, media: Path, clips: ClipFiles, transcripts: Transcripts) -> dict[str, Any]:
    """Where a clip's transcript comes from: the table, a file, which may have times of words, or else the row."""
    given = transcripts.table.get(key if row is None else row.id)
    if given is None and row is not None and key in transcripts.table:
        whole = transcripts.table[key]
        given = whole if whole.words or not _is_segment(row) else None
    if given is not None:
        return {"transcript": given, "transcript_origin": "transcripts from a table"}
    of_row = None if row is None or row.text is None else Transcript(text=row.text)
    file = transcript_file(media, clips.folder, transcripts.folder)
    if file is None:
        return {} if of_row is None else {"transcript": of_row, "transcript_origin": "transcripts from the label file"}
    is_part = row is not None and _is_segment(row)
    return {
        "transcript_file": file,
        "transcript_origin": "transcripts from files",
        "transcript": of_row if is_part else None,
    }


def _clip_of_row(row: LabelRow, clips: ClipFiles) -> str | None:
    """The clip that a row means: by its file, its id, or, where it says which seconds, its video."""
    if row.file:
        return clips.find(row.file)
    names = (row.id, row.video) if _is_segment(row) and row.video else (row.id,)
    return next((key for name in names if (key := clips.find(name)) is not None), None)


def _no_clip(row: LabelRow, clips: ClipFiles) -> str:
    name = (row.file or row.id).replace(ID_SEPARATOR, "/")
    if (reason := dict(clips.faults).get(name)) is not None:
        return f"line {row.line}: {reason}"
    similar = clips.similar(name)
    hint = f"; {similar} is there, so write it like that" if similar else ""
    return f"line {row.line}: there is no clip {name} in {clips.folder}{hint}"


def _several(media: tuple[Path, ...]) -> str:
    return f"several files: {', '.join(path.name for path in media)}; leave one"


def _is_segment(row: LabelRow) -> bool:
    return row.start is not None or row.stop is not None


def _place(media: Path, clips: ClipFiles) -> str:
    return str(media.relative_to(clips.folder))


def _media_id(job: ClipJob) -> str:
    return str(Path(job.place).with_suffix(""))


def _check_jobs(
    clips: ClipFiles, labels: LabelTable | None, jobs: list[ClipJob], faults: list[tuple[str, str]]
) -> None:
    if labels is not None and not jobs:
        first = "; ".join(f"{name}: {reason}" for name, reason in faults[:3])
        if not labels.rows:
            raise ValueError(f"no row of {labels.path} can be used: {len(faults)} are wrong ({first}); correct them")
        raise ValueError(f"no row of {labels.path} has a clip in {clips.folder} ({first}); ids are paths in the folder")
    without = [row for row in labels.rows if not row.split and row.labels] if labels is not None else []
    if without and labels is not None:
        raise ValueError(
            f"{labels.path} has labels and no column split (or mode); write train, valid or test for each clip"
        )
    assert len({job.id for job in jobs}) == len(jobs), "a label file has each id once, a folder each path"
