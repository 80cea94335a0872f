"""Clips, rows and transcripts are joined; what is left over on any side is named."""

from pathlib import Path

import pytest

from data_shards.clip_sets.clip_files import find_clips
from data_shards.clip_sets.jobs import JobPlan, Transcripts, plan_jobs
from data_shards.clip_sets.one_clip import spoken_in
from data_shards.extraction.clip import ClipError
from data_shards.extraction.transcript import Transcript, Word
from data_shards.sources.label_table import read_label_table

BESIDE = Transcripts()
TIMED = Transcript(text="a b c", words=(Word("a", 0, 1), Word("b", 1, 2), Word("c", 2, 3)))


def folder(root: Path, *names: str) -> Path:
    """A folder of empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def plan(root: Path, labels: str = "", transcripts: Transcripts = BESIDE) -> JobPlan:
    table = None
    if labels:
        path = root.parent / "labels.csv"
        path.write_text(labels)
        table = read_label_table(path)
    return plan_jobs(find_clips(root), table, transcripts)


def test_ids_are_paths_in_every_spelling(tmp_path):
    root = folder(tmp_path / "clips", "v/0001.mp4", "v/0002.MP4", "v/0003.wav", "v/0004.mkv", "v/0005.mp4")
    text = "id,split,label\nv/0001,test,1\nv$_$0002,train,1\nv/0003.wav,train,1\nv\\0004,valid,1\nV/5,train,1\n"
    found = plan(root, text)
    assert [(job.split, job.id, job.media.name) for job in found.jobs] == [
        ("train", "v$_$0002", "0002.MP4"),
        ("train", "v/0003.wav", "0003.wav"),
        ("valid", "v\\0004", "0004.mkv"),
        ("test", "v/0001", "0001.mp4"),
    ]
    assert found.faults == (
        ("V/5", f"line 6: there is no clip V/5 in {root}; v/0005 is there, so write it like that"),
        ("v/0005", "no row of labels.csv"),
    )


def test_two_files_or_two_rows_of_one_clip(tmp_path):
    root = folder(tmp_path / "clips", "a.mp4", "a.wav", "v/b.mp4", "c.mp4")
    found = plan(root, "id,split,label\na,test,1\nv/b,test,1\nv$_$b,test,2\nc,test,0\n")
    assert [job.id for job in found.jobs] == ["c", "v/b"]
    assert found.faults == (
        ("a", "several files: a.mp4, a.wav; leave one"),
        ("v$_$b", "line 3 (v/b) has the same clip; leave one, or give times"),
    )


def test_the_clip_of_a_bad_row_is_listed_once(tmp_path):
    root = folder(tmp_path / "clips", "good.mp4", "v/bad.mp4", "twice.mp4", "talk.mp4", "other.mp4", "unnamed.mp4")
    text = (
        "id,split,label,file,start\ngood,test,1,,\nv$_$bad,test,much,,\ntwice,test,1,,\ntwice,test,2,,\n"
        "x,test,1,other.mp4,soon\ntalk,test,1\n"
    )
    found = plan(root, text)
    assert [(name, reason.partition(" ")[0]) for name, reason in found.faults] == [
        *(("v$_$bad", "line"), ("twice", "lines"), ("x", "line"), ("talk", "line"), ("unnamed", "no")),
    ]


def test_segments_of_longer_files(tmp_path):
    root = folder(tmp_path / "clips", "talk.mp4", "other.mp4")
    text = (
        "video_id,clip_id,split,label,start,stop,file,text\n"
        'talk,1,train,1,0,"1,5",,one\ntalk,2,test,1,1.5,,,two\nx,3,test,1,,2,other.mp4,three\n'
    )
    found = plan(root, text, Transcripts(table={"talk": TIMED}))
    assert [(job.id, job.media.name, job.start, job.stop) for job in found.jobs] == [
        ("talk$_$1", "talk.mp4", 0.0, 1.5),
        ("talk$_$2", "talk.mp4", 1.5, None),
        ("x$_$3", "other.mp4", 0.0, 2.0),
    ]
    said = [spoken_in(job) for job in found.jobs]
    assert [transcript.text for transcript in said if transcript is not None] == ["a", "b c", "three"]
    assert found.notes["transcripts from a table"] == 2


def test_transcripts_beside_clips_come_before_the_label_file(tmp_path):
    root = folder(tmp_path / "clips", "a.mp4", "b.mp4", "c.mp4", "c.nfo")
    (root / "a.txt").write_text("of a file")
    labelled = plan(root, "id,split,label,text\na,test,1,of a row\nb,test,1,of b\nc,test,1,of c\n")
    assert [spoken_in(job).text for job in labelled.jobs] == ["of a file", "of b", "of c"]
    assert labelled.notes == {"transcripts from files": 1, "transcripts from the label file": 2, "files .nfo": 1}
    elsewhere = folder(tmp_path / "texts")
    elsewhere.mkdir()
    (elsewhere / "b.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nof elsewhere\n")
    apart = plan(root, transcripts=Transcripts(folder=elsewhere))
    assert [(job.split, job.labels) for job in apart.jobs] == [("", {})] * 3
    assert [job.transcript_origin for job in apart.jobs] == ["no transcript", "transcripts from files", "no transcript"]


def test_transcripts_in_capitals_are_read_and_files_of_no_clip_are_counted(tmp_path):
    root = folder(tmp_path / "clips", "a.mp4", "b.mp4", "b.json", "b.TXT", "c.srt", "labels.csv")
    (root / "a.SRT").write_text("1\n00:00:00,000 --> 00:00:01,000\nso\n")
    (root / "labels.csv").write_text("id,split,label\na,test,1\nb,test,1\n")
    found = plan_jobs(find_clips(root), read_label_table(root / "labels.csv"), BESIDE)
    assert [job.transcript_file for job in found.jobs] == [root / "a.SRT", root / "b.json"]
    assert found.notes == {"transcripts from files": 2, "transcript files that no clip uses": 2}  # b.TXT and c.srt
    elsewhere = folder(tmp_path / "texts", "a.TXT", "d.txt")
    found = plan(root, "id,split,label\na,test,1\n", Transcripts(folder=elsewhere))
    assert found.jobs[0].transcript_file == elsewhere / "a.TXT"
    assert found.notes["transcript files that no clip uses"] == 6


def test_what_is_said_in_a_segment_must_be_known(tmp_path):
    root = folder(tmp_path / "clips", "talk.mp4")
    (root / "talk.txt").write_text("all of it")
    without = plan(root, "id,split,label,start,stop\ntalk,test,1,1,2\n")
    with pytest.raises(ClipError, match=r"talk.txt has no times, so what is said in a part of it is not known"):
        spoken_in(without.jobs[0])
    with_row = plan(root, "id,split,label,start,stop,text\ntalk,test,1,1,2,a part\n")
    assert spoken_in(with_row.jobs[0]) == Transcript(text="a part")


def test_what_is_no_file_is_named(tmp_path, caplog):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").touch()
    (tmp_path / "clips" / "b.MP4").symlink_to("gone.mp4")
    (tmp_path / "clips" / "said.txt").symlink_to("gone.txt")
    (tmp_path / "clips" / "more").symlink_to(tmp_path)
    wanted = [
        ("b", "b.MP4 is a link to nothing; give the file itself"),
        ("more", "more is a link to a directory, which is not followed; give the file itself"),
        ("said.txt", "said.txt is a link to nothing; give the file itself"),
    ]
    assert sorted(plan_jobs(find_clips(tmp_path / "clips"), None, BESIDE).faults) == wanted
    (tmp_path / "labels.csv").write_text("id,label,split\na,1,train\nb,2,train\n")
    table = read_label_table(tmp_path / "labels.csv")
    wanted[0] = ("b", f"line 3: {wanted[0][1]}")
    assert sorted(plan_jobs(find_clips(tmp_path / "clips"), table, BESIDE).faults) == wanted


def test_what_is_no_unicode_text_costs_its_clip(tmp_path):
    root = folder(tmp_path / "clips", "a.mp4", "caf\udce9.mp4", "x.\udce9")
    (root / "a.json").write_text('{"text": "so \\ud83d"}')
    found = plan(root)
    assert found.faults == (("caf\\udce9.mp4", "its name is not UTF-8, so it cannot be an id; rename the file"),)
    assert found.notes == {"files whose names are not UTF-8": 2, "transcripts from files": 1}
    with pytest.raises(ClipError, match=r"its transcript 'so \\ud83d' holds half of a surrogate pair"):
        spoken_in(found.jobs[0])


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        ([], "", "is no folder; give the one that holds the clips"),
        (["x.pdf", "y.pdf", "z"], "", r"holds no video and no sound file .* holds files .pdf \(2\), files without a"),
        (["a.mp4"], "id,split,label\nb,test,1\n", r"no row of .*labels.csv has a clip in .* \(b: line 2: there is no"),
        (["a.mp4"], "id,label\na,1\n", r"has labels and no column split \(or mode\)"),
    ],
)
def test_mistakes_about_the_whole_set(tmp_path, files, labels, message):
    root = folder(tmp_path / "clips", *files)
    with pytest.raises(ValueError, match=message):
        plan(root, labels)
