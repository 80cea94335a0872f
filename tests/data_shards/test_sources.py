"""The other pickles that samples come in: MulT, separate feature files, MISA and MAG-BERT lists."""

import numpy as np
import pytest

from data_shards.commands import shard
from data_shards.reading.index import ShardIndex
from data_shards.sources.misa import MisaSource
from data_shards.sources.mmsa import MmsaSource
from data_shards.writing.build import build
from data_shards.writing.process_pool import ForkedProcesses
from tests.support.small_data import COUNTS, files, mmsa, read_all, save

WORDS = ["this", "movie", "was", "un", "##believ", "##able", "bad", "##ly", "!", "'", "s", "it", "cafe", "##s", "電"]


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n", encoding="utf-8")
    return path


def test_mult_pickles(tmp_path):
    data = {}
    for split, fields in mmsa().items():
        data[split] = {
            "text": fields["text"],
            "audio": fields["audio"].astype(np.float64),
            "vision": fields["vision"],
            "labels": fields["regression_labels"].reshape(-1, 1, 1),
            "id": np.array([[f"video{i}", str(i), str(i + 1)] for i in range(COUNTS[split])], dtype=object),
        }
    build(MmsaSource(save(data, tmp_path / "mosi_data.pkl", protocol=2)), tmp_path / "shards")
    found = read_all(tmp_path / "shards")
    assert found["id"][2] == "video2$_$2$_$3"
    assert np.array_equal(found["audio"], mmsa()["train"]["audio"])
    assert np.array_equal(found["label"], mmsa()["train"]["regression_labels"])
    assert found["lengths"][5].tolist() == [6, 9, 7]


def test_separate_feature_files_are_joined_by_id(tmp_path):
    data, other = mmsa(), mmsa(seed=1)
    for fields in other.values():
        order = np.random.RandomState(3).permutation(len(fields["id"]))
        fields["id"] = [fields["id"][i] for i in order]
        fields["audio"] = fields["audio"][order][:, :5]
        fields["audio_lengths"] = [min(5, fields["audio_lengths"][i]) for i in order]
    source = MmsaSource(save(data, tmp_path / "main.pkl"), others={"audio": str(save(other, tmp_path / "audio.pkl"))})
    build(source, tmp_path / "shards")
    found = read_all(tmp_path / "shards")
    assert np.array_equal(found["audio"], mmsa(seed=1)["train"]["audio"][:, :5])
    assert found["lengths"][:, 1].tolist() == [min(5, length) for length in data["train"]["audio_lengths"]]
    assert np.array_equal(found["text"], data["train"]["text"])


def test_separate_feature_files_must_have_every_sample(tmp_path):
    main, other = mmsa(), mmsa()
    other["valid"]["id"][3] = "somebody else"
    with pytest.raises(ValueError, match=r"audio\.pkl: valid lacks 1 samples of .*the first is 'video3"):
        MmsaSource(save(main, tmp_path / "main.pkl"), others={"audio": str(save(other, tmp_path / "audio.pkl"))})
    del other["valid"]
    with pytest.raises(ValueError, match=r"audio\.pkl lacks the valid split"):
        MmsaSource(save(main, tmp_path / "main.pkl"), others={"audio": str(save(other, tmp_path / "audio.pkl"))})


def _sentences(count, *, numbered):
    """MISA's lists (words as numbers, and spelled) or MAG-BERT's (words only)."""
    entries = []
    for i in range(count):
        words = ["This", "MOVIE", "was", "unbelievable", "badly", "café"][: 1 + i % 6]
        draw = np.random.RandomState(i)
        vision = draw.randn(len(words), 4).astype(np.float32)
        audio = draw.randn(len(words) + 2, 3)
        features = (np.arange(len(words)) + 4, vision, audio, words) if numbered else (words, vision, audio)
        entries.append((features, np.array([[i % 7 - 3.0]], dtype=np.float32), f"vid[{i}]"))
    return entries


def test_mag_bert_pickles(tmp_path, vocab):
    lists = {"train": _sentences(12, numbered=False), "dev": _sentences(3, numbered=False)}
    shard([str(save(lists, tmp_path / "mosi.pkl")), str(tmp_path / "shards"), "--tokenizer", str(vocab)])
    info = ShardIndex.load(tmp_path / "shards").info
    assert info.counts == {"train": 12, "valid": 3}
    assert info.dims == {"text": 0, "audio": 3, "vision": 4}
    assert info.lengths == {"text": 11, "audio": 8, "vision": 6}
    found = read_all(tmp_path / "shards")
    assert found["id"][4] == "vid[4]"
    assert found["raw_text"][4] == "This MOVIE was unbelievable badly"
    pieces = ["this", "movie", "was", "un", "##believ", "##able", "bad", "##ly"]
    expected = [2, *[5 + WORDS.index(piece) for piece in pieces], 3]
    assert found["text"][4, 0].tolist() == [*expected, 0]
    assert found["text"][4, 1].tolist() == [1] * 10 + [0]
    assert found["lengths"][4].tolist() == [10, 7, 5]
    assert np.array_equal(found["vision"][4, :5], lists["train"][4][0][1])
    assert not found["vision"][4, 5:].any()
    assert np.allclose(found["audio"][4, :7], lists["train"][4][0][2])
    assert found["label"].tolist() == [i % 7 - 3.0 for i in range(12)]


def test_misa_directories(tmp_path, vocab):
    (tmp_path / "MOSI").mkdir()
    for name, count in (("train", 9), ("dev", 2), ("test", 4)):
        save(_sentences(count, numbered=True), tmp_path / "MOSI" / f"{name}.pkl")
    info = build(MisaSource(tmp_path / "MOSI"), tmp_path / "numbers")
    assert info.counts == {"train": 9, "valid": 2, "test": 4}
    assert read_all(tmp_path / "numbers")["text"][3].tolist() == [[4, 5, 6, 7, 0, 0], [1, 1, 1, 1, 0, 0], [0] * 6]
    shard([str(tmp_path / "MOSI"), str(tmp_path / "pieces"), "--tokenizer", str(vocab)])
    assert read_all(tmp_path / "pieces")["text"][0, 0].tolist()[:3] == [2, 5, 3]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lists: lists.clear(), "has no split"),
        (lambda lists: lists.update(train=[]), "no list of samples, or an empty one"),
        (lambda lists: lists["train"].append(("x", 1)), "sample 12 is not"),
        (lambda lists: lists["train"].append(((["a"], np.ones(3), np.ones((1, 3))), 0.0, "v")), "sample 12: features"),
        (lambda lists: lists["train"].append((([], np.ones((0, 4)), np.ones((1, 3))), 0.0, "v")), "no words, no"),
        (lambda lists: lists["train"].append(((["a"], np.ones((1, 4)), np.ones((1, 3))), "x", "v")), "12: could not"),
        (lambda lists: lists["dev"][1][0][2].fill(np.inf), r"valid/audio 12 \(first in vid\[1\]\)"),
        (lambda lists: lists["dev"][1][1].fill(4), "label 4.0 is outside"),
    ],
)
def test_bad_lists_are_rejected(tmp_path, vocab, change, message):
    lists = {"train": _sentences(12, numbered=False), "dev": _sentences(3, numbered=False)}
    change(lists)
    with pytest.raises(ValueError, match=message):
        shard([str(save(lists, tmp_path / "mosi.pkl")), str(tmp_path / "shards"), "--tokenizer", str(vocab)])
    assert not (tmp_path / "shards").exists()


def test_words_need_a_tokenizer(tmp_path):
    path = save({"train": _sentences(3, numbered=False)}, tmp_path / "mosi.pkl")
    with pytest.raises(ValueError, match=r"words are text.*--tokenizer NAME_OR_PATH"):
        MisaSource(path)


def test_shards_are_bitwise_identical_for_any_number_of_processes(tmp_path):
    path = save(mmsa(), tmp_path / "x.pkl")
    for processes in (1, 2, 3, 20):
        build(MmsaSource(path), tmp_path / str(processes), samples_per_shard=3, executor=ForkedProcesses(processes))
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3") == files(tmp_path / "20")


def test_words_that_are_no_token_ids(tmp_path):
    for words, said in (
        ([1, 1 << 40], "word 1099511627776 is no token id"),
        ([-2, 1], "word -2 is no token id"),
        ([1.0, 2.5], "words are float64, not token ids"),
    ):
        entry = ((np.array(words), np.ones((2, 4)), np.ones((3, 3))), 1.5, "a")
        with pytest.raises(ValueError, match=rf"m\.pkl: train sample 0: its {said}; give"):
            MisaSource(save({"train": [entry]}, tmp_path / "m.pkl"))
