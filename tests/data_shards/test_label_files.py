"""Labels from a csv file, joined with features by the clip's id; and what MMSA-FET writes."""

import csv
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.commands import shard, verify
from data_shards.labels import Labels
from data_shards.reading.index import ShardIndex
from data_shards.sources.detect import SourceOptions, open_source
from data_shards.sources.label_file import read_label_file
from data_shards.sources.label_table import read_label_table
from tests.support.small_data import files, mmsa, read_all, save

HEADER = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
ROWS = [
    "v1,0001,Good morning,1.5,-0.5,0.5,1,Positive,train",
    'v1,0002,"Well, no",-2,0.4,0.5,1,Negative,train',
    "v2,0001,不知道,0.5,0.2,0.5,1,Neutral,train",
    "v2,0002,fine,2.5,1.0,0.5,1,Positive,val",
    "v3,0001,bad,-1.5,-0.6,0.5,1,Negative,test",
]
NAMES = ["v1$_$0001", "v1$_$0002", "v2$_$0001", "v2$_$0002", "v3$_$0001"]


def label_csv(folder, rows=ROWS, *, header=HEADER, encoding="utf-8"):
    path = folder / "label.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


def features(names=NAMES, *, seed=0):
    """Fields of clips without labels and splits, of which the text has its own length."""
    draw, count = np.random.RandomState(seed), len(names)
    return {
        "id": list(names),
        "text": draw.randn(count, 4, 5).astype(np.float32),
        "audio": draw.randn(count, 6, 3).astype(np.float32),
        "vision": draw.randn(count, 7, 2).astype(np.float32),
        "audio_lengths": list(range(1, count + 1)),
    }


def shards(path, out, *options):
    assert shard([str(path), str(out), *map(str, options)]) == 0
    return ShardIndex.load(out).info


def stored_labels(out):
    info = ShardIndex.load(out).info
    return {
        name: float(label)
        for split in info.counts
        for name, label in zip(read_all(out, split)["id"], read_all(out, split)["label"], strict=True)
    }


EXPECTED = dict(zip(NAMES, (1.5, -2.0, 0.5, 2.5, -1.5), strict=True))


def test_labels_splits_and_sentences_come_from_the_file(tmp_path):
    given = features()
    out = tmp_path / "out"
    info = shards(save(given, tmp_path / "x.pkl"), out, "--labels", label_csv(tmp_path))
    assert info.counts == {"train": 3, "valid": 1, "test": 1}
    assert stored_labels(out) == EXPECTED
    train = read_all(out)
    assert train["raw_text"] == ["Good morning", "Well, no", "不知道"]
    np.testing.assert_array_equal(train["audio"], given["audio"][:3])
    assert train["lengths"][:, 1].tolist() == [1, 2, 3]
    assert info.ignored == {
        f"column {name} of label.csv": 5 for name in ("label_T", "label_A", "label_V", "annotation")
    }
    assert verify([str(out)]) == 0


def test_the_column_of_the_labels_is_chosen(tmp_path):
    path, out = save(features(), tmp_path / "x.pkl"), tmp_path / "out"
    shards(path, out, "--labels", label_csv(tmp_path), "--label-column", "label_T", "--label-scale", "3")
    assert stored_labels(out) == pytest.approx(dict(zip(NAMES, (-1.5, 1.2, 0.6, 3.0, -1.8), strict=True)))
    with pytest.raises(ValueError, match=r"lacks the column sentiment; it has video_id, .*with --label-column"):
        shards(path, out, "--labels", label_csv(tmp_path), "--label-column", "sentiment")
    with pytest.raises(ValueError, match="--label-column names a column of a label file; give the file with --labels"):
        shards(path, out, "--label-column", "label_T")


def test_classes_and_emotions_come_from_the_file_too(tmp_path):
    path = save(features(), tmp_path / "x.pkl")
    names = ("--classes", "--class-names", "Negative,Neutral,Positive", "--label-column", "annotation")
    info = shards(path, tmp_path / "out", "--labels", label_csv(tmp_path), *names)
    assert (info.task, info.classes, info.class_names) == ("classes", 3, ("Negative", "Neutral", "Positive"))
    assert read_all(tmp_path / "out")["class"].tolist() == [2, 0, 1]
    flags = [
        f"v{1 + i // 2},000{1 + i % 2},{mode},{i % 2},{i // 2}.5" for i, mode in enumerate(["train"] * 4 + ["test"])
    ]
    given = label_csv(tmp_path, flags, header="video_id,clip_id,mode,happy,sad")
    info = shards(path, tmp_path / "more", "--labels", given, "--emotions", "happy,sad")
    assert (info.task, info.emotions) == ("multilabel", ("happy", "sad"))
    assert read_all(tmp_path / "more")["emotions"].tolist() == [[0, 1], [1, 1], [0, 1], [1, 1]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_byte_order_marks_and_decimal_commas(tmp_path, encoding, separator):
    path = tmp_path / "label.csv"
    rows = [[f"v{i}", "1", "a,b; c", label, "train"] for i, label in enumerate(["0,5", "-1,25", "2"])]
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["video_id", "clip_id", "text", "label", "mode"], *rows])
    found = read_label_file(path, Labels())
    assert [clip.fields["label"] for clip in found.clips] == [0.5, -1.25, 2.0]
    assert [clip.raw_text for clip in found.clips] == ["a,b; c"] * 3
    assert found.notes == (f"{path}: 2 labels with a decimal comma, read as decimal numbers",)


def test_own_ids_in_one_column(tmp_path):
    given = features(["a b", "c", "d"])
    rows = ["a b,1.5,dev", "c,-1,training", "", "d,2,train"]
    labels = label_csv(tmp_path, rows, header="id,sentiment,split")
    shards(save(given, tmp_path / "x.pkl"), tmp_path / "out", "--labels", labels, "--label-column", "sentiment")
    assert stored_labels(tmp_path / "out") == {"c": -1.0, "d": 2.0, "a b": 1.5}
    assert read_all(tmp_path / "out", "valid")["raw_text"] == [""]


def test_clips_on_one_side_only_are_counted_and_named(tmp_path, capsys):
    given = features([*NAMES[1:], "v9$_$0001", "v9$_$0002"])
    rows = [*ROWS, "v4,1,text,,,,,,train", "v5,1,text,NaN,,,,,train", "v6,1,text,1,,,,,test"]
    info = shards(save(given, tmp_path / "x.pkl"), tmp_path / "out", "--labels", label_csv(tmp_path, rows))
    left_out = {name: count for name, count in info.ignored.items() if not name.startswith("column")}
    assert left_out == {
        "clips without a label in label.csv: v9$_$0001, v9$_$0002": 2,
        "rows of label.csv without a label: v4$_$1, v5$_$1": 2,
        "rows of label.csv without features: v1$_$0001, v6$_$1": 2,
    }
    assert "rows of label.csv without features: v1$_$0001, v6$_$1 (2)" in capsys.readouterr().out
    assert stored_labels(tmp_path / "out") == {name: EXPECTED[name] for name in NAMES[1:]}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([*ROWS, ROWS[0]], {}, r"1 clips have more than one row: 'v1\$_\$0001' in lines 2 and 7; leave one row each"),
        (["a/b,c,t,1,,,,,train", "a,b/c,t,1,,,,,train"], {}, "'a/b/c' in lines 2 and 3"),
        (["v1,1,t,high,,,,,train"], {}, "line 2: label 'high' is not a number"),
        (["v1,1,t,1,,,,,holdout"], {}, "line 2: mode 'holdout' is unknown; use train, valid, test"),
        (["v1,1,t,0,5,,,,,train"], {}, r"line 2 has 10 fields and the header 9; put fields with the separator in them"),
        (["v1,,t,1,,,,,train"], {}, "line 2 has no clip_id; fill it, or leave the row out"),
        (["v1,1,t,,0.5,,,,train"], {}, "none of its 1 rows has a label in label; choose another column with --label-c"),
        (['v1,1,"t,1,,,,,train'], {}, "is no row of a csv file: unexpected end of data"),
        (ROWS, {"header": HEADER.replace("clip_id", "clip")}, "has the column video_id and lacks clip_id"),
        (
            ROWS,
            {"header": HEADER.replace("video_id", "video")},
            "it lacks the column video_id or id; it has video,",
        ),
        (ROWS, {"header": HEADER.replace("label_T", "label")}, "has the column 'label' twice; leave one"),
        (ROWS, {"encoding": "gb18030"}, r"is not UTF-8: line 4 has the byte 0xb2; save it as UTF-8 .*iconv -f GB18030"),
    ],
)
def test_label_files_that_are_wrong(tmp_path, rows, options, message):
    path = label_csv(tmp_path, rows, **options)
    with pytest.raises(ValueError, match=message):
        read_label_file(path, Labels())


def test_files_that_are_no_label_files_are_named(tmp_path):
    path = save(features(), tmp_path / "x.pkl")
    for given, message in [(path, "is a pickle, not a label file"), (tmp_path / "no.csv", "nothing at this path")]:
        with pytest.raises(ValueError, match=message):
            shards(path, tmp_path / "out", "--labels", given)


def test_a_join_that_cannot_be_right_is_refused(tmp_path):
    given = label_csv(tmp_path)
    for names, message in [
        (["a", "b"], r"no clip is in both .*label\.csv and .*x\.pkl: labels are of v1\$_\$0001, .* features of a, b;"),
        (["v1$_$0001", "v1/0001"], r"'v1\$_\$0001' and 'v1/0001' are both the clip of line 2 of .*label\.csv"),
        (["v1$_$0001", None], "has no id"),
    ]:
        with pytest.raises(ValueError, match=message):
            shards(save(features(names), tmp_path / "x.pkl"), tmp_path / "out", "--labels", given)
    without_mode = label_csv(tmp_path, ["v1,0001,1"], header="video_id,clip_id,label")
    with pytest.raises(ValueError, match=r"says which split 'v1.*' is of; add a column mode"):
        shards(save(features(), tmp_path / "x.pkl"), tmp_path / "out", "--labels", without_mode)
    lists = save(
        {"train": [((np.ones(2), np.ones((1, 2)), np.ones((1, 2))), [[1.0]], "v1$_$0001")]}, tmp_path / "l.pkl"
    )
    with pytest.raises(ValueError, match="--labels is joined with MMSA pickles, MMSA-FET's outputs and tables"):
        shards(lists, tmp_path / "out", "--labels", given)


def test_splits_of_the_features_must_be_those_of_the_file(tmp_path):
    data = mmsa({"train": 3, "test": 2})
    data["train"]["id"], data["test"]["id"] = NAMES[:3], NAMES[3:]
    path, out = save(data, tmp_path / "x.pkl"), tmp_path / "out"
    with pytest.raises(ValueError, match=r"1 clips are in another split .*: v2\$_\$0002 \(test there, valid here\)"):
        shards(path, out, "--labels", label_csv(tmp_path))
    rows = [row.rsplit(",", 1)[0] for row in ROWS]
    info = shards(path, out, "--labels", label_csv(tmp_path, rows, header=HEADER.removesuffix(",mode")))
    assert info.counts == {"train": 3, "test": 2}
    assert stored_labels(out) == EXPECTED, "not those of the pickle"
    assert info.ignored["regression_labels"] == 5
    assert read_all(out)["raw_text"][0] == data["train"]["raw_text"][0]


def test_tables_without_labels_and_splits(tmp_path):
    given, folder = features(), tmp_path / "tables"
    folder.mkdir()
    for part, chosen in enumerate(([0, 3], [1, 2, 4])):
        rows = [{"id": NAMES[i], **{m: given[m][i].tolist() for m in ("text", "audio", "vision")}} for i in chosen]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet", row_group_size=2)
    label_csv(folder)
    info = shards(folder, tmp_path / "out", "--labels", folder / "label.csv", "--samples-per-shard", 2)
    assert info.counts == {"train": 3, "valid": 1, "test": 1}
    assert stored_labels(tmp_path / "out") == EXPECTED
    np.testing.assert_array_equal(read_all(tmp_path / "out")["vision"], given["vision"][:3])
    assert not [name for name in info.ignored if name.startswith("file")]


def fet_dataset(*, aligned):
    """What MMSA-FET's `run_dataset` returns: numpy arrays of all fields, in the order in which its workers ended."""
    draw, data = np.random.RandomState(0), {}
    for split, names in (("train", NAMES[:3]), ("valid", []), ("test", NAMES[3:])):
        count = len(names)
        tokens = np.zeros((count, 3, 6), dtype=np.float64)
        tokens[:, 0], tokens[:, 1] = 7, np.arange(6) < 2 + np.arange(count)[:, None]
        data[split] = {
            "id": np.array(names),
            "audio": draw.randn(count, 6, 3),
            "vision": draw.randn(count, 6, 2),
            "raw_text": np.array([f"text of {name}" for name in names]),
            "text": draw.randn(count, 6, 4).astype(np.float32),
            "text_bert": tokens,
            "annotations": np.array(["Neutral"] * count),
            "regression_labels": np.array([EXPECTED[name] for name in names]),
        }
        if aligned:
            data[split]["align"] = np.array([[{"text": "a", "start": 0.0, "end": 0.5}]] * count, dtype=object)
        else:
            data[split] |= {"audio_lengths": np.full(count, 4), "vision_lengths": np.full(count, 5)}
    return {**data, "config": {"audio": {"tool": "librosa", "args": {"mfcc": {"n_mfcc": 20}}}}}


@pytest.mark.parametrize("aligned", [False, True])
def test_a_data_set_of_mmsa_fet(tmp_path, aligned):
    """Aligned features have no lengths of their own: they are as long as the text; a split without a clip is named."""
    out = tmp_path / "out"
    info = shards(save(fet_dataset(aligned=aligned), tmp_path / "feature.pkl"), out)
    assert info.counts == {"train": 3, "test": 2}
    assert stored_labels(out) == EXPECTED
    lengths = read_all(out)["lengths"].tolist()
    assert lengths == ([[n, n, n] for n in (2, 3, 4)] if aligned else [[n, 4, 5] for n in (2, 3, 4)])
    more = {"align": 5} if aligned else {}
    assert info.ignored == {"annotations": 5, "config": 1, "split valid, without a clip": 1, **more}


def fet_clips(folder, names, *, steps=(3, 5, 4)):
    """Files of MMSA-FET's `run_single`, one per clip; returns their arrays."""
    draw, made = np.random.RandomState(0), {}
    for number, name in enumerate(names):
        text, audio, vision = (count + number for count in steps)
        tokens = np.ones((3, text), dtype=np.int64)
        tokens[2] = 0
        made[name] = {
            "audio": draw.randn(audio, 3),
            "vision": draw.randn(vision, 2),
            "text": draw.randn(text, 4).astype(np.float32),
            "text_bert": tokens,
            "config": {"audio": {"tool": "opensmile"}},
        }
        path = folder / f"{name}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(made[name], path, protocol=pickle.HIGHEST_PROTOCOL)
    return made


@pytest.mark.parametrize("between", ["$_$", "/"])
def test_a_folder_of_clips_of_mmsa_fet_with_a_label_file(tmp_path, between):
    names = [name.replace("$_$", between) for name in NAMES]
    made = fet_clips(tmp_path / "in", names)
    (tmp_path / "in" / "error.csv").write_text("x")
    options = ("--labels", label_csv(tmp_path), "--samples-per-shard", 2)
    info = shards(tmp_path / "in", tmp_path / "out", *options, "--processes", 1)
    assert (info.counts, info.lengths) == ({"train": 3, "valid": 1, "test": 1}, {"text": 7, "audio": 9, "vision": 8})
    assert stored_labels(tmp_path / "out") == {name: EXPECTED[NAMES[i]] for i, name in enumerate(names)}
    train = read_all(tmp_path / "out")
    assert train["lengths"].tolist() == [[3, 5, 4], [4, 6, 5], [5, 7, 6]]
    np.testing.assert_array_equal(train["audio"][1, :6], np.float32(made[names[1]]["audio"]))
    assert not train["audio"][1, 6:].any()
    assert info.ignored["config"] == 5
    assert info.ignored["file error.csv"] == 1
    shards(tmp_path / "in", tmp_path / "again", *options, "--processes", 2)
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_a_clip_without_a_label_file_is_explained(tmp_path):
    fet_clips(tmp_path, NAMES[:1])
    for place in (tmp_path, tmp_path / f"{NAMES[0]}.pkl"):
        with pytest.raises(ValueError, match=r"the features of one clip, as MMSA-FET's .* with --labels label\.csv"):
            shards(place, tmp_path / "out")


def test_a_joined_source_is_pickled_with_its_labels(tmp_path):
    label_csv(tmp_path)
    fet_clips(tmp_path / "in", NAMES)
    source = open_source(tmp_path / "in", SourceOptions(label_file=str(tmp_path / "label.csv")))
    (tmp_path / "label.csv").unlink()
    copy = pickle.loads(pickle.dumps(source))
    for mine, theirs in zip(source.read("train", 0, 3), copy.read("train", 0, 3), strict=True):
        assert (mine.id, mine.label, mine.raw_text) == (theirs.id, theirs.label, theirs.raw_text)
        np.testing.assert_array_equal(mine.vision, theirs.vision)


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (
            "id,split,class\na,train,none\nb,dev,glad\n",
            {"class_names": ("none", "glad")},
            [("a", "train"), ("b", "valid")],
        ),
        ("ID;Split;Label\na;train;0,5\n", {}, [("a", "train")]),
        ("id,video_id,clip_id,split,label\na,v,1,train,1\n", {}, [("a", "train")]),
        ("video_id,clip_id,mode,split,label\nv,1,test,train,1\n", {}, [("v$_$1", "train")]),
        ("id,split,label\na,train,1\nb,train,NA\n", {}, [("a", "train")]),
    ],
)
def test_both_commands_read_a_label_file_alike(tmp_path, content, options, expected):
    path = tmp_path / "label.csv"
    path.write_text(content)
    declared = Labels(kind="classes", **options) if options else Labels()
    shard_rows = [(clip.names[0], clip.split) for clip in read_label_file(path, declared).clips]
    extract_rows = [(row.id, row.split) for row in read_label_table(path).rows]
    assert shard_rows == extract_rows == expected


def test_how_features_were_made_is_kept_with_labels_of_a_file(tmp_path):
    made = {"audio": "librosa", "text": "raw"}
    table = pa.table({"id": ["a", "b"], "audio": [[[1.0]]] * 2, "vision": [[[1.0]]] * 2, "text": [[[1.0]]] * 2})
    pq.write_table(table.replace_schema_metadata({"dmd.extraction": json.dumps(made)}), tmp_path / "x.parquet")
    (tmp_path / "label.csv").write_text("id,split,label\na,train,1\nb,train,-2\n")
    options = ["--labels", str(tmp_path / "label.csv")]
    assert shard([str(tmp_path / "x.parquet"), str(tmp_path / "shards"), *options]) == 0
    assert ShardIndex.load(tmp_path / "shards").info.extraction == made
