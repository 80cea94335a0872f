"""MMSA pickles: what is read, and what is rejected with which message."""

import numpy as np
import pytest

from data_shards.reading.reader import ShardReader
from data_shards.sources.mmsa import MmsaSource
from tests.support.small_data import COUNTS, build_from, mmsa, save


@pytest.mark.parametrize("tokens", [False, True])
def test_every_field_arrives(tmp_path, tokens):
    data = mmsa(tokens=tokens)
    info = build_from(data, tmp_path)
    assert info.counts == COUNTS
    assert info.text_kind == ("tokens" if tokens else "features")
    assert info.dims == {"text": 0 if tokens else 8, "audio": 3, "vision": 2}
    assert info.lengths == {"text": 6, "audio": 9, "vision": 7}
    with ShardReader(tmp_path / "shards") as reader:
        for split, fields in data.items():
            everything = list(range(COUNTS[split]))
            batch = reader.read(split, everything)
            text = fields["text_bert"].astype(np.int64) if tokens else fields["text"]
            assert batch["text"].dtype == text.dtype
            assert np.array_equal(batch["text"], text)
            assert np.array_equal(batch["audio"], fields["audio"])
            assert np.array_equal(batch["vision"], fields["vision"])
            assert np.array_equal(batch["label"], fields["regression_labels"])
            assert batch["lengths"][:, 1].tolist() == fields["audio_lengths"]
            assert batch["lengths"][:, 2].tolist() == fields["vision_lengths"].tolist()
            expected = fields["text_bert"][:, 1].sum(axis=1).tolist() if tokens else [6] * COUNTS[split]
            assert batch["lengths"][:, 0].tolist() == expected
            assert reader.index.ids(split, everything) == fields["id"]
            assert reader.raw_texts(split, everything) == fields["raw_text"]
    if tokens:
        assert info.vocab_size == 1 + max(int(fields["text_bert"][:, 0].max()) for fields in data.values())


def test_choice_of_text(tmp_path):
    data = mmsa()
    for split, fields in mmsa(tokens=True).items():
        data[split]["text_bert"] = fields["text_bert"]
    path = save(data, tmp_path / "both.pkl")
    kinds = {}
    for choice in ("auto", "features", "tokens"):
        sample = next(MmsaSource(path, text=choice).read("train", 3, 4))
        kinds[choice] = sample.text.shape
        assert sample.lengths[0] == 4
    assert kinds == {"auto": (6, 8), "features": (6, 8), "tokens": (3, 6)}


def test_a_file_with_only_a_test_split_is_fine(tmp_path):
    assert build_from(mmsa({"test": 3}), tmp_path).counts == {"test": 3}


def test_nonfinite_values_are_counted_and_rejected_or_zeroed(tmp_path):
    data = mmsa()
    data["train"]["audio"][2, 1] = -np.inf
    data["test"]["vision"][6, 0, 0] = np.nan
    path = save(data, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=r"train/audio 3 \(first in video2.*test/vision 1 .*--nonfinite zero"):
        MmsaSource(path)
    source = MmsaSource(path, nonfinite="zero")
    assert {name: count for name, count in source.nonfinite.items() if count} == {"train/audio": 3, "test/vision": 1}
    audio = next(source.read("train", 2, 3)).audio
    assert audio[1].tolist() == [0, 0, 0]
    assert np.array_equal(audio[2:], data["train"]["audio"][2, 2:])


def _without(split, field):
    return lambda data: data[split].pop(field)


def _set(split, field, value):
    return lambda data: data[split].__setitem__(field, value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: [data.pop(split) for split in list(data)], "has no split"),
        (_without("train", "audio"), "train lacks audio"),
        (_without("valid", "id"), "valid lacks id"),
        (_without("test", "regression_labels"), "test lacks regression_labels"),
        (_without("train", "text"), "some splits have text features|lacks text"),
        (_set("train", "audio", np.zeros((22, 9, 3), np.float32)), "disagree on the number of samples"),
        (_set("train", "audio", np.zeros((23, 9), np.float32)), r"shape \(23, 9\)"),
        (_set("train", "audio", np.full((23, 9, 3), "x")), "audio is <U1; it must hold numbers"),
        (_set("train", "audio", [np.zeros((i + 1, 3)) for i in range(23)]), r"sample 0 .* \(1, 3\), sample 1 \(2, 3\)"),
        (_set("train", "raw_text", ["x"] * 5), "disagree on the number of samples"),
        (_set("train", "audio_lengths", [10] * 23), "audio_lengths of sample 0 is 10, but the array has 9 steps"),
        (_set("train", "audio_lengths", [1] * 22), "audio_lengths needs one number per sample"),
        (_set("train", "audio_lengths", ["a"] * 23), "audio_lengths needs one number per sample"),
        (
            _set("train", "regression_labels", ["a"] * 23),
            "labels are not numbers: that of sample 0 .a. ",
        ),
        (_set("valid", "regression_labels", np.full(5, 3.2)), r"valid sample 'video0.*label 3.2 is outside \[-3, 3\]"),
        (_set("valid", "regression_labels", np.full(5, np.nan)), r"label nan is outside \[-3, 3\]"),
        (_set("test", "vision", np.zeros((7, 8, 2), np.float32)), r"tiny: vision of test .* \(8, 2\)"),
        (lambda data: data.update(mmsa({"valid": 0})), "valid: text is empty"),
        (lambda data: data.update(valid=[1, 2]), "valid is a list"),
    ],
)
def test_bad_input_is_rejected_and_leaves_nothing(tmp_path, change, message):
    data = mmsa()
    change(data)
    with pytest.raises(ValueError, match=message) as caught:
        build_from(data, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("value", [0.5, np.nan, 2.0**40, -1])
def test_token_ids_must_be_token_ids(tmp_path, value):
    data = mmsa(tokens=True)
    data["train"]["text_bert"][4, 0, 0] = value
    with pytest.raises(ValueError, match=r"video4.*(not whole numbers|negative token)"):
        build_from(data, tmp_path)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("raw_text", "12345", "valid: raw_text is a str; it must hold one entry per sample"),
        ("audio", None, "valid: audio is None; give one entry per sample, or leave it out"),
        (
            "audio_lengths",
            [1.5, 2, 3, 4, 5],
            r"audio_lengths of sample 0 is 1\.5, but the array has 9 steps; give a whole",
        ),
    ],
)
def test_fields_that_are_not_one_entry_per_sample(tmp_path, name, value, words):
    data = mmsa()
    data["valid"][name] = value
    with pytest.raises(ValueError, match=words):
        MmsaSource(save(data, tmp_path / "x.pkl"))


def test_sentences_may_be_missing(tmp_path):
    data = mmsa()
    data["valid"]["raw_text"][1:3] = [None, float("nan")]
    samples = list(MmsaSource(save(data, tmp_path / "x.pkl")).read("valid", 0, 3))
    assert [bool(sample.raw_text) for sample in samples] == [True, False, False]
