"""Tokenizers of text encoders: transformers' own ids in MMSA's layout, digests, and what cannot be loaded."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_shards.text.tokenizer import NoTokenizer, load_tokenizer
from tests.support.tokenizers import KINDS, TEXTS, save_tokenizer, save_vocabulary

HARD = ("", "   ", "a" * 300, "[CLS] <s> </s> <|endoftext|> [SEP]", "zero\0width​ and �")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_tokenizer(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(folders, kind):
    known, tokenizer = AutoTokenizer.from_pretrained(folders[kind]), load_tokenizer(folders[kind])
    for text in (*TEXTS, *HARD):
        for length in (tokenizer.shortest, 9, 400):
            wanted = known(text, max_length=length, truncation=True)
            ids = wanted["input_ids"] or [tokenizer.pad_id]
            found = tokenizer.encode(text, length)
            rest = length - len(ids)
            assert found.dtype == np.int32
            assert found[0].tolist() == ids + [tokenizer.pad_id] * rest
            assert found[1].tolist() == [1] * len(ids) + [0] * rest
            types = wanted["token_type_ids"] if wanted["input_ids"] and tokenizer.has_types else [0] * len(ids)
            assert found[2].tolist() == types + [0] * rest
        assert tokenizer.count(text) == max(1, len(known(text)["input_ids"]))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_words(folders, kind):
    unknown = {"bert": ["Привет"], "xlnet": ["Привет"]}.get(kind, [])
    tokenizer = load_tokenizer(folders[kind])
    counts = tokenizer.look("Привет！")
    assert counts.unknown == unknown
    assert counts.tokens == tokenizer.count("Привет！")
    assert (counts.known > 0) == (not unknown)
    assert tokenizer.look("").unknown == []


def test_padding_tokens(folders):
    pads = {kind: load_tokenizer(folder).pad_id for kind, folder in folders.items()}
    known = {kind: AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()}
    assert pads == {**{kind: found.pad_token_id for kind, found in known.items()}, "gpt2": known["gpt2"].eos_token_id}
    assert known["gpt2"].pad_token_id is None
    assert known["xlnet"].padding_side == "left"


def test_a_text_is_cut_where_the_tokenizer_says(folders, tmp_path):
    known = AutoTokenizer.from_pretrained(folders["bert"], truncation_side="left")
    known.save_pretrained(tmp_path)
    ids = known(TEXTS[0], max_length=7, truncation=True)["input_ids"]
    assert load_tokenizer(tmp_path).encode(TEXTS[0], 7)[0].tolist() == ids
    assert load_tokenizer(folders["bert"]).encode(TEXTS[0], 7)[0].tolist() != ids


def test_a_length_without_room(folders):
    with pytest.raises(ValueError, match=r"text length 2 is too short .*adds 2 special tokens; give --text-length 3"):
        load_tokenizer(folders["bert"]).encode("x", 2)


def test_digests(folders, tmp_path):
    digests = [load_tokenizer(folder).digest for folder in folders.values()]
    assert len(set(digests)) == len(KINDS)
    bert = folders["bert"]
    assert load_tokenizer(save_vocabulary(bert)).digest == digests[0]
    content = json.loads((bert / "tokenizer.json").read_text())
    padded = AutoTokenizer.from_pretrained(bert)
    padded(TEXTS[0], max_length=5, truncation=True, padding="max_length")
    padded.save_pretrained(tmp_path / "padded")
    assert json.loads((tmp_path / "padded" / "tokenizer.json").read_text()) != content
    assert load_tokenizer(tmp_path / "padded").digest == digests[0]
    cased = AutoTokenizer.from_pretrained(bert, do_lower_case=False)
    cased.save_pretrained(tmp_path / "cased")
    assert load_tokenizer(tmp_path / "cased").digest != digests[0]
    more = AutoTokenizer.from_pretrained(bert)
    more.add_tokens(["unbelievably good"])
    more.save_pretrained(tmp_path / "more")
    assert load_tokenizer(tmp_path / "more").digest != digests[0]


def test_a_cased_vocabulary_keeps_case(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Good", "good"]), encoding="utf-8")
    assert load_tokenizer(file).encode("Good good GOOD", 5)[0].tolist() == [2, 5, 6, 1, 3]


def test_it_travels_without_its_files_torch_or_transformers(folders, tmp_path):
    tokenizer = load_tokenizer(folders["roberta"])
    (tmp_path / "tokenizer").write_bytes(pickle.dumps(tokenizer))
    program = (
        "import pickle, sys\n"
        f"tokenizer = pickle.load(open({str(tmp_path / 'tokenizer')!r}, 'rb'))\n"
        f"print(tokenizer.encode({TEXTS[0]!r}, 30).tolist())\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == tokenizer.encode(TEXTS[0], 30).tolist()


def test_what_is_no_tokenizer(folders, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NoTokenizer, match=r"holds no tokenizer \(tokenizer\.json, vocab\.txt, "):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"tokenizer\.json is a Git-LFS pointer, .*`git lfs pull`"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text((folders["bert"] / "tokenizer.json").read_text()[:500])
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*; download the model again"):
        load_tokenizer(tmp_path)
    content = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    content["model"]["merges"].append(["x", "not there"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match=r"cannot be loaded \("):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"is one file of a tokenizer; give the directory"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nword\n")
    with pytest.raises(ValueError, match=r"is no BERT vocabulary: it lacks \[CLS\], \[SEP\]"):
        load_tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(ValueError, match=r"no such file or directory, and no name on the hub"):
        load_tokenizer(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"'bert-base-uncased' is no file or directory, and it cannot be fetched \("):
        load_tokenizer("bert-base-uncased", local=True)


def test_a_tokenizer_in_python_has_no_digest(tmp_path):
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    with pytest.raises(ValueError, match=r"\(CTRLTokenizer\) is written in Python, .* convert it to a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_code_of_a_model_is_never_run(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
