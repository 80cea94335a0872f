"""Word vectors: GloVe's and word2vec's text files, how a word is looked up, and what is no such file."""

import gzip
import hashlib
from collections import Counter

import numpy as np
import pytest

from data_shards.text.word_vectors import read_word_vectors, spellings, split_words

GLOVE = "the 0.1 -0.2 3e-1\n, 1 1 1\n. . . 2 2 2\nat name@domain.com 4 4 4\ncafé 5 5 5\n5 6 6 6\nthe 9 9 9\n"
WORD2VEC = "7 3\n" + GLOVE.replace("\n", " \n")


def words(text):
    return Counter(split_words(text))


@pytest.mark.parametrize("content", [GLOVE, WORD2VEC, GLOVE.rstrip("\n"), GLOVE.replace("\n", "\r\n"), GLOVE + "\n"])
def test_text_files(content, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content.encode())
    found = read_word_vectors(path, words("The café, . at 5 nobody"))
    assert found.dim == 3
    assert found.digest == hashlib.sha256(content.encode()).hexdigest()
    assert np.allclose(
        found.features("The café nobody at 5", 6), [[0.1, -0.2, 0.3], [5] * 3, [0] * 3, [0] * 3, [6] * 3, [0] * 3]
    )
    assert found.unknown(words("the nobody nobody .")) == {"nobody": 2, ".": 1}
    assert len(found.vectors) == 3, "no other word is kept"


def test_a_word_is_looked_up_as_it_is_spelled_first():
    assert list(spellings("(GOOD!)")) == ["(GOOD!)", "(good!)", "GOOD", "good"]
    assert list(spellings("it's")) == ["it's"]
    assert list(spellings("...")) == ["..."]
    assert list(spellings("好看。")) == ["好看。", "好看"]


def test_case_of_the_file_counts(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("Apple 1\napple 2\nus 3\n")
    found = read_word_vectors(path, words("Apple apple APPLE, US"))
    assert found.features("Apple apple APPLE, US", 4)[:, 0].tolist() == [1, 2, 2, 3]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty or no file"),
        (
            gzip.compress(GLOVE.encode(), mtime=0),
            "is gzip compressed, not a text file of word vectors .*: unpack it with gunzip",
        ),
        (
            b"3 2\nthe \x00\x00\x80\x3f\x00\x00\x00\x40 of \x01\x02",
            "line 2: a word and 2 numbers are expected; .*KeyedV",
        ),
        (b"the movie was good\n", "line 1: a word and some numbers are expected"),
        (b'{"the": [1, 2]}', "line 1: a word and some numbers"),
        (
            GLOVE.encode() + b"last 1",
            "line 8: a word and 3 numbers are expected; .* not a whole one: download it again",
        ),
        (b"9 3\n" + GLOVE.encode(), "is not whole: it announces 9 words and holds 7"),
        (b"a 1 2\nthe 1 x\nb 1 2\n", "line 2: what follows its word are no numbers"),
        (b"a 1 2\nthe 1\nb 1 2\n", "line 2: it has 1 numbers and the lines before it 2"),
        (b"the nan 1\n", "line 1: its numbers are not finite"),
        (b"a " + b"x" * (1 << 20), "line 1: it does not end"),
        (b"nothing 1 2\n", "has a vector for none of the 1 words of the transcripts, such as 'the' .1."),
    ],
)
def test_what_is_no_file_of_vectors(content, message, tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_word_vectors(path, words("the"))
