"""What `dmd inspect` says, against the data it says it about."""

import json

import numpy as np
import pytest

from data_shards.commands import inspect
from data_shards.sources.mmsa import MmsaSource
from data_shards.tools.summary import LABEL_EDGES, plot, summarize
from data_shards.writing.build import build
from tests.support.small_data import COUNTS, build_from, mmsa, save


def test_a_summary_is_true(tmp_path):
    data = mmsa(tokens=True)
    info = build_from(data, tmp_path)
    facts = summarize(tmp_path / "shards")
    assert facts["generation"] == info.generation
    assert facts["samples"] == 35
    assert facts["shards"]["bytes"] == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    assert facts["steps"] == {"text": 6, "audio": 9, "vision": 7}
    for split, part in facts["splits"].items():
        labels = data[split]["regression_labels"]
        assert part["samples"] == COUNTS[split]
        assert part["label"]["histogram"] == np.histogram(labels, LABEL_EDGES)[0].tolist()
        assert sum(part["label"]["histogram"]) == COUNTS[split]
        assert part["label"]["mean"] == pytest.approx(labels.mean(), abs=1e-6)
        assert part["label"]["std"] == pytest.approx(labels.std(), abs=1e-5)
        audio = np.array(data[split]["audio_lengths"])
        assert part["lengths"]["audio"]["padding"] == pytest.approx(1 - audio.mean() / 9, abs=1e-6)
        assert part["lengths"]["audio"]["median"] == np.sort(audio)[(len(audio) - 1) // 2]
        assert (part["lengths"]["audio"]["min"], part["lengths"]["audio"]["max"]) == (audio.min(), audio.max())


def test_rounding_and_zeroed_values_are_reported(tmp_path, capsys):
    data = mmsa()
    data["train"]["audio"][0, 0, 0] = np.inf
    source = MmsaSource(save(data, tmp_path / "x.pkl"), nonfinite="zero")
    build(source, tmp_path / "shards", storage="float16", zeroed=source.nonfinite)
    facts = summarize(tmp_path / "shards")
    assert facts["non_finite"] == {"stored": 0, "zeroed": {"train/audio": 1}}
    text = np.concatenate([fields["text"] for fields in data.values()])
    error = float(np.abs(text - text.astype(np.float16).astype(np.float32)).max())
    assert facts["rounding"]["text"] == pytest.approx(error)
    assert inspect([str(tmp_path / "shards")]) == 0
    printed = capsys.readouterr().out
    assert "zeroed when written: train/audio 1" in printed
    assert f"text {error:.3g}" in printed


def test_json_and_picture(tmp_path, capsys):
    build_from(mmsa(), tmp_path)
    root = str(tmp_path / "shards")
    picture = tmp_path / "facts.png"
    assert inspect([root, "--json", "--plot", str(picture)]) == 0
    assert json.loads(capsys.readouterr().out) == summarize(root)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"cannot draw .*facts\.xyz"):
        plot(summarize(root), tmp_path / "facts.xyz")
