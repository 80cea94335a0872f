"""Hidden states of words: each is the mean of its tokens' states, whatever tokenizer cuts it."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_shards.clip_sets.command import extract_clips
from data_shards.clip_sets.parser import extract_parser
from data_shards.executor import Ending
from data_shards.extraction.clip import ClipError
from dmd.extraction.text_states import TextStates, load_text_states
from tests.support.clips import tones, write_wav
from tests.support.encoders import save_encoder
from tests.support.tokenizers import save_tokenizer

WORDS = ("This", "movie", "was", "unbelievable,", "well", "Café!")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """By type, a model directory with a tokenizer."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("bert", "roberta", "gpt2")}
    for kind, folder in made.items():
        save_encoder(kind, folder, vocab_size=1000)
        save_tokenizer(kind, folder)
    return made


@pytest.fixture(scope="module")
def loaded(folders) -> dict[str, TextStates]:
    return {kind: load_text_states(str(folder)) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_word_is_the_mean_of_its_tokens(loaded, kind):
    """Which tokens are a word's is found by decoding: each word is one run of tokens."""
    states = loaded[kind]
    found = states(WORDS)
    assert (found.dtype, found.shape) == (np.float32, (len(WORDS), states.dim))
    tokenizer = states._tokenizer
    encoding = tokenizer.backend.encode(" ".join(WORDS))
    with torch.no_grad():
        ids = torch.tensor([encoding.ids])
        whole = states._encoder.network(input_ids=ids).last_hidden_state[0].numpy()
    special = np.array(encoding.special_tokens_mask, dtype=bool)
    place = np.flatnonzero(~special)
    begin = 0
    for word, state in zip(WORDS, found, strict=True):
        end = begin + 1
        while squeezed(tokenizer.backend.decode(encoding.ids[place[begin] : place[end - 1] + 1])) != squeezed(
            normalised(word, kind)
        ):
            end += 1
        np.testing.assert_allclose(state, whole[place[begin:end]].mean(axis=0), rtol=1e-5, atol=1e-6)
        begin = end
    assert begin == len(place)


def squeezed(text: str) -> str:
    return text.replace(" ", "").replace("##", "")


def normalised(word: str, kind: str) -> str:
    return word.lower().replace("é", "e") if kind == "bert" else word


def test_a_long_text_is_encoded_in_parts(loaded):
    states = loaded["bert"]
    words = WORDS * 8
    part = len(words)
    while states._tokenizer.count(" ".join(words[:part])) > 64:
        part //= 2
    assert part < len(words)
    np.testing.assert_array_equal(states(words)[:part], states(words[:part]))
    with pytest.raises(ClipError, match="has 302 tokens, and the text encoder takes 64"):
        states(["!" * 300])


def test_the_digest_is_that_of_weights_and_tokenizer(loaded, folders, tmp_path):
    assert len({states.digest for states in loaded.values()}) == 3
    shutil.copytree(folders["bert"], tmp_path, dirs_exist_ok=True)
    assert load_text_states(str(tmp_path)).digest == loaded["bert"].digest
    save_encoder("bert", tmp_path, vocab_size=1000, seed=1)
    assert load_text_states(str(tmp_path)).digest != loaded["bert"].digest


def test_a_tokenizer_of_another_encoder_is_named(folders, tmp_path):
    shutil.copytree(folders["bert"], tmp_path, dirs_exist_ok=True)
    save_encoder("bert", tmp_path, vocab_size=10)
    with pytest.raises(ValueError, match="and its encoder knows 10; give a directory whose tokenizer and weights"):
        load_text_states(str(tmp_path))(WORDS)


class InThisProcess:
    """Clips one after the other, without the processes of the command."""

    @contextmanager
    def map_independent(self, run, count, *, memory):
        yield (Ending(number=number, result=run(number)) for number in range(count))


def test_dmd_extract_keeps_the_states_of_each_clip(folders, tmp_path, capsys):
    name, (clips, out) = str(folders["bert"]), (tmp_path / "clips", tmp_path / "out")
    clips.mkdir()
    for clip, said in (("a", "the best movie"), ("b", "the plot Привет")):
        write_wav(clips / f"{clip}.wav", tones(0.2))
        (clips / f"{clip}.txt").write_text(said, encoding="utf-8")
    made = ["--audio", "none", "--vision", "none", "--text", "states", "--text-encoder", name]
    options = extract_parser().parse_args([str(clips), str(out), *made])
    assert extract_clips(options, InThisProcess(), load_states=lambda: load_text_states) == 0
    rows, states = pq.read_table(out).to_pylist(), load_text_states(name)
    for row, said in zip(rows, ("the best movie", "the plot Привет"), strict=True):
        np.testing.assert_array_equal(np.float32(row["text"]), states(said.split()))
        assert row["text_length"] == 3
    assert (out / "_warnings.csv").read_text().splitlines()[1:] == [
        "b,unknown-words,1 of its 3 words are unknown tokens: 'Привет' (1)"
    ]
    settings = json.loads((out / "_extraction.json").read_text())["settings"]
    assert (settings["text_encoder"], settings["text_digest"]) == (name, states.digest)
    assert settings["dims"] == {"text": states.dim}
    assert f"next: dmd predict RUN {out}\n" in capsys.readouterr().out
