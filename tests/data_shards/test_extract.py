"""`dmd extract` from clips that the tests make: sets, bad clips, resume after a kill, other labels, other settings."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.format.extraction_files import WORK_DIRECTORY
from data_shards.reading.index import ShardIndex
from data_shards.sole_writer import sole_writer
from dmd.exit_codes import STOPPED
from tests.support.clips import Sound, tones, write_clip, write_wav
from tests.support.clusters import dmd, finish
from tests.support.commands import command, rejected
from tests.support.tokenizers import save_tokenizer, save_vocabulary
from tests.support.waiting import until

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]


def extract(*arguments: object, processes: int = 1) -> int:
    return command("extract", *arguments, "--processes", processes)


def rows(path: Path) -> list[list[str]]:
    """The rows of a csv file, without its header."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def parts(out: Path) -> dict[str, bytes]:
    """The content of the parts of a set."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


def features(out: Path) -> pa.Table:
    """The rows of a set."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*"))])


def write_labels(path: Path, labels: dict[str, tuple[str, float]]) -> Path:
    lines = [f"{name},{split},{label},what is said in {name}" for name, (split, label) in labels.items()]
    path.write_text("id,split,label,text\n" + "\n".join(lines))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of two seconds, one of them without a face, a file that is none, and a recording."""
    folder = tmp_path_factory.mktemp("videos") / "clips"
    (folder / "v").mkdir(parents=True)
    sound = tones(2.0)
    write_clip(folder / "v" / "1.mp4", sound)
    write_clip(folder / "v" / "2.mp4", tones(2.0, pitch=220.0))
    write_clip(folder / "v" / "faceless.mp4", sound, kind="grey")
    (folder / "v" / "broken.mp4").write_bytes((folder / "v" / "1.mp4").read_bytes()[:3000])
    write_wav(folder / "v" / "sound.wav", sound)
    (folder / "readme.md").touch()
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 short recordings, all different: more than a part holds."""
    folder = tmp_path_factory.mktemp("recordings") / "clips"
    folder.mkdir()
    sound = tones(0.4)
    for number in range(70):
        write_wav(folder / f"{number:03d}.wav", Sound(sound.samples[: -1 - number]))
    labels = {f"{i:03d}": (("train", "valid", "test")[i % 3], i % 7 - 3.0) for i in range(70)}
    write_labels(folder.parent / "labels.csv", labels)
    return folder


@pytest.fixture(scope="module")
def sound_only(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for recordings, with tokens of their transcripts."""
    vocabulary = save_vocabulary(save_tokenizer("bert", tmp_path_factory.mktemp("tokenizer")))
    return ["--vision", "none", "--text", "tokens", "--text-encoder", str(vocabulary), "--lengths", "text=8"]


@pytest.fixture(scope="module")
def whole(recordings: Path, sound_only: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings, extracted by two processes without any trouble."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert extract(recordings, out, "--labels", recordings.parent / "labels.csv", *sound_only, processes=2) == 0
    return out


def test_from_clips_to_shards(videos, tmp_path, capsys):
    """Each clip that cannot be used is named with its reason, and the others become shards that say how."""
    labels = write_labels(
        tmp_path / "labels.csv",
        {
            "v/1.mp4": ("train", 1.5),
            "v$_$2": ("valid", -1),
            **{f"v/{name}": ("train", 0.5) for name in ("faceless", "broken", "sound", "missing")},
        },
    )
    out = tmp_path / "out"
    lengths = ["--lengths", "audio=60,vision=40"]
    assert extract(videos, out, "--labels", labels, *lengths, processes=2) == 0
    printed = capsys.readouterr().out
    assert "5 clips\n" in printed
    assert "read: files .md (1), transcripts from the label file (5)" in printed
    assert f"{out}: train 1, valid 1; 4 failed" in printed
    reasons = dict(rows(out / "_failed.csv"))
    assert reasons.pop("v/missing").startswith("line 7: there is no clip v/missing in ")
    assert reasons.keys() == {"v/faceless", "v/broken", "v/sound"}
    assert "face" in reasons["v/faceless"]
    assert "v/sound" in printed
    assert extract(videos, out, "--labels", labels, *lengths, "--strict") == 1
    assert "train 1, valid 1, 2 of them before; 4 failed" in capsys.readouterr().out

    table = features(out)
    assert table.column("id").to_pylist() == ["v/1.mp4", "v$_$2"]
    assert table.column("label").to_pylist() == [1.5, -1.0]
    assert table.column("raw_text").to_pylist() == ["what is said in v/1.mp4", "what is said in v$_$2"]
    settings = json.loads((out / "_extraction.json").read_text())["settings"]
    assert settings["lengths"] == {"audio": 60, "vision": 40}
    assert len(settings["face_model"]) == 64


def test_shards_know_how_their_features_were_made(whole, tmp_path, capsys):
    assert features(whole).column("vision").to_pylist() == [[[0.0]]] * 70
    assert command("shard", whole, tmp_path / "shards") == 0
    assert "ignored" not in capsys.readouterr().out
    info = ShardIndex.load(tmp_path / "shards").info
    assert info.counts == {"train": 24, "valid": 23, "test": 23}
    assert info.extraction == json.loads((whole / "_extraction.json").read_text())["settings"]

    assert info.tokenizer == {"name": info.extraction["text_encoder"], "digest": info.extraction["text_digest"]}
    assert (info.text_kind, info.lengths["text"]) == ("tokens", 8)

    two = tmp_path / "two"
    shutil.copytree(whole, two)
    other = pq.read_table(two / "part-00001.parquet")
    metadata = {b"dmd.extraction": json.dumps({**info.extraction, "audio_rate": 10.0}).encode()}
    pq.write_table(other.replace_schema_metadata(metadata), two / "part-00001.parquet")
    message = rejected(capsys, "shard", two, tmp_path / "mixed")
    assert "part-00001.parquet: its features were made otherwise than those of" in message
    assert "(audio_rate 20.0 and 10.0); extract all clips with the same settings" in message
    (two / WORK_DIRECTORY).mkdir()
    assert "`dmd extract` works on it, or was interrupted" in rejected(capsys, "shard", two, tmp_path / "mixed")


def test_other_labels_and_other_clips_cost_what_is_new(recordings, whole, sound_only, tmp_path, capsys):
    folder, out = tmp_path / "clips", tmp_path / "out"
    shutil.copytree(recordings, folder, copy_function=shutil.copy)  # other times, same content
    shutil.copytree(whole, out)
    write_wav(folder / "001.wav", tones(0.4, pitch=300.0))
    write_wav(folder / "new.wav", tones(0.3))
    labels = write_labels(
        tmp_path / "labels.csv",
        {"000": ("test", 3.0), "001": ("train", -3.0), "002": ("train", 0), "new": ("valid", 1)},
    )
    changed = labels.read_text().replace("what is said in 002", "other words")
    labels.write_text(changed)
    assert extract(folder, out, "--labels", labels, *sound_only) == 0
    assert f"{out}: train 2, valid 1, test 1, 1 of them before; 67 failed" in capsys.readouterr().out
    assert len(parts(out)) == 1
    found, before = features(out).to_pylist(), features(whole).to_pylist()
    assert [(row["id"], row["split"], row["label"]) for row in found] == [
        ("001", "train", -3.0),
        ("002", "train", 0.0),
        ("new", "valid", 1.0),
        ("000", "test", 3.0),
    ]
    assert found[1]["raw_text"] == "other words"
    audio = {row["id"]: row["audio"] for row in before}
    assert found[3]["audio"] == audio["000"]
    assert found[0]["audio"] != audio["001"]


@pytest.mark.parametrize(
    ("header", "values", "options", "columns", "hint"),
    [
        ("class", "joy;2", [], {"class": ["joy", "2"]}, "--classes --class-names 2,joy"),
        (
            "class,label",
            "so so,1;joy's,5",
            [],
            {"class": ["so so", "joy's"], "label": [1, 5]},
            """--label-range LOW HIGH --class-labels --class-names 'joy'"'"'s,so so'""",
        ),
        ("class,label", "0,1.5;1,-2", [], {"class": [0, 1], "label": [1.5, -2.0]}, "--class-labels"),
        (
            "happy,sad",
            "1,0;0,2.5",
            ["--emotions", "Happy, Sad"],
            {"Happy": [1, 0], "Sad": [0, 2.5]},
            "--emotions Happy,Sad",
        ),
    ],
)
def test_labels_of_each_kind_are_columns(
    recordings, whole, sound_only, tmp_path, capsys, header, values, options, columns, hint
):
    """And the command says what `dmd shard` is to be told."""
    out, labels = tmp_path / "its out", tmp_path / "labels.csv"
    shutil.copytree(whole, out)
    rows = [f"{i:03d},train,what is said in {i:03d},{value}" for i, value in enumerate(values.split(";"))]
    labels.write_text(f"id,split,text,{header}\n" + "\n".join(rows))
    assert extract(recordings, out, "--labels", labels, *sound_only, *options) == 0
    printed = capsys.readouterr().out
    assert f"{out}: train 2, 2 of them before; 68 failed" in printed
    assert f"next: dmd shard '{out}' SHARDS {hint}\n" in printed
    found = features(out)
    assert {name: found.column(name).to_pylist() for name in columns} == columns


def test_other_settings_and_strangers_are_rejected(recordings, whole, sound_only, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    message = rejected(capsys, "extract", recordings, out, *sound_only, "--audio-rate", "10")
    assert f"{out} holds features of other settings (audio_rate 20.0 and 10.0; first there, then here); give" in message
    with sole_writer(out):
        assert "is being written by process" in rejected(capsys, "extract", recordings, out, *sound_only)
    assert parts(out) == parts(whole)
    labels = write_labels(tmp_path / "labels.csv", {"000": ("test", 3.0)})
    options = ["--labels", labels, *sound_only, "--audio-rate", "10", "--restart"]
    assert extract(recordings, out, *options) == 0
    assert features(out).column("id").to_pylist() == ["000"]
    (out / "thesis.docx").touch()
    assert "holds thesis.docx, which `dmd extract` does not write" in rejected(
        capsys, "extract", recordings, out, *sound_only
    )


def test_a_kill_and_a_stop_cost_what_was_not_written(recordings, whole, sound_only, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    line = ["extract", recordings, out, "--labels", recordings.parent / "labels.csv", *sound_only, "--processes", "1"]

    def written() -> int:
        return len(list((out / WORK_DIRECTORY).glob("clips-*.parquet")))

    first = dmd(*line, log=log)
    until(lambda: written() or first.poll() is not None, log.read_text)
    os.kill(first.pid, signal.SIGKILL)
    finish(first, log, code=-signal.SIGKILL)
    assert not parts(out)
    second = dmd(*line, log=log)
    until(lambda: written() > 1 or second.poll() is not None, log.read_text)
    os.kill(second.pid, signal.SIGTERM)
    text = finish(second, log, code=STOPPED)
    assert text.rstrip().endswith(f"({out}); the same command continues"), text
    assert "Traceback" not in text
    assert command(*line) == 0
    assert parts(out) == parts(whole)
    assert not (out / WORK_DIRECTORY).exists()


def test_without_labels_all_clips_are_there_to_predict(recordings, sound_only, tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(recordings / "000.wav", folder / "000.wav")
    (folder / "000.txt").write_text("a word")
    assert extract(folder, tmp_path / "out", *sound_only) == 0
    (row,) = features(tmp_path / "out").to_pylist()
    assert (row["id"], row["raw_text"]) == ("000", "a word")
    assert not {"split", "label"} & row.keys()
    (folder / "000.txt").unlink()
    message = rejected(capsys, "extract", folder, tmp_path / "none", *sound_only)
    assert "no clip has features; " in message
    assert [name for name, _ in rows(tmp_path / "none" / "_failed.csv")] == ["000"]


def test_a_url_is_no_directory_of_features(recordings, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("extract", recordings, "s3://user:secret@bucket/features")
    assert "argument OUT: s3://bucket/features is a URL; give a directory, and `dmd shard`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frame-size", "100"], "--frame-size makes no difference with --audio "),
        (["--alignment", "words", "--audio-rate", "9"], "--audio-rate makes no difference with --audio "),
        (["--face-model", "x.task"], "--face-model makes no difference with --audio "),
        (["--lengths", "vision=5"], "--lengths vision=5 makes no difference with --vision none; leave it out"),
        (["--lengths", "audio=0"], "--lengths 'audio=0' is not MODALITY=STEPS, such as audio=400"),
        (["--lengths", "audio=3,audio=4"], "--lengths names audio twice"),
        (["--emotions", "happy,sad"], "--emotions names columns of --labels; give both"),
        (["--text", "tokens"], "text_encoder"),
        (["--processes", "0"], "--processes is 0; it must be at least 1"),
        (["--tasks", "3"], "--tasks is for tasks on a Ray cluster; name one with --address"),
        (["--transcripts", "/nowhere"], "--transcripts /nowhere is not there"),
    ],
)
def test_mistakes_in_the_command(recordings, tmp_path, capsys, options, message):
    assert message in rejected(capsys, "extract", recordings, tmp_path / "out", "--vision", "none", *options)
    assert not (tmp_path / "out").exists()
