"""Scales, names of classes, emotions and protocols, as a user declares them, of every source that has labels."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from data_shards.commands import index, inspect, shard
from data_shards.format.schema import DatasetInfo
from data_shards.label_checks import check_labels
from data_shards.labels import LabelFacts, Labels
from data_shards.reading.index import ShardIndex
from data_shards.sources.detect import SourceOptions, open_source
from data_shards.tools.summary import summarize
from data_shards.tools.verify import verify
from tests.support.small_data import COUNTS, mmsa, read_all, save

EMOTIONS = "happy,sad,angry"
CLASSES = ("neutral", "happy", "sad")


def shards_of(path, folder, *options):
    """The index of shards that `dmd shard` makes of a file."""
    assert shard([str(path), str(folder / "shards"), "--processes", "1", *options]) == 0
    return ShardIndex.load(folder / "shards").info


def pickled(folder, **fields):
    """A pickle without sentiments whose fields are `fields[name](count)`."""
    data = mmsa()
    for split, values in data.items():
        del values["regression_labels"]
        values.update({name: make(COUNTS[split]) for name, make in fields.items()})
    return save(data, folder / "x.pkl")


def tabled(folder, rows, **columns):
    """A table of some training rows; a column has a value for each."""
    common = {"split": "train", "text": [[1.0]], "audio": [[1.0]], "vision": [[1.0]]}
    made = [{**common, "id": f"c{i}", **{name: values[i] for name, values in columns.items()}} for i in range(rows)]
    pq.write_table(pa.Table.from_pylist(made), folder / "t.parquet")
    return folder / "t.parquet"


def cycle(*values):
    return lambda count: [values[i % len(values)] for i in range(count)]


def flags(count):
    """Emotions [N, 3] with CMU-MOSEI's intensities; `angry` is in the last sample of more than eight alone."""
    numbers = np.arange(count)
    return np.stack([numbers % 4 * 0.5, (numbers % 3 == 0) * 3.0, (numbers == 9) * 0.33], axis=1)


@pytest.mark.parametrize(
    "ends, labels, stored",
    [
        ((-1, 1), (-1, 0.2, 1), (-3, 0.6, 3)),
        ((0, 10), (0, 5, 8), (-3, 0, 1.8)),
        ((1, 5), (1, 3, 4.5), (-3, 0, 2.25)),
        ((-3, 3), (-3, 0, 2), (-3, 0, 2)),
        ((-100, 50), (-100, -25, 50), (-3, 0, 3)),
    ],
)
def test_a_range_is_stored_from_minus_three_to_three(tmp_path, capsys, ends, labels, stored):
    low, high = map(str, ends)
    path = pickled(tmp_path, regression_labels=cycle(*labels))
    info = shards_of(path, tmp_path, "--label-range", low, high)
    found = read_all(tmp_path / "shards")["label"][:3]
    assert found == pytest.approx(stored, abs=1e-6)
    assert found / info.label_scale + info.label_offset == pytest.approx(labels, abs=1e-5)
    assert f"train labels: sentiments {labels[0]:g} to {labels[2]:g}" in capsys.readouterr().out
    label = summarize(tmp_path / "shards")["splits"]["train"]["label"]
    assert (label["min"], label["max"]) == pytest.approx((labels[0], labels[2]), abs=1e-5)
    assert label["centres"][0] == pytest.approx(ends[0])
    assert label["mean"] == pytest.approx(np.mean(cycle(*labels)(COUNTS["train"])), abs=1e-5)
    assert inspect([str(tmp_path / "shards")]) == 0
    told = f"labels {low} to {high} of the source are stored as -3 to 3"
    assert (told in capsys.readouterr().out) == (ends != (-3, 3))


def test_a_lost_index_of_scaled_labels_comes_back(tmp_path):
    declared = ("--label-range", "-1", "1", "--protocol", "sims")
    before = shards_of(pickled(tmp_path, regression_labels=cycle(-1, 0.2, 1)), tmp_path, *declared)
    root = tmp_path / "shards"
    (root / "index.parquet").unlink()
    with pytest.raises(ValueError, match="--stored-labels needs the scale that they came from; say it with"):
        index([str(root), "--stored-labels"])
    assert index([str(root), "--stored-labels", *declared]) == 0
    after = ShardIndex.load(root).info
    assert (after.label_scale, after.label_offset, after.protocol) == (3.0, 0.0, "sims")
    assert (after.labels, after.counts) == (before.labels, before.counts)
    assert read_all(root)["label"][:3] == pytest.approx((-3, 0.6, 3), abs=1e-6)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            ("--label-range", "1", "4"),
            r"train sample 'video2.*: label 5 is outside of --label-range 1 4; give the ends",
        ),
        (("--label-range", "1", "1"), "--label-range 1 1 is no range; give the lowest and the highest label"),
        (("--label-range", "5", "1"), "--label-range 5 1 is no range"),
        (("--label-range", "nan", "1"), "--label-range nan 1 is no range"),
        (("--label-range", "0", "inf"), "--label-range 0 inf is no range"),
    ],
)
def test_ranges_that_do_not_hold_the_labels(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        shards_of(pickled(tmp_path, regression_labels=cycle(1, 2, 5)), tmp_path, *options)


@pytest.mark.parametrize(
    "options",
    [("--label-scale", "3"), ("--classes",), ("--binary",)],
)
def test_a_range_excludes_other_kinds(tmp_path, options):
    with pytest.raises(SystemExit):
        shard([str(tmp_path / "x.pkl"), str(tmp_path / "shards"), "--label-range", "1", "5", *options])
    with pytest.raises(ValueError, match="--label-range says what --label-scale does; give one"):
        Labels(scale=3.0, range=(-1.0, 1.0))
    with pytest.raises(ValueError, match="--label-range 1 5 is for sentiments, not with --classes"):
        Labels(kind="classes", range=(1.0, 5.0))


def test_what_is_below_the_middle_of_a_range_is_missed(tmp_path, caplog):
    shards_of(pickled(tmp_path, regression_labels=cycle(3, 4, 5)), tmp_path, "--label-range", "1", "5")
    assert "no training label is below 3 (they lie in [3, 5]), but 3 is taken for neutral" in caplog.text


@pytest.mark.parametrize(
    "options, words",
    [
        ((), r"label 5.0 is outside \[-3, 3\]; bring the labels there with --label-range LOW HIGH"),
        (
            ("--label-range", "1", "5", "--protocol", "sims"),
            "--protocol sims counts in bins of CH-SIMS.*--label-range -1",
        ),
        (
            ("--label-range", "1", "5", "--protocol", "meld"),
            "--protocol meld is about classes, but samples have sentim",
        ),
        (("--label-range", "1", "5", "--class-names", "a,b"), "--class-names names classes; say with --classes,"),
        (
            ("--classes", "--class-names", "a,b,c"),
            r"train sample 'video2.* has class 5, but --class-names has 3 names, of",
        ),
        (("--classes", "--class-names", "a,b,,d"), "--class-names a,b,,d: give different names, at most 1000"),
        (("--classes", "--class-names", "a,b,a"), "--class-names a,b,a: give different names"),
        (("--classes", "--class-names", "a"), "--class-names a: give a name for each class"),
        (("--binary", "--class-names", "a,b,c"), "--class-names a,b,c: give 2 names, of 0 and of 1"),
        (("--classes", "--emotions", EMOTIONS), "--emotions are any number per sample, --classes one class; give one"),
        (("--class-labels", "--emotions", EMOTIONS), "--class-labels keeps one class .* give one"),
        (
            ("--emotions", EMOTIONS),
            r"train lacks emotions or labels or classification_labels; it has .*regression_labels",
        ),
        (("--classes", "--protocol", "mosi"), "--protocol mosi is about sentiments, but samples have classes"),
        (("--classes", "--protocol", "emotions"), "--protocol emotions is about emotions, but samples have classes"),
    ],
)
def test_declarations_that_do_not_fit(tmp_path, options, words):
    path = pickled(tmp_path, regression_labels=cycle(1, 2, 5))
    if "--classes" in options and "mosi" not in options:
        path = pickled(tmp_path, labels=cycle(1, 2, 5))
    if "mosi" in options:
        path = pickled(tmp_path, classification_labels=cycle(0, 1, 2))
    with pytest.raises(ValueError, match=words):
        shards_of(path, tmp_path, *options)
    assert not (tmp_path / "shards").exists()


def test_what_the_field_reports_is_kept(tmp_path, capsys):
    sims = pickled(tmp_path, regression_labels=cycle(-1, 0.2, 0.8))
    for options in (("--label-range", "-1", "1"), ("--label-scale", "3")):
        assert shards_of(sims, tmp_path, *options, "--protocol", "sims").protocol == "sims"
    assert shards_of(sims, tmp_path, "--label-scale", "3").protocol == ""
    capsys.readouterr()
    assert inspect([str(tmp_path / "shards")]) == 0
    assert "task regression, metrics by protocol mosi" in capsys.readouterr().out


@pytest.mark.parametrize(
    "field, spell", [("labels", CLASSES.index), ("classification_labels", str), ("labels", str.encode)]
)
def test_classes_have_names(tmp_path, capsys, field, spell):
    path = pickled(tmp_path, **{field: cycle(*map(spell, ("sad", "neutral", "sad", "happy")))})
    options = ("--classes", "--class-names", "neutral, happy, sad", "--protocol", "iemocap")
    info = shards_of(path, tmp_path, *options)
    assert (info.task, info.classes, info.class_names, info.protocol) == ("classes", 3, CLASSES, "iemocap")
    assert read_all(tmp_path / "shards")["class"][:4].tolist() == [2, 0, 2, 1]
    assert "train labels: classes neutral (6), happy (5), sad (12)" in capsys.readouterr().out
    assert inspect([str(tmp_path / "shards")]) == 0
    assert "classes neutral (6), happy (5), sad (12)" in capsys.readouterr().out
    assert not verify(tmp_path / "shards").damage


@pytest.mark.parametrize("kind, task", [("classes", "classes"), ("emotions", "multilabel")])
def test_synthetic_samples_have_names(tmp_path, capsys, kind, task):
    made = ["--synthetic", str(tmp_path), "--samples", "60", "--processes", "1", "--label-kind", kind]
    assert shard(made) == 0
    info = ShardIndex.load(tmp_path).info
    names = info.class_names if kind == "classes" else info.emotions
    assert (info.task, len(names), info.name) == (task, 3, "synthetic")
    assert f"train labels: {kind} {names[0]} (" in capsys.readouterr().out
    assert inspect([str(tmp_path), "--plot", str(tmp_path / "x.png")]) == 0
    assert f"{kind} {names[0]} (" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 0


def test_names_of_classes_that_are_not_there(tmp_path, caplog):
    path = pickled(
        tmp_path,
        labels=lambda count: [*cycle("sad", "happy")(count - 1), "bored" if count == COUNTS["test"] else "sad"],
    )
    with pytest.raises(
        ValueError, match="'bored' is not a number and none of --class-names neutral, happy, sad; add it"
    ):
        shards_of(path, tmp_path, "--classes", "--class-names", ",".join(CLASSES))
    path = pickled(tmp_path, labels=cycle("sad", "happy"))
    with pytest.raises(
        ValueError, match="'sad' is not a number; names of classes are declared with `dmd shard --classes --class"
    ):
        shards_of(path, tmp_path, "--classes")
    info = shards_of(path, tmp_path, "--classes", "--class-names", ",".join((*CLASSES, "angry")))
    assert info.classes == 4
    assert "classes neutral, angry are in no sample at all; leave out names" in caplog.text


def test_classes_beside_sentiments_have_names_too(tmp_path):
    path = pickled(
        tmp_path, regression_labels=cycle(-2, 0, 2.5), classification_labels=cycle("sad", "neutral", "happy")
    )
    info = shards_of(path, tmp_path, "--class-labels", "--class-names", ",".join(CLASSES))
    assert (info.task, info.class_names) == ("regression", CLASSES)
    assert read_all(tmp_path / "shards")["class"][:3].tolist() == [2, 0, 1]


def test_a_table_has_a_column_of_classes(tmp_path):
    path = tabled(tmp_path, 3, **{"class": ["sad", "neutral", "sad"], "label": [0.5, -2.0, 1.0]})
    names = ("--class-names", ",".join(CLASSES))
    info = shards_of(path, tmp_path, "--classes", *names)
    assert (info.task, info.ignored) == ("classes", {"column label": 3})
    assert read_all(tmp_path / "shards")["class"].tolist() == [2, 0, 2]
    info = shards_of(path, tmp_path, "--class-labels", *names)
    found = read_all(tmp_path / "shards")
    assert (info.task, found["class"].tolist(), found["label"].tolist()) == ("regression", [2, 0, 2], [0.5, -2, 1])
    for values, words in (
        (["sad", None, "sad"], "class None is not a whole number"),
        ([0, 1.5, 2], "class 1.5 is not"),
    ):
        path = tabled(tmp_path, 3, **{"class": values, "label": [0.5, -2.0, 1.0]})
        with pytest.raises(ValueError, match=f"train sample 'c1': {words}"):
            shards_of(path, tmp_path, "--class-labels", *names)
    with pytest.raises(ValueError, match="lacks the column class; it has"):
        shards_of(tabled(tmp_path, 1, label=[0.5]), tmp_path, "--class-labels")


@pytest.mark.parametrize(
    "field, shape",
    [
        ("emotions", "[N, L]"),
        ("emotions", "lists"),
        ("labels", "pairs"),
        ("labels", "text"),
        ("classification_labels", "[N, L, 1]"),
    ],
)
def test_emotions_of_a_pickle(tmp_path, capsys, field, shape):
    def shaped(count):
        values = flags(count)
        present = (values > 0).astype(np.int64)
        return {
            "[N, L]": values,
            "[N, L, 1]": values[..., None],
            "pairs": np.stack([1 - present, present], axis=2),
            "lists": values.tolist(),
            "text": [[f"{value:g}".replace(".", ",") for value in row] for row in values],
        }[shape]

    info = shards_of(pickled(tmp_path, **{field: shaped}), tmp_path, "--emotions", EMOTIONS)
    assert (info.task, info.emotions, field in info.ignored) == ("multilabel", ("happy", "sad", "angry"), False)
    found = read_all(tmp_path / "shards")
    assert np.array_equal(found["emotions"], flags(COUNTS["train"]) > 0)
    assert np.isnan(found["label"]).all()
    assert "train labels: emotions happy (17), sad (8), angry (1)" in capsys.readouterr().out


def test_the_emotions_of_iemocap_have_their_protocol(tmp_path):
    path = pickled(tmp_path, emotions=flags)
    info = shards_of(path, tmp_path, "--emotions", EMOTIONS, "--protocol", "iemocap")
    assert (info.task, info.protocol) == ("multilabel", "iemocap")
    sentiments = pickled(tmp_path, regression_labels=cycle(-1, 2.5))
    with pytest.raises(
        ValueError, match="--protocol iemocap is about classes or emotions, but samples have sentiments"
    ):
        shards_of(sentiments, tmp_path, "--protocol", "iemocap")


def test_equal_sentiments_are_told_in_the_units_of_the_source():
    train = LabelFacts(min=1.5, max=1.5, classes=(1, 2))
    warnings = check_labels({"train": train}, Labels(range=(1, 5)), "x", training_samples=3)
    assert "every training sample has the sentiment 4, from which only classes can be learned" in warnings


def test_a_sentiment_beside_emotions_stays(tmp_path, capsys):
    path = pickled(tmp_path, regression_labels=cycle(-2, 0, 2.5), emotions=flags)
    info = shards_of(path, tmp_path, "--emotions", EMOTIONS)
    assert (info.task, len(info.emotions)) == ("regression", 3)
    assert read_all(tmp_path / "shards")["label"][:3].tolist() == [-2, 0, 2.5]
    printed = capsys.readouterr().out
    assert "train labels: sentiments -2 to 2.5, emotions happy (17)" in printed
    assert "model.task=multilabel trains on the emotions" in printed
    shards_of(pickled(tmp_path, labels=cycle(-2, 0, 2.5), emotions=flags), tmp_path, "--emotions", EMOTIONS)
    assert read_all(tmp_path / "shards")["label"][:3].tolist() == [-2, 0, 2.5]
    facts = summarize(tmp_path / "shards")
    assert (facts["emotions"], facts["splits"]["train"]["emotions"]) == (EMOTIONS.split(","), [17, 8, 1])


@pytest.mark.parametrize(
    "make, names, words",
    [
        (flags, "happy,sad", r"train: emotions has shape \(23, 3\), but --emotions has 2 names: happy, sad; name each"),
        (lambda count: np.arange(count), EMOTIONS, r"emotions has shape \(23,\), but --emotions has 3 names"),
        (lambda count: flags(count) * np.nan, EMOTIONS, "emotions of sample 0: happy is nan; give 0 where"),
        (lambda count: -flags(count), EMOTIONS, "emotions of sample 0: sad is -3; give 0 where"),
        (lambda count: np.full((count, 3), "yes"), EMOTIONS, "emotions are not numbers: that of sample 0 'yes' is not"),
        (lambda count: [[0, 1]] * (count - 1) + [[1]], EMOTIONS, "not equally many for all samples"),
        (
            lambda count: np.zeros((count, 3)),
            EMOTIONS,
            "every sample of train has the same emotions, from which nothing",
        ),
        (lambda count: flags(count - 1), EMOTIONS, "fields disagree on the number of samples"),
        (flags, "happy", "--emotions happy: give at least two; one alone is --binary"),
        (flags, "happy,mean,sad", "--emotions happy,mean,sad: tables have means over all as mean; name it otherwise"),
        (flags, "happy,happy,sad", "--emotions happy,happy,sad: give different names, at most 100"),
    ],
)
def test_bad_emotions_are_rejected(tmp_path, make, names, words):
    with pytest.raises(ValueError, match=words):
        shards_of(pickled(tmp_path, emotions=make), tmp_path, "--emotions", names)


def test_emotions_that_do_not_vary_are_reported(tmp_path, caplog):
    def make(count):
        return np.stack([np.ones(count), np.arange(count) % 2, np.zeros(count) + (count == COUNTS["valid"])], axis=1)

    shards_of(pickled(tmp_path, emotions=make), tmp_path, "--emotions", EMOTIONS)
    assert "angry: in no training sample; nothing can be learned of an emotion that does not vary" in caplog.text
    assert "happy: in every training sample" in caplog.text


def test_emotions_are_columns_of_a_table(tmp_path):
    columns = {"happy": [0, 1, 3], "sad": ["0", "0,33", "1"], "angry": [False, True, False]}
    info = shards_of(tabled(tmp_path, 3, **columns), tmp_path, "--emotions", EMOTIONS)
    assert (info.task, info.ignored) == ("multilabel", {})
    assert read_all(tmp_path / "shards")["emotions"].tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 0]]
    info = shards_of(tabled(tmp_path, 3, **columns, label=[0.5, -2.0, 1.0]), tmp_path, "--emotions", "sad,happy")
    assert (info.task, info.ignored) == ("regression", {"column angry": 3})
    assert read_all(tmp_path / "shards")["emotions"].tolist() == [[0, 0], [1, 1], [1, 1]]
    with pytest.raises(ValueError, match="lacks the column bored; it has"):
        shards_of(tmp_path / "t.parquet", tmp_path, "--emotions", "happy,bored")
    with pytest.raises(ValueError, match="train sample 'c1': emotion: happy is nan; give 0 where an emotion is absent"):
        shards_of(tabled(tmp_path, 2, happy=[1, None], sad=[0, 1]), tmp_path, "--emotions", "happy,sad")


def test_emotions_and_names_of_word_level_lists(tmp_path):
    def lists(*labels):
        entry = (np.array([1, 2]), np.ones((2, 4), np.float32), np.ones((2, 3), np.float32))
        return save({"train": [(entry, label, f"c{i}") for i, label in enumerate(labels)]}, tmp_path / "m.pkl")

    info = shards_of(lists(np.array([[0.5, 0, 1, 0]]), [-2, 2, 0, 1]), tmp_path, "--emotions", EMOTIONS)
    found = read_all(tmp_path / "shards")
    assert (info.task, found["label"].tolist()) == ("regression", [0.5, -2])
    assert found["emotions"].tolist() == [[0, 1, 0], [1, 0, 1]]
    info = shards_of(lists([0, 1, 0], [1, 0, 1]), tmp_path, "--emotions", EMOTIONS)
    assert (info.task, info.labels["train"].emotions) == ("multilabel", (1, 1, 1))
    info = shards_of(lists("sad", "happy"), tmp_path, "--classes", "--class-names", ",".join(CLASSES))
    assert info.labels["train"].classes == (0, 1, 1)
    with pytest.raises(ValueError, match="its label has 5 values, but --emotions has 3 names: happy, sad, angry; name"):
        shards_of(lists([0, 1, 0, 0, 1]), tmp_path, "--emotions", EMOTIONS)


def test_decimal_commas_are_understood(tmp_path):
    path = tabled(tmp_path, 4, label=["0,8", "-1,25", "+2,5", ",5"])
    shards_of(path, tmp_path)
    assert read_all(tmp_path / "shards")["label"] == pytest.approx([0.8, -1.25, 2.5, 0.5])
    shards_of(pickled(tmp_path, regression_labels=cycle("0,8", "-1,25")), tmp_path)
    assert read_all(tmp_path / "shards")["label"][:2] == pytest.approx([0.8, -1.25])
    for written in ("1.234,5", "1,2,3", "0,8x"):
        with pytest.raises(ValueError, match=f"train sample 'c0': label '{written}' is not a number"):
            shards_of(tabled(tmp_path, 1, label=[written]), tmp_path)


def test_tars_have_names_and_ranges_too(tmp_path):
    with wds.TarWriter(str(tmp_path / "train.tar")) as tar:
        for i, (kind, mood) in enumerate((("sad", 1), ("neutral", "4,5"), ("happy", 5))):
            arrays = {f"{m}.npy": np.ones((2, 3), np.float32) for m in "tav"}
            tar.write(
                {"__key__": f"{i:03d}", **arrays, "json": json.dumps({"mood": mood}).encode(), "cls": kind.encode()}
            )
    common = "text=t.npy,audio=a.npy,vision=v.npy"
    names = ("--class-names", ",".join(CLASSES))
    assert index([str(tmp_path), "--map", f"{common},label=cls", "--classes", *names, "--protocol", "meld"]) == 0
    info = ShardIndex.load(tmp_path).info
    assert (info.task, info.class_names, info.protocol) == ("classes", CLASSES, "meld")
    both = f"{common},label=json:mood,class=cls"
    assert index([str(tmp_path), "--map", both, "--label-range", "1", "5", *names]) == 0
    found = read_all(tmp_path)
    assert (found["class"].tolist(), found["label"].tolist()) == ([2, 0, 1], [-3, 2.25, 3])
    with pytest.raises(ValueError, match="--class-names names classes, but no sample has a class label"):
        index([str(tmp_path), "--map", f"{common},label=json:mood", "--label-range", "1", "5", *names])
    with pytest.raises(ValueError, match="--label-range 1 5 is of sentiments, but --map names no label"):
        index([str(tmp_path), "--map", f"{common},class=cls", "--label-range", "1", "5", *names])


def test_a_scale_of_what_has_no_sentiments(tmp_path):
    with pytest.raises(ValueError, match="--label-range 1 5 is of sentiments, but samples have none; leave it out"):
        shards_of(pickled(tmp_path, emotions=flags), tmp_path, "--emotions", EMOTIONS, "--label-range", "1", "5")


def test_synthetic_samples_are_declared_already(tmp_path):
    for option in (("--label-range", "1", "5"), ("--emotions", "a,b"), ("--protocol", "sims"), ("--ids", "number")):
        with pytest.raises(SystemExit):
            shard(["--synthetic", str(tmp_path / "shards"), *option])


@pytest.mark.parametrize("kind", ["pickle", "table", "lists"])
def test_a_source_that_is_sent_to_a_node_reads_the_same_labels(tmp_path, kind):
    names = EMOTIONS.split(",")
    entry = (np.array([1, 2]), np.ones((2, 4), np.float32), np.ones((2, 3), np.float32))
    if kind == "pickle":
        path = pickled(tmp_path, emotions=flags)
    elif kind == "table":
        path = tabled(tmp_path, 5, **{name: [float(row[i]) for row in flags(5)] for i, name in enumerate(names)})
    else:
        path = save({"train": [(entry, row, f"c{i}") for i, row in enumerate(flags(5))]}, tmp_path / "m.pkl")
    source = open_source(path, SourceOptions(labels=Labels(emotions=tuple(names))))
    for there in (source, pickle.loads(pickle.dumps(source))):
        found = [sample.emotions for sample in there.read("train", 0, 5)]
        assert np.array_equal(found, flags(5) > 0)


def test_forged_facts_are_rejected(tmp_path):
    shards_of(pickled(tmp_path, emotions=flags), tmp_path, "--emotions", EMOTIONS)
    facts = json.loads(ShardIndex.load(tmp_path / "shards").info.to_json())
    for forged in (
        {"emotions": ["happy", "sad"]},
        {"emotions": []},
        {"emotions": ["happy", "sad", "sad"]},
        {"emotions": ["happy", "sad", 3]},
        {"class_names": ["a"]},
        {"label_offset": "x"},
        {"protocol": "x"},
    ):
        with pytest.raises(ValueError, match=r"labels do not go together|protocol 'x' is unknown"):
            DatasetInfo.from_json(json.dumps({**facts, **forged}))


def test_facts_of_emotions_join():
    left, right = LabelFacts.of([], [], [[1, 0], [1, 1]]), LabelFacts.of([], [], [[0, 0]])
    assert left | right == LabelFacts(emotions=(2, 1))
    constant = {"train": LabelFacts(emotions=(3, 0))}
    with pytest.raises(ValueError, match="same emotions"):
        check_labels(constant, Labels(emotions=("a", "b")), "x", training_samples=3)
