"""Extracts the clips of a plan into a directory; what is there already is not extracted again."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.clip_sets.clip_rows import ClipRecord, KnownClip, to_table, write_rows
from data_shards.clip_sets.jobs import ClipJob, JobPlan
from data_shards.clip_sets.one_clip import ExtractOne, Makers, Outcome
from data_shards.clip_sets.parts import NO_SPLIT, FinishedClip, check_lease, discard, find_known, list_failures, publish
from data_shards.executor import Ending, IndependentExecutor
from data_shards.extraction.clip import ExtractedClip
from data_shards.extraction.settings import ExtractionSettings
from data_shards.format.extraction_files import FAILURES_FILE, WORK_DIRECTORY
from data_shards.sole_writer import Lease, sole_writer

SECONDS = 600
"""For one clip."""
CLIP_MEMORY = 1 << 30
"""Bytes that the libraries and one clip take at most, beside those of an idle process; docs/extraction.md."""
_WRITE_CLIPS = 32
_WRITE_SECONDS = 30.0
"""Features are written when so many clips have been extracted, or so much time has passed: what a kill costs."""

OnProgress = Callable[[int, int], None]
"""Called with the numbers of clips that have features, and that have none."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of a set of clips."""

    counts: dict[str, int]
    """Clips per split."""
    extracted: int
    """Of them by this command; the others were there."""
    failed: tuple[tuple[str, str], ...]
    """(clip, reason)"""
    warnings: dict[str, int]
    """Kind -> clips."""
    left_out: tuple[str, ...]
    """Clips that had features in the directory and are not among those of this command: they are no longer there."""


@dataclass
class _Pending:
    """Extracted clips that are not written yet."""

    work: Path
    settings: ExtractionSettings
    lease: Lease
    clips: list[tuple[ExtractedClip, ClipRecord]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def add(self, clip: ExtractedClip, record: ClipRecord) -> dict[str, KnownClip]:
        """Take a clip; those that are written by now."""
        self.clips.append((clip, record))
        if len(self.clips) < _WRITE_CLIPS and time.monotonic() - self.since < _WRITE_SECONDS:
            return {}
        return self.write()

    def write(self) -> dict[str, KnownClip]:
        """Write all; the clips that were written, by id. Raises DirectoryInUse: another command took over."""
        check_lease(self.lease)
        clips, self.clips, self.since = self.clips, [], time.monotonic()
        if not clips:
            return {}
        path = self.work / f"clips-{uuid.uuid4().hex}.parquet"
        records = [record for _, record in clips]
        write_rows(path, to_table([clip for clip, _ in clips]), records, self.settings.to_dict())
        return {record.id: KnownClip(file=path, row=row, record=record) for row, record in enumerate(records)}


def extract_set(
    plan: JobPlan,
    out: Path,
    settings: ExtractionSettings,
    makers: Makers,
    executor: IndependentExecutor,
    *,
    seconds: int = SECONDS,
    restart: bool = False,
    progress: OnProgress = lambda done, failed: None,
) -> Summary:
    """Extract all clips of a plan that have no features yet, and put the set together.

    Args:
        out: the directory; made if it is not there.
        settings: as `preparation.prepare` gives them.
        seconds: for one clip; one that takes longer has failed.
        restart: extract all clips again.

    Raises:
        ValueError: other settings than those of the features that are there; another command writes there; no clip has
            features, or none of the clips that have some is among these. What was extracted is kept.
    """
    with sole_writer(out) as lease:
        if restart:
            discard(out)
        there = find_known(out, settings.to_dict())
        left_out = _left_out(out, plan, there)
        known = {job.id: there[job.id] for job in plan.jobs if job.id in there and _fits(there[job.id], job)}
        todo = tuple(job for job in plan.jobs if job.id not in known)
        work = out / WORK_DIRECTORY
        work.mkdir(exist_ok=True)
        extracted, failures = _extract(
            ExtractOne(jobs=todo, settings=settings, makers=makers, seconds=seconds),
            _Pending(work, settings, lease),
            executor,
            lambda done, failed: progress(len(known) + done, failed),
        )
        known.update(extracted)
        failed = (*plan.faults, *failures)
        clips = [FinishedClip(job=job, known=known[job.id]) for job in plan.jobs if job.id in known]
        if clips:
            publish(out, clips, failed, settings.to_dict(), lease)
        else:
            list_failures(out, failed, lease)
    if not clips:
        name, reason = failed[0]
        raise ValueError(f"no clip has features; {out / FAILURES_FILE} says why of each; {name}: {reason}")
    return Summary(
        counts=dict(Counter(clip.job.split or NO_SPLIT for clip in clips)),
        extracted=len(extracted),
        failed=failed,
        warnings=dict(Counter(kind for clip in clips for kind, _ in clip.known.record.warnings)),
        left_out=left_out,
    )


def _left_out(out: Path, plan: JobPlan, there: Mapping[str, KnownClip]) -> tuple[str, ...]:
    """The clips of a directory that are not among those of the plan. Raises ValueError where none is."""
    others = there.keys() - {job.id for job in plan.jobs}
    if others and len(others) == len(there):
        raise ValueError(
            f"{out} holds features of {len(others)} clips, the first is {min(others)}, and none of them is among these "
            f"{len(plan.jobs)}; give another OUT, or --restart to remove them"
        )
    return tuple(sorted(others))


def _fits(found: KnownClip, job: ClipJob) -> bool:
    try:
        return found.record.fits(job)
    except OSError:  # its extraction meets the same, and says it of this clip
        return False


def _extract(
    run: ExtractOne, pending: _Pending, executor: IndependentExecutor, progress: OnProgress
) -> tuple[dict[str, KnownClip], list[tuple[str, str]]]:
    """The clips that were extracted, by id, and (clip, reason) of those that failed."""
    known: dict[str, KnownClip] = {}
    failures: dict[int, str] = {}
    try:
        with executor.map_independent(run, len(run.jobs), memory=CLIP_MEMORY) as endings:
            for done, ending in enumerate(endings, start=1):
                outcome = _outcome(ending)
                if outcome.clip is not None and outcome.record is not None:
                    known.update(pending.add(outcome.clip, outcome.record))
                else:
                    failures[outcome.number] = outcome.reason
                progress(done - len(failures), len(failures))
    finally:
        known.update(pending.write())
    return known, [(run.jobs[number].id, reason) for number, reason in sorted(failures.items())]


def _outcome(ending: Ending[Outcome]) -> Outcome:
    if ending.result is None:
        return Outcome(number=ending.number, reason=ending.lost)
    return ending.result
