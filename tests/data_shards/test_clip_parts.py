"""A directory of features that are made up: what stays, what is removed, and what is refused."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.clip_sets.clip_files import find_clips
from data_shards.clip_sets.clip_rows import record_of
from data_shards.clip_sets.extract import Summary, extract_set
from data_shards.clip_sets.jobs import Transcripts, plan_jobs
from data_shards.clip_sets.one_clip import ExtractOne, Makers, Outcome
from data_shards.clip_sets.parts import FinishedClip, find_known, list_failures, publish
from data_shards.executor import Ending
from data_shards.extraction.clip import ExtractedClip
from data_shards.extraction.settings import ExtractionSettings
from data_shards.format.extraction_files import FORMER_NAMES, WORK_DIRECTORY, check_finished
from data_shards.sole_writer import DirectoryInUse, acquire, sole_writer
from data_shards.sources.table import TableSource

SETTINGS = ExtractionSettings(vision="none")


def made_up(run: ExtractOne, number: int) -> Outcome:
    """Features of a clip: the first byte of its file. An empty file fails."""
    job = run.jobs[number]
    content = job.media.read_bytes()
    if not content:
        return Outcome(number=number, reason="it is empty")
    clip = ExtractedClip(
        id=job.id,
        raw_text="",
        text=None,
        audio=np.full((1, 1), content[0], dtype=np.float32),
        vision=None,
        lengths={"audio": 1},
        duration=1.0,
    )
    return Outcome(number=number, clip=clip, record=record_of(job))


@dataclass
class MadeUp:
    """Makes features up in this process."""

    extracted: list[str] = field(default_factory=list)
    """Ids of the clips that it was given."""

    @contextmanager
    def map_independent(self, run: Any, count: int, *, memory: int) -> Iterator[Iterator[Ending[Any]]]:
        """As `IndependentExecutor`."""
        self.extracted += [job.id for job in run.jobs]
        yield (Ending(number=number, result=made_up(run, number)) for number in range(count))


def write(folder: Path, **contents: str) -> Path:
    """A folder of files that are called .wav."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.wav").write_text(content)
    return folder


def extract(folder: Path, out: Path, *, restart: bool = False) -> tuple[Summary, list[str]]:
    """Extract a folder; what came of it, and which clips were extracted."""
    executor = MadeUp()
    plan = plan_jobs(find_clips(folder), None, Transcripts())
    return extract_set(plan, out, SETTINGS, Makers(), executor, restart=restart), executor.extracted


def ids(out: Path) -> list[str]:
    """The clips of a set."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*"))]).column("id").to_pylist()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips."""
    return write(tmp_path / "clips", a="1", b="2")


@pytest.fixture
def out(clips: Path, tmp_path: Path) -> Path:
    """Their features."""
    extract(clips, tmp_path / "out")
    return tmp_path / "out"


def test_a_part_that_was_removed_is_written_again(clips, out):
    before = (out / "part-00000.parquet").read_bytes()
    assert extract(clips, out)[1] == []
    (out / "part-00000.parquet").unlink()
    assert extract(clips, out)[1] == ["a", "b"]
    assert (out / "part-00000.parquet").read_bytes() == before


@pytest.mark.parametrize("name", ["part-000000.parquet", "part-00000-c0ffee.snappy.parquet", "part-00007.parquet"])
def test_a_restart_removes_nothing_of_others(clips, out, name):
    pq.write_table(pa.table({"sentiment": [1.0]}), out / name)
    before = sorted(out.iterdir())
    with pytest.raises(ValueError, match=f"holds {name}, which `dmd extract` does not write"):
        extract(clips, out, restart=True)
    assert sorted(out.iterdir()) == before


def test_a_restart_removes_a_damaged_part_of_a_set(clips, out):
    (out / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"part-00000.parquet was not written by `dmd extract`, or is damaged"):
        extract(clips, out)
    assert extract(clips, out, restart=True)[1] == ["a", "b"]
    assert ids(out) == ["a", "b"]


@pytest.mark.parametrize("name", ["_failed.csv", "_warnings.csv", "_extraction.json"])
def test_a_kill_while_a_file_is_written_leaves_nothing_strange(clips, tmp_path, name):
    """The process is killed while it flushes the file to the disk."""
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        flush = os.fsync

        def die(handle: int) -> None:
            if name in os.readlink(f"/proc/self/fd/{handle}"):
                os._exit(1)
            flush(handle)

        os.fsync = die
        try:
            extract(clips, out)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert extract(clips, out)[1] == []
    assert sorted(path.name for path in out.iterdir()) == [
        *("_extraction.json", "_failed.csv", "_warnings.csv", "part-00000.parquet"),
    ]


def test_a_set_with_the_names_of_earlier_versions_is_read_and_continued(clips, out, tmp_path):
    for name, former in FORMER_NAMES.items():
        (out / name).rename(out / former)
    assert not TableSource(out, text="transcripts", labelled=False).ignored
    assert extract(clips, out)[1] == []
    write(clips, c="3")
    assert extract(clips, out)[1] == ["c"]
    names = {path.name for path in out.iterdir()}
    assert names >= set(FORMER_NAMES)
    assert not names & set(FORMER_NAMES.values())
    assert pq.read_table(out)["id"].to_pylist() == ["a", "b", "c"], "pyarrow reads the parts alone"


def test_features_of_clips_that_are_not_named_are_removed_with_a_word(clips, out):
    (clips / "a.wav").unlink()
    summary, extracted = extract(write(clips, c="3"), out)
    assert (extracted, summary.left_out) == (["c"], ("a",))
    assert ids(out) == ["b", "c"]


def test_features_of_other_clips_alone_are_not_removed(out, tmp_path):
    others = write(tmp_path / "others", c="3", d="4")
    with pytest.raises(ValueError, match="holds features of 2 clips, the first is a, and none of them is among these"):
        extract(others, out)
    assert ids(out) == ["a", "b"]
    extract(others, out, restart=True)
    assert ids(out) == ["c", "d"]


def test_a_set_stays_where_no_clip_has_features(clips, out):
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="no clip has features"):
        extract(write(clips, a="", b=""), out)
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.pop("_failed.csv") == b"clip,reason\na,it is empty\nb,it is empty\n"
    before.pop("_failed.csv")
    assert after == before


def test_another_file_of_the_same_size_and_time_is_another_clip(clips, out):
    """A label file may name the media file of an id, and later another one."""
    os.utime(clips / "a.wav", ns=(1, 1))
    os.utime(clips / "b.wav", ns=(1, 1))
    first, second = plan_jobs(find_clips(clips), None, Transcripts()).jobs
    assert record_of(first).fits(first)
    assert not record_of(first).fits(replace(second, id=first.id))
    moved = (clips / "a.wav").rename(clips / "c.wav")
    assert record_of(replace(first, media=moved)).fits(replace(first, media=moved, place="c.wav"))


def test_a_command_that_was_taken_over_replaces_nothing(clips, out):
    """Another command takes the directory over after the last clip was written."""
    before = (out / "part-00000.parquet").read_bytes()
    plan = plan_jobs(find_clips(clips), None, Transcripts())
    known = find_known(out, SETTINGS.to_dict())
    finished = [FinishedClip(job=replace(job, split="train"), known=known[job.id]) for job in plan.jobs]
    (out / WORK_DIRECTORY).mkdir()
    lease = acquire(out, group="set")
    with sole_writer(out, group="set"):
        with pytest.raises(DirectoryInUse, match="was taken over by process"):
            publish(out, finished, [], SETTINGS.to_dict(), lease)
        with pytest.raises(DirectoryInUse):
            list_failures(out, [("a", "it is empty")], lease)
    lease.release()
    assert (out / "part-00000.parquet").read_bytes() == before
    assert "empty" not in (out / "_failed.csv").read_text()


def test_features_that_lack_clips_are_known_wherever_they_are_named(out, tmp_path):
    check_finished(tmp_path)
    (out / WORK_DIRECTORY).mkdir()
    clips = out / WORK_DIRECTORY / "clips-1.parquet"
    clips.touch()
    for place in (tmp_path, out, out / "part-00000.parquet", out / WORK_DIRECTORY, clips):
        with pytest.raises(ValueError, match=f"{out} lacks clips: `dmd extract` works on it, or was interrupted"):
            check_finished(place)
    check_finished(tmp_path / "clips")
