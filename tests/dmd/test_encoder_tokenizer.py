"""Text encoders and what made the token ids: what does not belong together is rejected before ranks start."""

import json
import shutil
from dataclasses import replace

import pytest

from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from dmd.checkpoint.state import Cursor, check_fits, make_state
from dmd.config.loading import load_config
from dmd.encoder_tokenizer import check_encoder_tokenizer, check_same_text, config_for_shards
from dmd.inference.inputs import check_shards
from dmd.system.trained_model import ModelCard
from tests.support.commands import command, rejected
from tests.support.encoders import KINDS, save_encoder
from tests.support.small_data import mmsa, save
from tests.support.tokenizers import TEXTS, save_tokenizer
from tests.support.trained import SMALL

pytestmark = pytest.mark.slow
ENOUGH = 700
"""Token ids that the encoders know: more than any of the tokenizers has."""


def tokens_of(tokenizer, path):
    """Shards of token ids by a tokenizer."""
    data = mmsa()
    for split, fields in data.items():
        fields["raw_text"] = [f"{TEXTS[i % 3]} {split}" for i in range(len(fields["id"]))]
    save(data, path.with_suffix(".pkl"))
    assert command("shard", path.with_suffix(".pkl"), path, "--tokenizer", tokenizer) == 0
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards by a BERT's tokenizer, its encoder, and other encoders."""
    root = tmp_path_factory.mktemp("encoders")
    bert = save_encoder("bert", root / "bert", vocab_size=ENOUGH)
    save_tokenizer("bert", bert)
    tokens_of(bert, root / "shards")
    shutil.copytree(bert, root / "copy")
    save_encoder("bert", root / "bare", vocab_size=ENOUGH)
    save_encoder("bert", root / "small", vocab_size=50)
    other = save_encoder("roberta", root / "roberta", vocab_size=ENOUGH)
    save_tokenizer("roberta", other)
    return root


def test_an_encoder_that_is_not_here_is_named_beside_what_made_the_shards(place, tmp_path, capsys, monkeypatch):
    """As is the default encoder on a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    error = rejected(capsys, "train", "--data", place / "shards", "--run", tmp_path / "run", *SMALL)
    assert f"the token ids of the shards were made by {place / 'bert'} (sha256 " in error
    assert "and text encoder 'bert-base-uncased' cannot be loaded (" in error
    assert error.endswith(f"give the encoder text.encoder={place / 'bert'}")
    info = ShardIndex.load(place / "shards").info
    of_vocabulary = replace(info, tokenizer={**info.tokenizer, "name": __file__})
    with pytest.raises(ValueError, match=r"give the encoder of that vocabulary: text\.encoder=PATH"):
        config_for_shards("no/such-encoder", of_vocabulary)


def test_a_training_wants_the_tokenizers_own_encoder(place, tmp_path, capsys):
    data = ("--data", place / "shards", "--run", tmp_path / "run", *SMALL)
    error = rejected(capsys, "train", *data, f"text.encoder={place / 'roberta'}")
    assert f"the token ids of the shards were made by {place / 'bert'} (sha256 " in error
    assert f"text encoder '{place / 'roberta'}' has another tokenizer (sha256 " in error
    assert f"or shard again with --tokenizer {place / 'roberta'}" in error
    error = rejected(capsys, "train", *data, f"text.encoder={place / 'small'}")
    assert "but the text encoder knows 50 tokens" in error
    assert not (tmp_path / "run").exists()


def test_what_can_be_compared_is(place, tmp_path):
    info = ShardIndex.load(place / "shards").info
    check_encoder_tokenizer(str(place / "copy"), info)
    check_encoder_tokenizer(str(place / "bare"), info)
    broken = shutil.copytree(place / "copy", tmp_path / "broken")
    (broken / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git-LFS pointer"):
        check_encoder_tokenizer(str(broken), info)
    assert command("shard", save(mmsa(tokens=True), tmp_path / "mmsa.pkl"), tmp_path / "mmsa") == 0
    made_by_mmsa = ShardIndex.load(tmp_path / "mmsa").info
    assert made_by_mmsa.tokenizer == {}
    check_encoder_tokenizer(str(broken), made_by_mmsa)


def test_a_model_wants_its_own_tokenizer(place, tmp_path):
    made_with = ShardIndex.load(place / "shards").info
    state = make_state(
        config=load_config(None, ["model.task=regression", f"text.encoder={place / 'copy'}"]),
        info=made_with,
        cursor=Cursor(),
        schedule={"best_step": -1},
        nonfinite_in_a_row=0,
        text_encoder=None,
        library_versions={},
        averaged_steps=None,
    )
    data = json.loads(json.dumps(state["data"]))
    card = ModelCard(config=state["config"], data=data, text_encoder=KINDS["bert"], source={})
    other = tokens_of(place / "roberta", tmp_path / "other")
    message = rf"was trained on text made by {place / 'bert'} \(sha256 .* made by {place / 'roberta'} \(sha256 "
    with ShardReader(place / "shards") as reader:
        check_shards(card, reader, ["valid"])
        check_fits(card.data, made_with)
    with ShardReader(other) as reader:
        with pytest.raises(ValueError, match=message):
            check_shards(card, reader, ["valid"])
        with pytest.raises(ValueError, match=message):
            check_fits(card.data, reader.index.info)
        check_same_text({}, reader.index.info)
    with pytest.raises(ValueError, match=r"the model's data: tokenizer is \{'name': 1\}; it must have name and digest"):
        ModelCard(config=card.config, data=data | {"tokenizer": {"name": 1}}, text_encoder=KINDS["bert"], source={})
