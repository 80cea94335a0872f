"""`dmd.Dataset`: shards of arrays in memory and of pickles, with the checks and the bytes of `dmd shard`."""

import gc
import tempfile

import numpy as np
import pytest
import torch

import dmd
from data_shards.places import to_place
from tests.support.commands import command
from tests.support.small_data import COUNTS, build_from, files, mmsa, read_all, save


def arrays(count: int = 6, **changes: object) -> dict[str, object]:
    draw = np.random.default_rng(count)
    fields = {
        "text": draw.normal(size=(count, 5, 4)).astype(np.float32),
        "audio": draw.normal(size=(count, 7, 3)),
        "vision": torch.randn(count, 6, 2, generator=torch.Generator().manual_seed(count)),
        "labels": np.linspace(-3, 3, count).round(1),
    }
    return {name: values for name, values in {**fields, **changes}.items() if values is not None}


def test_arrays_become_the_shards_of_their_pickle(tmp_path):
    """The very bytes: also of tensors, and under the friendly names of fields."""
    content = mmsa()
    build_from(content, tmp_path, samples_per_shard=512)
    splits = {
        split: {("ids" if name == "id" else name): values for name, values in fields.items()}
        for split, fields in content.items()
    }
    splits["train"]["audio"] = torch.from_numpy(splits["train"]["audio"])
    data = dmd.Dataset.from_arrays(**splits, name="tiny", directory=tmp_path / "made")
    tars = {name: held for name, held in files(tmp_path / "shards").items() if name.endswith(".tar")}
    assert tars == {name: held for name, held in files(tmp_path / "made").items() if name.endswith(".tar")}
    assert data.info.counts == COUNTS
    assert data.info.ignored == {"annotations": sum(COUNTS.values())}


def test_sequences_of_any_length_are_padded_to_the_longest_of_all_splits():
    draw = np.random.default_rng(0)
    audio = [draw.normal(size=(length, 3)).astype(np.float32) for length in (2, 9, 4)]
    text = [torch.tensor([[7, 8, 9][:n], [1] * n, [0] * n]) for n in (1, 3, 2)]
    data = dmd.Dataset.from_arrays(
        train=arrays(3, audio=audio, text=text), valid=arrays(3, text=[t.numpy() for t in text], audio=audio[:1] * 3)
    )
    assert data.info.lengths == {"text": 3, "audio": 9, "vision": 6}
    assert data.info.text_kind == "tokens"
    read = read_all(data.place.path)
    assert read["lengths"].tolist() == [[1, 2, 6], [3, 9, 6], [2, 4, 6]]
    for number, array in enumerate(audio):
        assert np.array_equal(read["audio"][number, : len(array)], array)
        assert not read["audio"][number, len(array) :].any()
    assert read["text"][2].tolist() == [[7, 8, 0], [1, 1, 0], [0, 0, 0]]
    assert read["id"] == ["train0", "train1", "train2"]
    assert "removed with this object" in repr(data)


def test_a_temporary_directory_lives_as_long_as_its_object(tmp_path):
    data = dmd.Dataset.from_arrays(train=arrays(), valid=arrays())
    place = data.place.path
    assert place.is_dir()
    del data
    gc.collect()
    assert not place.exists()
    kept = dmd.Dataset.from_arrays(train=arrays(), directory=tmp_path / "kept")
    assert "removed" not in repr(kept)
    del kept
    gc.collect()
    assert repr(dmd.Dataset.from_shards(tmp_path / "kept")).startswith("Dataset 'arrays': train 6; regression (mosi)\n")


def test_shards_that_took_the_place_of_a_dataset_are_not_used(tmp_path):
    first = dmd.Dataset.from_arrays(train=arrays(), valid=arrays(), directory=tmp_path / "shards", name="first")
    dmd.Dataset.from_arrays(train=arrays(7), valid=arrays(), directory=tmp_path / "shards", name="second")
    for use in (lambda: dmd.train("demo", first, tmp_path / "run"), lambda: dmd.evaluate(tmp_path / "run", first)):
        with pytest.raises(ValueError, match=r"shards held 'first' \(generation .* holds 'second' \(generation"):
            use()


def test_a_dataset_stays_where_it_is_when_the_working_directory_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = dmd.Dataset.from_arrays(train=arrays(), valid=arrays(), directory="shards")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert data.checked_place() == to_place(tmp_path / "shards")


def test_labels_of_every_kind():
    scaled = dmd.Dataset.from_arrays(train=arrays(labels=[1, 2, 3, 4, 5, 5]), label_range=(1, 5))
    assert "labels of train: sentiments 1 to 5, stored as -3 to 3" in repr(scaled)
    named = dmd.Dataset.from_arrays(
        train=arrays(labels=["sad", "glad"] * 3), classes=True, class_names=["glad", "sad"], protocol="meld"
    )
    assert (named.task, named.info.classes, named.info.protocol) == ("classes", 2, "meld")
    flags = torch.tensor([[0, 1], [1, 0], [1, 1]] * 2)
    several = dmd.Dataset.from_arrays(train=arrays(labels=None, emotions=flags), emotions=["joy", "fear"])
    assert several.task == "multilabel"
    assert "emotions joy (4), fear (4)" in repr(several)
    beside = dmd.Dataset.from_arrays(train=arrays(classes=[0, 1, 2] * 2))
    assert (beside.task, beside.info.classes) == ("regression", 3)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"vision": None}, {}, r"arrays: train lacks vision; it has text, audio, labels"),
        ({"labels": None}, {}, r"arrays: train lacks regression_labels \(or labels\)"),
        ({"labels": [0.0] * 5}, {}, "arrays: train: fields disagree on the number of samples"),
        ({"labels": [5.0] * 6}, {}, r"outside \[-3, 3\]; bring the labels there with --label-range LOW HIGH"),
        ({"audio": np.full((6, 7, 3), np.nan)}, {}, "arrays: non-finite values .* train/audio 126"),
        ({"audio": [np.ones((2, 3)), "no"] * 3}, {}, "arrays: train: audio of sample 1 is <U2 of shape"),
        ({"audio": [np.ones((2, 3)), np.ones((2, 4))] * 3}, {}, r"audio has samples of \[3, 4\] features"),
        ({"audio": None, "vision": 3, "text": 4}, {}, "arrays: train: text is a int; give an array"),
        ({"audio": []}, {}, "arrays: train: audio is empty; leave the split out or fill it"),
        ({"ids": ["a"] * 6}, {}, "arrays: the id 'a' is there twice: train sample 0 and train sample 1"),
        ({"ids": ["a"] * 6, "id": ["a"] * 6}, {}, "arrays: train has id twice"),
        ({}, {"label_range": (1, 2, 3)}, r"label_range is \(1, 2, 3\); give the lowest and the highest"),
        ({}, {"label_range": 5}, "label_range is 5; give the lowest and the highest label"),
        ({}, {"protocol": "drop"}, "protocol is 'drop'; give one of mosi, sims"),
        ({}, {"classes": True, "binary": True}, "classes and binary"),
        ({}, {"label_range": (1, 5), "label_scale": 2.0}, "--label-range says what --label-scale does"),
        ({}, {"class_names": "ab"}, "class_names is the text 'ab'; give a list"),
        ({}, {"class_names": ["sad, a bit", "glad"], "classes": True}, "class_names has 'sad, a bit'; give names that"),
        ({}, {"emotions": ["joy,fear"]}, "emotions has 'joy,fear'; give names that are texts without a comma"),
        ({}, {"nonfinite": "drop"}, "--nonfinite 'drop' is unknown"),
    ],
)
def test_mistakes_are_those_of_the_command(changes, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        dmd.Dataset.from_arrays(train=arrays(**changes), **options)
    assert list(tmp_path.iterdir()) == []


def test_no_splits_and_no_mapping():
    with pytest.raises(ValueError, match="arrays has no split"):
        dmd.Dataset.from_arrays()
    with pytest.raises(ValueError, match="arrays: valid is a list; give a mapping"):
        dmd.Dataset.from_arrays(train=arrays(), valid=[1])


def test_a_pickle_becomes_the_shards_of_the_command(tmp_path, caplog):
    content = mmsa()
    for fields in content.values():
        fields["regression_labels"] = fields["regression_labels"] / 3
    pickled = save(content, tmp_path / "sims.pkl")
    assert command("shard", pickled, tmp_path / "by-command", "--label-range", "-1", "1", "--protocol", "sims") == 0
    dmd.Dataset.from_pickle(pickled, tmp_path / "by-call", label_range=(-1, 1), protocol="sims")
    assert files(tmp_path / "by-call") == files(tmp_path / "by-command")
    told = [record.getMessage() for record in caplog.records if record.name == "dmd.dataset"]
    assert told == [f"warning: {pickled}: ignored: annotations (35)"]
    with pytest.raises(ValueError, match=r"nothing\.pkl: it is not there; give a feature pickle"):
        dmd.Dataset.from_pickle(tmp_path / "nothing.pkl")
