"""The synthetic data: the same on every machine, and learnable like the real data."""

import hashlib

import numpy as np
import pytest

from data_shards.sources.synthetic import SyntheticSource


def _read(source, split="train"):
    return list(source.read(split, 0, source.counts()[split]))


def test_golden_bytes():
    digest = hashlib.sha256()
    for kind in ("features", "tokens"):
        for sample in SyntheticSource(samples=20, seed=3, text_kind=kind).read("valid", 0, 2):
            digest.update(f"{sample.id}{sample.label}{sample.raw_text}{sample.lengths}".encode())
            for array in (sample.text, sample.audio, sample.vision):
                digest.update(array.tobytes())
    assert digest.hexdigest() == "0c397345665162cbaf09958ecd421e33c20eb308057b29da721288534a720d8e"


def test_samples_depend_on_seed_split_and_number_only():
    source = SyntheticSource(samples=50, text_dim=6)
    everything = _read(source)
    again = list(SyntheticSource(samples=1000, text_dim=6).read("train", 7, 9))
    for old, new in zip(everything[7:9], again, strict=True):
        assert (old.raw_text, old.label) == (new.raw_text, new.label)
        assert np.array_equal(old.text, new.text)
    other = next(SyntheticSource(samples=50, text_dim=6, seed=1).read("train", 7, 8))
    assert not np.array_equal(everything[7].audio, other.audio)
    assert not np.array_equal(everything[0].audio, next(source.read("valid", 0, 1)).audio)


def test_classes_and_emotions_say_what_sentiments_do():
    """Of samples that are equal in all else."""
    made = {
        kind: SyntheticSource(samples=200, text_dim=6, labels=kind) for kind in ("sentiments", "classes", "emotions")
    }
    samples = {kind: _read(source) for kind, source in made.items()}
    sentiments = np.array([sample.label for sample in samples["sentiments"]])
    signs = (sentiments > 0.5).astype(int) - (sentiments < -0.5)
    assert [sample.class_label for sample in samples["classes"]] == (1 + signs).tolist()
    emotions = np.array([sample.emotions for sample in samples["emotions"]])
    assert np.array_equal(emotions[:, 0].astype(int) - emotions[:, 1], signs)
    assert 20 < emotions[:, 2].sum() < 120
    assert made["sentiments"].declared is None
    assert len(made["classes"].declared.class_names) == len(made["emotions"].declared.emotions) == 3
    assert np.isnan([sample.label for kind in ("classes", "emotions") for sample in samples[kind]]).all()
    for before, after in zip(samples["sentiments"], samples["emotions"], strict=True):
        assert (before.id, before.raw_text) == (after.id, after.raw_text)
        assert np.array_equal(before.audio, after.audio)


@pytest.mark.parametrize("kind", ["features", "tokens"])
def test_shapes_labels_and_padding(kind):
    source = SyntheticSource(samples=400, text_kind=kind, text_dim=12)
    assert source.counts() == {"train": 280, "valid": 40, "test": 80}
    samples = _read(source)
    labels = np.array([sample.label for sample in samples])
    assert np.allclose(labels * 5, np.round(labels * 5))
    assert labels.min() < -2
    assert labels.max() > 2
    assert abs(labels.mean()) < 0.3
    for sample in samples:
        length = sample.lengths[0]
        assert sample.lengths == (length, length, length)
        assert length == len(sample.raw_text.split()) + (2 if kind == "tokens" else 0)
        steps = np.moveaxis(sample.text, -1, 0) if kind == "tokens" else sample.text
        assert steps.shape[0] == 50
        assert not steps[length:].any()
        assert not sample.audio[length:].any()
        assert sample.audio[:length].any(axis=1).all()


def _error(features, labels, half):
    """Mean absolute error on the second half of a ridge fitted on the first."""
    columns = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    known = columns[:half]
    weights = np.linalg.solve(known.T @ known + 3 * np.eye(known.shape[1]), known.T @ labels[:half])
    return float(np.abs(columns[half:] @ weights - labels[half:]).mean())


def test_text_predicts_most_and_voice_and_face_add_to_it():
    samples = _read(SyntheticSource(samples=3000, text_dim=96))
    labels = np.array([sample.label for sample in samples])
    sums = {m: np.stack([getattr(s, m).sum(axis=0) for s in samples]) / 8 for m in ("text", "audio", "vision")}
    half = len(samples) // 2
    constant = float(np.abs(labels[half:] - labels[:half].mean()).mean())
    errors = {m: _error(values, labels, half) for m, values in sums.items()}
    together = _error(np.concatenate(list(sums.values()), axis=1), labels, half)
    assert errors["text"] < min(errors["audio"], errors["vision"]) < max(errors.values()) < 0.97 * constant
    assert together < 0.95 * errors["text"] < 0.75 * constant


@pytest.mark.parametrize("wrong", [{"samples": 5}, {"steps": 3}, {"text_dim": 0}, {"text_kind": "words"}])
def test_impossible_sizes_are_rejected(wrong):
    with pytest.raises(ValueError, match=r"at least|text kind 'words'"):
        SyntheticSource(**wrong)
