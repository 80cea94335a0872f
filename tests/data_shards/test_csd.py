"""Computational sequences of the CMU SDK: which rows belong to a word, what is left out, and files that are broken."""

import json
import pickle
import sys

import h5py
import numpy as np
import pytest

from data_shards.commands import inspect, shard, verify
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.sources.csd.source import CsdSource
from data_shards.sources.split_file import read_split_file
from data_shards.text.tokenizer import load_tokenizer
from tests.support.sequences import OPTIONS, data_set, frames, write_csd
from tests.support.small_data import files, read_all
from tests.support.tokenizers import save_tokenizer

ROLES = {"text": "T", "audio": "A", "vision": "V", "labels": "L", "words": "W"}


def source_of(folder, splits=None, **options):
    paths = {role: folder / f"{name}.csd" for role, name in ROLES.items() if (folder / f"{name}.csd").exists()}
    return CsdSource(paths, splits or {"v": "train"}, name="tiny", **options)


def samples_of(source, split="train"):
    return list(source.read(split, 0, source.counts()[split]))


def shards(folder, out, *options):
    assert shard([str(folder), str(out), *OPTIONS, "--splits", str(folder / "splits.json"), *options]) == 0
    return ShardIndex.load(out).info


@pytest.fixture
def by_hand(tmp_path):
    """One video whose alignment is easy to compute, and its entries."""
    entries = {
        "T": ([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [5.0, 6.0]], [[10.0], [20.0], [30.0], [40.0]]),
        "W": (
            [[0.0, 1.0], [1.0, 1.4], [1.4, 2.0], [2.0, 3.0], [5.0, 6.0]],
            [[b"so"], [b"sp"], [b"it"], [b"is"], [b"x"]],
        ),
        "A": (
            [[0.0, 0.4], [0.4, 0.8], [0.8, 1.2], [1.2, 2.000009], [4.0, 6.0]],
            [[1.0, -1.0], [2.0, -2.0], [6.0, -6.0], [8.0, 0.0], [5.0, 5.0]],
        ),
        "V": ([[0.9, 2.1], [2.1, 3.5], [5.5, 5.6]], [[7.0], [9.0], [11.0]]),
        "L": ([[0.5, 2.5], [5.2, 5.9]], [[1.5], [-2.0]]),
    }
    for name, content in entries.items():
        write_csd(tmp_path / f"{name}.csd", {"v": content})
    return tmp_path, entries


def test_a_word_gets_the_mean_of_all_rows_that_it_shares_time_with(by_hand):
    """Of word [0, 1] the rows [0, .4], [.4, .8], [.8, 1.2], each counted once, although a part of the last is outside.

    Row [1.2, 2.000009] shares 9 microseconds with word [2, 3], no more than the SDK's epsilon of ten: no row belongs to
    that word. The segment [.5, 2.5] has all words that it shares time with, whole.
    """
    folder, _ = by_hand
    first, second = samples_of(source_of(folder))
    assert (first.id, first.label, first.lengths, first.raw_text) == ("v[0]", 1.5, (3, 3, 3), "so it is")
    np.testing.assert_array_equal(first.text, [[10], [20], [30]])
    np.testing.assert_array_equal(first.audio, np.float32([[3, -3], [7, -3], [0, 0]]))
    np.testing.assert_array_equal(first.vision, [[7], [7], [8]])
    assert (second.id, second.label, second.lengths, second.raw_text) == ("v[1]", -2.0, (1, 1, 1), "x")
    np.testing.assert_array_equal(second.text, [[40], [0], [0]])
    np.testing.assert_array_equal(second.audio, [[5, 5], [0, 0], [0, 0]])
    np.testing.assert_array_equal(second.vision, [[11], [0], [0]])
    assert source_of(folder).ignored == {"words without audio, stored as 0": 1}


def test_unaligned_samples_have_the_rows_of_their_segment(by_hand):
    folder, _ = by_hand
    source = source_of(folder, align="none")
    first, second = samples_of(source)
    assert (first.lengths, second.lengths) == ((3, 3, 2), (1, 1, 1))
    np.testing.assert_array_equal(first.audio, [[2, -2], [6, -6], [8, 0]])
    np.testing.assert_array_equal(first.vision, [[7], [9]])
    np.testing.assert_array_equal(second.audio, [[5, 5], [0, 0], [0, 0]])
    assert not source.ignored


def test_order_compression_and_entries_per_word_change_nothing(by_hand):
    folder, entries = by_hand
    expected = samples_of(source_of(folder))
    changed = folder / "changed"
    changed.mkdir()
    for name, (intervals, features) in entries.items():
        order = list(range(len(intervals)))
        order = order if name == "L" else order[::-1]
        rows = [(intervals[i], features[i]) for i in order]
        write_csd(changed / f"{name}.csd", {"v": tuple(zip(*rows, strict=True))}, compression="gzip")
    words = {
        f"v[{i}]": ([interval], [feature]) for i, (interval, feature) in enumerate(zip(*entries["T"], strict=True))
    }
    write_csd(changed / "T.csd", words)
    for sample, other in zip(expected, samples_of(source_of(changed)), strict=True):
        assert (sample.id, sample.raw_text, sample.lengths) == (other.id, other.raw_text, other.lengths)
        for m in ("text", "audio", "vision"):
            np.testing.assert_array_equal(getattr(sample, m), getattr(other, m))


def test_files_that_were_aligned_to_segments_keep_them(tmp_path):
    """As the SDK deploys them: each segment is an entry, and 10 comes before 2 in the file."""
    for name, width in (("T", 2), ("A", 3), ("V", 1)):
        rows = {f"v[{i}]": (frames(2, 0.5, start=i), np.full((2, width), i)) for i in (2, 10)}
        write_csd(tmp_path / f"{name}.csd", rows)
    write_csd(tmp_path / "L.csd", {f"v[{i}]": ([[i, i + 1]], [[i / 10]]) for i in (2, 10)})
    found = {sample.id: sample for sample in samples_of(source_of(tmp_path))}
    assert {name: sample.label for name, sample in found.items()} == {"v[2]": 0.2, "v[10]": 1.0}
    assert (found["v[10]"].audio == 10).all()
    assert (found["v[2]"].text == 2).all()
    change(tmp_path, T={f"v[{i}]": ([[i / 2, i / 2 + 0.5]], [[i, i]]) for i in range(30)})  # an entry per word
    found = {sample.id: sample for sample in samples_of(source_of(tmp_path))}
    assert found["v[2]"].text.tolist() == [[4, 4], [5, 5]]


def test_what_is_in_no_sample_is_counted_and_named(tmp_path, capsys):
    entries = data_set(tmp_path, ["v0", "v1", "v2", "v3", "v4"])
    del entries["V"]["v1"]
    entries["A"]["v0"] = (frames(100, 0.05), np.ones((100, 3)))  # nothing after five seconds
    entries["L"]["v2"] = ([[0.9, 4.1], [5.0, 5.0], [11.0, 19.5]], [[1.0, 0.5]] * 3)
    entries["L"]["extra"] = ([[0.0, 1.0]], [[1.0, 0.5]])
    entries["W"]["other"] = entries["W"]["v0"]
    entries["A"]["v2"] = (
        np.concatenate([frames(400, 0.05), [[3.0, 3.0], [4.0, 1.0], [np.nan, 2.0]]]),
        np.ones((403, 3)),
    )
    for name in "AVLW":
        write_csd(tmp_path / f"{name}.csd", {**entries[name]})
    (tmp_path / "readme.txt").write_text("x")
    splits = json.loads((tmp_path / "splits.json").read_text())
    (tmp_path / "splits.json").write_text(json.dumps({**splits, "test": [*splits["test"], "gone"]}))
    info = shards(tmp_path, tmp_path / "out")
    assert info.counts == {"train": 3, "valid": 3, "test": 3}
    expected = {
        "audio rows without a length": 3,
        "file readme.txt": 1,
        "labels: columns after the first": 14,
        "segments of videos in no split: extra[0]": 1,
        "segments of videos that vision lacks: v1[0], v1[1], v1[2]": 3,
        "segments without a length: v2[1]": 1,
        "segments without audio: v0[1], v0[2]": 2,
        "videos of --splits without labels: gone": 1,
        "videos of words without labels in a split": 1,
    }
    assert info.ignored == expected
    assert "segments without audio: v0[1], v0[2] (2)" in capsys.readouterr().out
    assert inspect([str(tmp_path / "out")]) == 0
    assert "segments of videos that vision lacks: v1[0], v1[1], v1[2] (3)" in capsys.readouterr().out


def test_shards_of_sequences_verify_and_are_the_same_by_any_number_of_processes(tmp_path):
    videos = [f"video{i:02d}" for i in range(20)]
    (tmp_path / "in").mkdir()
    entries = data_set(tmp_path / "in", videos)
    info = shards(tmp_path / "in", tmp_path / "out", "--samples-per-shard", "7", "--processes", "1")
    shards(tmp_path / "in", tmp_path / "again", "--samples-per-shard", "7", "--processes", "2")
    assert files(tmp_path / "out") == files(tmp_path / "again")
    assert verify([str(tmp_path / "out")]) == 0
    assert info.counts == {"train": 54, "valid": 3, "test": 3}
    assert (info.dims, info.lengths) == ({"text": 4, "audio": 3, "vision": 2}, {"text": 17, "audio": 17, "vision": 17})
    stored = read_all(tmp_path / "out", "valid")
    assert stored["id"] == ["video18[0]", "video18[1]", "video18[2]"]
    assert stored["raw_text"][0] == "word1 word2 word3 word4 word6 word7 word8"
    np.testing.assert_array_equal(stored["label"], np.float32(entries["L"]["video18"][1][:, 0]))
    np.testing.assert_array_equal(stored["text"][1, :8], np.float32(entries["T"]["video18"][1][10:18]))


def test_a_source_is_pickled_as_its_paths(by_hand):
    source = source_of(by_hand[0])
    raw = pickle.dumps(source)
    assert len(raw) < 10_000
    for sample, other in zip(samples_of(source), samples_of(pickle.loads(raw)), strict=True):
        np.testing.assert_array_equal(sample.audio, other.audio)


def test_lengths_cut_and_pad(by_hand):
    source = source_of(by_hand[0], align="none", lengths={"audio": 2, "vision": 5})
    first, second = samples_of(source)
    assert (first.lengths, second.lengths) == ((3, 2, 2), (1, 1, 1))
    assert (first.text.shape, first.audio.shape, first.vision.shape) == ((3, 1), (2, 2), (5, 1))
    assert source.ignored == {"audio steps beyond 2, of 1 segments": 1}


def test_nonfinite_values_are_refused_or_zeroed_after_the_mean(by_hand):
    folder, entries = by_hand
    intervals, features = entries["A"]
    features[0][0] = -np.inf  # as COVAREP has it: of the first word's mean
    features[3][1] = np.nan  # of the second's
    write_csd(folder / "A.csd", {"v": (intervals, features)})
    with pytest.raises(ValueError, match=r"train/audio 2 \(first in v\[0\]\); repair them, or zero"):
        source_of(folder)
    source = source_of(folder, nonfinite="zero")
    assert source.nonfinite == {"train/audio": 2}
    np.testing.assert_array_equal(samples_of(source)[0].audio, np.float32([[0, -3], [7, 0], [0, 0]]))


def change(folder, **entries):
    for name, content in entries.items():
        write_csd(folder / f"{name}.csd", content)


def copy(folder, name, other):
    (folder / f"{other}.csd").write_bytes((folder / f"{name}.csd").read_bytes())


def without_features(folder):
    with h5py.File(folder / "A.csd", "a") as file:
        del file["A/data/v/features"]


def other_hdf5(folder):
    with h5py.File(folder / "A.csd", "w") as file:
        file["audio"] = np.ones(3)


def cut(folder):
    raw = (folder / "A.csd").read_bytes()
    (folder / "A.csd").write_bytes(raw[: len(raw) // 2])


def two_widths(folder):
    rows = frames(9, 1.0)
    change(folder, A={"v": (rows, np.ones((9, 2))), "w": (rows, np.ones((9, 3)))})
    change(folder, L={"v": ([[0.0, 3.0]], [[1.0]]), "w": ([[0.0, 3.0]], [[2.0]])})


BROKEN = {
    "rows": lambda folder: change(folder, A={"v": (frames(3, 1.0), np.ones((4, 2)))}),
    "intervals": lambda folder: change(folder, A={"v": (np.ones((3, 3)), np.ones((3, 2)))}),
    "axes": lambda folder: change(folder, A={"v": (frames(3, 1.0), np.ones((3, 2, 2)))}),
    "widths": two_widths,
    "words for text": lambda folder: copy(folder, "W", "T"),
    "numbers for words": lambda folder: copy(folder, "A", "W"),
    "no features": without_features,
    "other HDF5": other_hdf5,
    "cut": cut,
    "pickle": lambda folder: (folder / "A.csd").write_bytes(pickle.dumps({})),
    "no segment": lambda folder: change(folder, L={"v": ([[100.0, 101.0]], [[1.0]])}),
    "no column": lambda folder: change(folder, L={"v": ([[1.0, 2.0]], np.ones((1, 0)))}),
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("rows", r"A\.csd: v has 4 rows of features and 3 intervals"),
        ("intervals", r"the intervals of v are float64 \(3, 3\); they must be numbers \[rows, 2\]"),
        ("axes", r"the features of v have shape \(3, 2, 2\)"),
        ("widths", r"A\.csd: w has 3 features per row, and v 2; all videos"),
        ("words for text", r"T\.csd: v holds \|S2, not numbers \(of words themselves say words=FILE"),
        ("numbers for words", r"W\.csd: v holds float64, not words; name another file"),
        ("no features", r"A\.csd: v lacks features; an entry is \{features, intervals\}"),
        ("other HDF5", r"A\.csd is an HDF5 file and no computational sequence: it has 0 groups with `data` inside"),
        ("cut", r"A\.csd cannot be read as HDF5: .*restore it from where it came from"),
        ("pickle", r"A\.csd is a pickle, not a computational sequence"),
        ("no segment", r"no segment has text, audio and vision: .*segments without text: v\[0\] \(1\)"),
        ("no column", r"v holds float64 \(1, 0\); labels are numbers \[segments, columns\]"),
    ],
)
def test_a_broken_sequence_is_named(by_hand, kind, message):
    folder, _ = by_hand
    BROKEN[kind](folder)
    paths = {role: folder / f"{name}.csd" for role, name in ROLES.items()}
    with pytest.raises(ValueError, match=message):
        CsdSource(paths, {"v": "train", "w": "train"}, name="tiny")


def test_roles_are_named_by_the_user(tmp_path):
    data_set(tmp_path)
    argv = [str(tmp_path), str(tmp_path / "out")]
    splits = ["--splits", str(tmp_path / "splits.json")]
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "A.csd").write_bytes((tmp_path / "A.csd").read_bytes())
    for options, message in [
        (
            [],
            r"--csd does not say which .* is text, audio, vision, labels; .* there are A\.csd, L\.csd, T\.csd, V\.csd",
        ),
        (["--csd", "text=T,audio=A,vision=V"], "which computational sequence is labels"),
        (["--csd", "text=T,sound=A"], "--csd names 'sound'; it may name text, audio"),
        (["--csd", "text=T,text=A"], "--csd names text twice"),
        (
            ["--csd", "text=GloVe,audio=A,vision=V,labels=L"],
            r"--csd text=GloVe: .* no computational sequence of",
        ),
        (["--csd", "text=T,audio=A,vision=V,labels=L"], r"--csd audio=A fits .*A\.csd and .*A\.csd; give its path"),
        (["--csd", "text=T,audio=V,vision=V,labels=L"], r"audio and vision are the same file"),
        (
            [*OPTIONS[:1], f"text=T,audio={tmp_path}/A.csd,vision=V,labels=L"],
            "which video is in which split; give --splits",
        ),
        ([*OPTIONS, *splits, "--lengths", "sound=3"], "--lengths sound=3: name text, audio, vision"),
    ]:
        with pytest.raises(ValueError, match=message):
            shard([*argv, *options])
    named = f"text=T.csd,audio={tmp_path}/A.csd,vision=V,labels=L"
    assert shard([*argv, "--csd", named, *splits]) == 0
    assert ShardIndex.load(tmp_path / "out").info.ignored == {"file W.csd": 1, "file audio/A.csd": 1}


def test_without_h5py_the_package_is_named(by_hand, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"which h5py reads: pip install 'dmd-cluster\[csd\]'"):
        source_of(by_hand[0])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"train": ["a", "b"], "DEV": ["c"], "test": ["d"]}'),
        ("b.json", '{"a": "train", "b": "train", "c": "val", "d": "test"}'),
        ("c.csv", "\ufeffvideo_id;mode\na;train\nb;train\n\nc;valid\nd;test\n"),
        ("d.csv", "split,video,note\ntrain,a,\ntrain,b,x\nvalidation,c,\ntest,d,\n"),
        (
            "label.csv",
            "video_id,clip_id,mode\na,1,train\na,7,train\nb,1,train\nc,1,valid\nd,2,test\n",
        ),
        ("e.py", "standard_train_fold=['a', 'b']\n\nstandard_valid_fold=['c']\nstandard_test_fold=['d']\nx=f()\n"),
    ],
)
def test_split_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_split_file(tmp_path / name) == {"a": "train", "b": "train", "c": "valid", "d": "test"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"train": ["a"], "test": ["a"]}', "'a' is in train and in test; leave it in one"),
        ("a.json", '{"train": [3]}', "train names 3, which is no text"),
        ("a.json", '["a"]', "a JSON list; give {split: "),
        ("a.json", '{"a": "holdout"}', "split of 'a' 'holdout' is unknown; use train, valid, test"),
        ("a.json", '{"a": ', "is not JSON that can be read"),
        ("a.csv", "video_id,fold\na,1\n", r"lacks the column split \(or mode\); it has video_id, fold"),
        ("a.csv", "video_id,split\na,one\n", "line 2: split 'one' is unknown"),
        ("a.py", "folds = 3\n", "names no video"),
        ("a.py", "def\n", "is not Python that can be read"),
    ],
)
def test_split_files_that_are_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split_file(tmp_path / name)


def test_splits_of_single_segments_go_before_those_of_their_video(by_hand):
    counts = source_of(by_hand[0], {"v": "train", "v[1]": "test"}).counts()
    assert counts == {"train": 1, "test": 1}


def test_splits_of_other_videos_are_named(by_hand):
    with pytest.raises(
        ValueError, match=r"none of its 2 segments is in a split: --splits names w, the labels v\[0\], v\[1\]"
    ):
        source_of(by_hand[0], {"w": "train"})


def test_emotions_follow_the_sentiment_or_are_alone(tmp_path):
    """As in CMU-MOSEI, whose labels are a sentiment and then intensities from 0 to 3."""
    given = tmp_path / "in"
    given.mkdir()
    entries = data_set(given)
    rows = np.array([[0.5, 0.0, 0.66, 3.0], [-1.0, 0.33, 0.0, 0.0], [2.0, 0.0, 0.0, 1.0]])
    for columns, task, labels in [(rows, "regression", [0.5, -1.0, 2.0]), (rows[:, 1:], "multilabel", [np.nan] * 3)]:
        change(given, L={v: (intervals, columns) for v, (intervals, _) in entries["L"].items()})
        info = shards(given, tmp_path / task, "--emotions", "happy,sad,fear")
        stored = read_all(tmp_path / task, "valid")
        assert (info.task, info.emotions, info.ignored) == (task, ("happy", "sad", "fear"), {})
        np.testing.assert_array_equal(stored["label"], np.float32(labels))
        assert stored["emotions"].tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 1]]
    with pytest.raises(
        ValueError, match=r"v0\[0\] has 3 columns of labels, and --emotions 4 names; they are the columns"
    ):
        shards(given, tmp_path / "out", "--emotions", "a,b,c,d")
    change(given, L={"v0": ([[0.0, 1.0]], [[1.0, 2.0, -1.0]])})
    with pytest.raises(ValueError, match=r"L\.csd: v0\[0\]: emotions: c is -1; give 0 where an emotion is absent"):
        shards(given, tmp_path / "out", "--emotions", "a,b,c")


def test_without_text_samples_are_aligned_to_the_words_themselves(by_hand):
    """Of a data set without word vectors, such as newer CMU-MOSI; pauses are no steps, and the text is made later."""
    folder, _ = by_hand
    paths = {role: folder / f"{name}.csd" for role, name in ROLES.items() if role != "text"}
    first, second = samples_of(CsdSource(paths, {"v": "train"}, name="tiny"))
    assert (first.raw_text, first.lengths, first.text.shape) == ("so it is", (0, 3, 3), (3, 0))
    assert (second.raw_text, second.lengths) == ("x", (0, 1, 1))
    np.testing.assert_array_equal(first.audio, [[3, -3], [8, 0], [0, 0]])
    np.testing.assert_array_equal(first.vision, [[7], [7], [8]])


@pytest.mark.parametrize("roles", ["audio=A,vision=V,labels=L,words=W", "text=T,audio=A,vision=V,labels=L,words=W"])
def test_text_is_made_of_the_words(tmp_path, roles):
    data_set(tmp_path)
    tokenizer = save_tokenizer("gpt2", tmp_path / "encoder")
    options = ["--csd", roles, "--splits", str(tmp_path / "splits.json"), "--tokenizer", str(tokenizer)]
    sequences = [str(tmp_path / f"{name}.csd") for name in "TWAVL"]
    assert shard([*sequences, str(tmp_path / "shards"), *options]) == 0
    with ShardReader(tmp_path / "shards") as reader:
        assert reader.index.info.text_kind == "tokens"
        text = reader.raw_texts("train", [0])[0]
        assert "word" in text
        length = reader.index.info.lengths["text"]
        assert np.array_equal(reader.read("train", [0])["text"][0], load_tokenizer(tokenizer).encode(text, length))


@pytest.mark.parametrize("by_segment", [False, True])
def test_rows_without_a_length_are_counted_once(tmp_path, by_segment):
    data_set(tmp_path, ["v", "w", "x"])
    write_csd(tmp_path / "A.csd", {"v": (np.concatenate([frames(400, 0.05), [[3.0, 3.0]]]), np.ones((401, 3)))})
    segments = [[0.9, 4.1], [5.0, 9.0], [11.0, 19.5]]
    labels = {f"v[{i}]": ([segment], [[i]]) for i, segment in enumerate(segments)}
    write_csd(tmp_path / "L.csd", labels if by_segment else {"v": (segments, [[0.0], [1.0], [2.0]])})
    assert source_of(tmp_path).ignored["audio rows without a length"] == 1
