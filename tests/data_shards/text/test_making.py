"""`dmd shard --tokenizer` and `--word-vectors`: text of transcripts, whatever the source and wherever it is made."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from data_shards.commands import inspect, shard
from data_shards.reading.index import ShardIndex
from data_shards.text.tokenizer import load_tokenizer
from tests.support.small_data import COUNTS, files, mmsa, read_all, save
from tests.support.tokenizers import TEXTS, save_tokenizer

SENTENCES = [*TEXTS, "", "good"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_tokenizer("bert", tmp_path_factory.mktemp("bert"))


def spoken(sentences=SENTENCES):
    """An MMSA dict that says these sentences, one after the other."""
    data = mmsa()
    for split, fields in data.items():
        fields["raw_text"] = [sentences[i % len(sentences)] for i in range(COUNTS[split])]
    return data


def table(data, path):
    """The same as a Parquet file without any text but the transcripts."""
    rows = [
        {
            "split": split,
            "id": fields["id"][i],
            "label": float(fields["regression_labels"][i]),
            "raw_text": fields["raw_text"][i],
            **{m: fields[m][i, : fields[f"{m}_lengths"][i]].tolist() for m in ("audio", "vision")},
        }
        for split, fields in data.items()
        for i in range(COUNTS[split])
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    return path


def lists(data):
    """The same as MAG-BERT has it: an empty transcript is one without words."""
    return {
        split: [
            ((fields["raw_text"][i].split(), fields["vision"][i], fields["audio"][i]), i % 3 - 1.5, fields["id"][i])
            for i in range(COUNTS[split])
            if fields["raw_text"][i]
        ]
        for split, fields in data.items()
    }


def check_tokens(shards, known, length):
    """Whether tokens are those that transformers makes of the transcripts in the shards."""
    for split in ("train", "valid", "test"):
        found = read_all(shards, split)
        wanted = known(found["raw_text"], max_length=length, truncation=True, padding="max_length", return_tensors="np")
        assert np.array_equal(found["text"][:, 0], wanted["input_ids"])
        assert np.array_equal(found["text"][:, 1], wanted["attention_mask"])
        assert not found["text"][:, 2].any()
        assert np.array_equal(found["lengths"][:, 0], wanted["attention_mask"].sum(1))


@pytest.mark.parametrize("kind", ["pickle", "many", "table", "lists"])
def test_tokens_of_every_source(kind, bert, tmp_path, capsys):
    data = spoken()
    path = tmp_path / "mosi"
    if kind == "many":
        path.mkdir()
        for split, fields in data.items():
            save({split: fields}, path / f"{split}.pkl")
    elif kind == "table":
        path = table(data, tmp_path / "mosi.parquet")
    else:
        save(data if kind == "pickle" else lists(data), path)
    assert shard([str(path), str(tmp_path / "shards"), "--tokenizer", str(bert), "--samples-per-shard", "4"]) == 0
    printed = capsys.readouterr().out
    info = ShardIndex.load(tmp_path / "shards").info
    known = AutoTokenizer.from_pretrained(bert)
    longest = max(len(ids) for ids in known(SENTENCES)["input_ids"])
    assert info.lengths["text"] == longest
    check_tokens(tmp_path / "shards", known, longest)
    assert info.tokenizer == {"name": str(bert), "digest": load_tokenizer(bert).digest}
    assert info.text_kind == "tokens"
    assert f"text: {longest} tokens a sample by the tokenizer {bert}; the longest transcript has {longest}" in printed
    empty = sum(len(range(6, count, 8)) for count in COUNTS.values())
    said = f"text: {empty} of 35 transcripts are empty, the first is train sample 'video6.mp4/é$_$6'"
    assert (said in printed) == (kind != "lists")
    assert info.ignored.get("text", 0) == (35 if kind in ("pickle", "many") else 0)
    assert inspect([str(tmp_path / "shards")]) == 0
    assert f"text made of transcripts with {bert} (sha256 {info.tokenizer['digest'][:16]})" in capsys.readouterr().out


def test_long_transcripts_are_cut_and_counted(bert, tmp_path, capsys):
    path, known = save(spoken(), tmp_path / "mosi.pkl"), AutoTokenizer.from_pretrained(bert)
    assert shard([str(path), str(tmp_path / "s"), "--tokenizer", str(bert), "--text-length", "9"]) == 0
    check_tokens(tmp_path / "s", known, 9)
    beyond = [max(0, len(ids) - 9) for fields in spoken().values() for ids in known(fields["raw_text"])["input_ids"]]
    lost, cut = sum(beyond), np.count_nonzero(beyond)
    printed = capsys.readouterr().out
    assert f"text: {cut} of 35 transcripts are cut after 9 tokens, {lost} tokens are dropped; --text-length " in printed
    assert ShardIndex.load(tmp_path / "s").info.ignored["tokens beyond 9 of a transcript"] == lost


def test_a_model_takes_so_many_tokens(bert, tmp_path):
    known = AutoTokenizer.from_pretrained(bert)
    known.model_max_length = 12
    known.save_pretrained(tmp_path / "short")
    assert (
        shard([str(save(spoken(), tmp_path / "m")), str(tmp_path / "s"), "--tokenizer", str(tmp_path / "short")]) == 0
    )
    assert ShardIndex.load(tmp_path / "s").info.lengths["text"] == 12
    check_tokens(tmp_path / "s", known, 12)


@pytest.mark.parametrize("kind", ["gpt2", "xlnet"])
def test_empty_transcripts_keep_a_step(kind, tmp_path):
    folder = save_tokenizer(kind, tmp_path / kind)
    assert shard([str(save(spoken(), tmp_path / "m.pkl")), str(tmp_path / "s"), "--tokenizer", str(folder)]) == 0
    found = read_all(tmp_path / "s")
    assert (found["text"][:, 1].sum(1) == found["lengths"][:, 0]).all()
    assert found["lengths"][:, 0].min() >= 1
    assert (np.diff(found["text"][:, 1]) <= 0).all(), "padding is at the end"


def test_a_chinese_set(bert, tmp_path, capsys):
    sentences = ["这部电影非常好看，我很喜欢。", "剧情很慢，不好看！", "好看"]
    assert shard([str(save(spoken(sentences), tmp_path / "m")), str(tmp_path / "s"), "--tokenizer", str(bert)]) == 0
    known = AutoTokenizer.from_pretrained(bert)
    check_tokens(tmp_path / "s", known, len(known(sentences[0])["input_ids"]))
    assert read_all(tmp_path / "s")["lengths"][2, 0] == 4, "a token for each character"
    other = save(spoken(["Привет, мир!", "да"]), tmp_path / "russian")
    with pytest.raises(ValueError, match=r"knows no word of the 35 transcripts, such as 'Привет' .*: --tokenizer "):
        shard([str(other), str(tmp_path / "r"), "--tokenizer", str(bert)])
    capsys.readouterr()
    assert shard([str(save(spoken(["good", "мир"]), other)), str(tmp_path / "r"), "--tokenizer", str(bert)]) == 0
    unknown = sum(count // 2 for count in COUNTS.values())
    printed = capsys.readouterr().out
    assert f"text: {unknown} of 35 words ({unknown / 35:.1%}) are unknown to the tokenizer" in printed
    assert f"and become token {known.unk_token_id}: 'мир' ({unknown})" in printed
    assert ShardIndex.load(tmp_path / "r").info.ignored["words that the tokenizer does not know"] == unknown
    vectors = tmp_path / "v.txt"
    vectors.write_text("good 1 2\nmovie 3 4\n")
    with pytest.raises(ValueError, match=r"a vector for none of the 3 words .* '好看' .*language and script"):
        shard([str(tmp_path / "m"), str(tmp_path / "w"), "--word-vectors", str(vectors)])


@pytest.mark.parametrize("option", ["--tokenizer", "--word-vectors"])
def test_the_bytes_do_not_depend_on_processes(option, bert, tmp_path):
    vectors = tmp_path / "v.txt"
    vectors.write_text("good 1 2\nmovie 3 4\n")
    path = save(spoken(), tmp_path / "mosi.pkl")
    for processes in ("1", "2"):
        made = [option, str(bert if option == "--tokenizer" else vectors), "--processes", processes]
        assert shard([str(path), str(tmp_path / processes), "--samples-per-shard", "4", *made]) == 0
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_word_features(tmp_path, capsys):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("the 1 2 3\nplot 4 5 6\ngood 7 8 9\n")
    sentences = ["The plot was (good)", "", "plot " * 8]
    path = save(spoken(sentences), tmp_path / "m.pkl")
    assert shard([str(path), str(tmp_path / "s"), "--word-vectors", str(vectors), "--text-length", "5"]) == 0
    printed = capsys.readouterr().out
    info = ShardIndex.load(tmp_path / "s").info
    found = read_all(tmp_path / "s")
    assert found["text"][0].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0], [7, 8, 9], [0, 0, 0]]
    assert found["lengths"][:3, 0].tolist() == [4, 0, 5]
    assert not found["text"][1].any()
    assert (info.text_kind, info.dims["text"], info.lengths["text"]) == ("features", 3, 5)
    assert info.tokenizer == {"name": str(vectors), "digest": hashlib.sha256(vectors.read_bytes()).hexdigest()}
    count = [sum(len(range(first, number, 3)) for number in COUNTS.values()) for first in range(3)]
    total = 4 * count[0] + 8 * count[2]
    assert f"text: {count[0]} of {total} words ({count[0] / total:.1%}) are not among the vectors" in printed
    assert f"become zeros: 'was' ({count[0]})" in printed
    assert f"{count[2]} of 35 transcripts are cut after 5 words, {3 * count[2]} words are dropped" in printed
    assert f"{count[1]} of 35 transcripts are empty" in printed
    assert info.ignored["words without a vector"] == count[0]
    assert info.ignored["words beyond 5 of a transcript"] == 3 * count[2]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--vocab", "v.txt"], r"--vocab is --tokenizer, which gives the same token ids; give --tokenizer v\.txt"),
        (["--text-length", "5"], "--text-length is of text that is made of transcripts"),
        (["--tokenizer", "BERT", "--text-length", "2"], "text length 2 is too short for the tokenizer"),
        (["--tokenizer", "BERT", "--text-length", "0"], "--text-length 0 is too short; give 1 or more"),
        (
            ["--tokenizer", "BERT", "--text", "tokens"],
            "--tokenizer makes the text of raw_text; leave --text tokens out",
        ),
        (["--word-vectors", "v", "--feature-text", "x"], "--word-vectors makes the text of raw_text; leave --feature-"),
        (["--word-vectors", "v"], r"v is empty or no file: .*; give a text file of word vectors"),
    ],
)
def test_options_that_cannot_be(options, message, bert, tmp_path):
    path = save(spoken(), tmp_path / "m.pkl")
    with pytest.raises(ValueError, match=message):
        shard([str(path), str(tmp_path / "s"), *(str(bert) if part == "BERT" else part for part in options)])
    assert not (tmp_path / "s").exists()


def test_transcripts_must_be_there(bert, tmp_path):
    silent = spoken()
    for fields in silent.values():
        del fields["raw_text"]
    with pytest.raises(ValueError, match="none of its 35 samples has a transcript"):
        shard([str(save(silent, tmp_path / "m.pkl")), str(tmp_path / "s"), "--tokenizer", str(bert)])
    broken = spoken(["good", "half a \ud83d pair"])
    with pytest.raises(ValueError, match=r"train sample 'video1\.mp4/é\$_\$1': its text cannot be written as UTF-8"):
        shard([str(save(broken, tmp_path / "b.pkl")), str(tmp_path / "s"), "--tokenizer", str(bert)])
    with pytest.raises(ValueError, match=r"lacks the column text_bert; .*; make tokens of a column raw_text with"):
        shard([str(table(spoken(), tmp_path / "t.parquet")), str(tmp_path / "s")])
    textless = spoken()
    for fields in textless.values():
        del fields["text"]
    with pytest.raises(ValueError, match=r"lacks text_bert; .*; make tokens of raw_text with --tokenizer NAME"):
        shard([str(save(textless, tmp_path / "t.pkl")), str(tmp_path / "s")])
    with pytest.raises(SystemExit):
        shard(["--synthetic", str(tmp_path / "s"), "--tokenizer", str(bert)])
