"""The synthetic data set: MOSI-shaped samples whose sentences come from a small grammar, deterministic by seed.

What a sentence says gives most of its label; a tone that only voice and face carry gives the rest. So text alone does
well, voice and face alone do poorly, and all three together do best, as in the real data. Every number comes from
the hash in `data_shards.format.hashing`, so the same seed gives the same bytes on every machine.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.format.hashing import hash_key, normal, uniform
from data_shards.format.schema import SPLITS, Sample, TextKind, check_choice
from data_shards.labels import Labels

LabelsMade = Literal["sentiments", "classes", "emotions"]
_DECLARED: dict[LabelsMade, Labels | None] = {
    "sentiments": None,
    "classes": Labels(class_names=("negative", "neutral", "positive")),
    "emotions": Labels(emotions=("pleased", "displeased", "excited")),
}
"""What is said of the labels."""
_FELT = 0.5
"""Labels and tones beyond this are felt as emotions."""
_SUBJECTS = ("the movie", "the plot", "the acting", "the music", "the ending", "the director", "this film", "the story")
_OPENINGS = ("", "i think", "i must say", "for me", "honestly", "well", "in my opinion", "to be fair")
_VERBS = ("was", "is", "felt", "seemed")
_DEGREES = {"": 1.0, "really": 1.4, "very": 1.4, "somewhat": 0.6, "a bit": 0.5, "absolutely": 1.7}
_OPINIONS = {
    "terrible": -1.8,
    "awful": -1.6,
    "boring": -1.1,
    "weak": -0.8,
    "slow": -0.5,
    "predictable": -0.4,
    "okay": 0.1,
    "fine": 0.3,
    "decent": 0.5,
    "good": 0.9,
    "funny": 1.0,
    "great": 1.4,
    "brilliant": 1.7,
    "perfect": 1.8,
}
_JOINTS = ("and", "but", "while")
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
_TONE_SCALE, _STEP_NOISE = 0.9, 0.5
_MOOD_NOISE = {"audio": 3.0, "vision": 4.5}
"""Standard deviation of what a voice or a face shows around the speaker's mood, in label units."""
_LABEL_STEPS = 5  # per unit: labels are multiples of 0.2
_FRACTIONS = {"train": 0.7, "valid": 0.1, "test": 0.2}


class SyntheticSource:
    """As many samples as asked for, split 70/10/20; sample `i` of a split depends on the seed, the split and `i`."""

    def __init__(
        self,
        *,
        name: str = "synthetic",
        samples: int = 640,
        seed: int = 0,
        steps: int = 50,
        text_dim: int = 768,
        audio_dim: int = 5,
        vision_dim: int = 20,
        text_kind: TextKind = "features",
        labels: LabelsMade = "sentiments",
    ) -> None:
        """Describe the set; `labels`: what samples have: a sentiment, a class alone or emotions alone."""
        check_choice(text_kind, TextKind, "text kind")
        check_choice(labels, LabelsMade, "kind of labels")
        sizes = {
            "samples": (samples, 10),
            "steps": (steps, 20),
            "dimensions": (min(text_dim, audio_dim, vision_dim), 1),
        }
        for what, (value, least) in sizes.items():
            if value < least:
                raise ValueError(f"synthetic {what}: {value} is too few; use at least {least}")
        valid, test = int(samples * _FRACTIONS["valid"]), int(samples * _FRACTIONS["test"])
        self.name = name
        self._counts = {"train": samples - valid - test, "valid": valid, "test": test}
        self._seed = seed
        self._steps = steps
        self._text_kind = text_kind
        self._labels = labels
        self._dims = {"text": text_dim, "audio": audio_dim, "vision": vision_dim}
        phrases = (*_OPENINGS, *_SUBJECTS, *_VERBS, *_DEGREES, *_OPINIONS, *_JOINTS)
        self._vocabulary = (*_SPECIAL, *dict.fromkeys(word for phrase in phrases for word in phrase.split()))
        self._number = {word: i for i, word in enumerate(self._vocabulary)}
        self._embedding = self._embed(text_dim)

    @property
    def declared(self) -> Labels | None:
        """The names of classes or emotions, as `build` takes them."""
        return _DECLARED[self._labels]

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return dict(self._counts)

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split."""
        for i in range(start, stop):
            yield self._sample(split, i)

    def _sample(self, split: str, i: int) -> Sample:
        key = hash_key(self._seed, SPLITS.index(split), i)
        words, meaning = _sentence(uniform(hash_key(key, 1), 16))
        tone = _TONE_SCALE * float(normal(hash_key(key, 2), 1)[0])
        label = float(np.clip(round((meaning + tone) * _LABEL_STEPS) / _LABEL_STEPS, -3, 3))
        length = len(words) if self._text_kind == "features" else len(words) + 2
        return Sample(
            id=f"synthetic{i // 20:05d}$_${split}{i % 20}",
            split=split,
            **self._label_fields(label, tone),
            raw_text=" ".join(words),
            text=self._text(words, key),
            audio=self._signal("audio", meaning + 2 * tone, length, key),
            vision=self._signal("vision", meaning + 2 * tone, length, key),
            lengths=(length, length, length),
        )

    def _label_fields(self, label: float, tone: float) -> dict[str, Any]:
        """The labels of a sample with this sentiment, and with a tone that only voice and face carry."""
        pleased, displeased = label > _FELT, label < -_FELT
        if self._labels == "classes":
            return {"label": math.nan, "class_label": 1 + pleased - displeased}
        if self._labels == "emotions":
            return {"label": math.nan, "emotions": np.array([pleased, displeased, abs(tone) > _FELT], np.uint8)}
        return {"label": label}

    def _text(self, words: list[str], key: int) -> NDArray[np.float32] | NDArray[np.int32]:
        numbers = np.array([self._number[word] for word in words])
        if self._text_kind == "tokens":
            tokens = np.zeros((3, self._steps), dtype=np.int32)
            tokens[0, : len(words) + 2] = [1, *numbers, 2]
            tokens[1, : len(words) + 2] = 1
            return tokens
        features = np.zeros((self._steps, self._dims["text"]), dtype=np.float32)
        noise = normal(hash_key(key, 3), features[: len(words)].size).reshape(len(words), -1)
        features[: len(words)] = self._embedding[numbers] + _STEP_NOISE * noise
        return features

    def _signal(self, modality: str, mood: float, length: int, key: int) -> NDArray[np.float32]:
        """[T, D]: the mood with noise, stronger in some channels than in others; zero after `length` steps."""
        dim, kind = self._dims[modality], 4 if modality == "audio" else 5
        loading = normal(hash_key(self._seed, 100 + kind), dim)
        signal = np.zeros((self._steps, dim), dtype=np.float32)
        noise = normal(hash_key(key, kind), length * dim).reshape(length, dim)
        shown = mood + _MOOD_NOISE[modality] * float(normal(hash_key(key, 10 + kind), 1)[0])
        signal[:length] = 0.3 * shown * loading + _STEP_NOISE * noise
        return signal

    def _embed(self, dim: int) -> NDArray[np.float64]:
        """One vector per word [V, dim]: a random part, and along fixed directions what it adds to the meaning."""
        table = normal(hash_key(self._seed, 200), len(self._vocabulary) * dim).reshape(-1, dim)
        valence, degree = normal(hash_key(self._seed, 201), dim), normal(hash_key(self._seed, 202), dim)
        for word, weight in _OPINIONS.items():
            table[self._number[word]] += weight * valence
        for phrase, weight in _DEGREES.items():
            for word in phrase.split():
                table[self._number[word]] += (weight - 1) * degree
        return table


def _sentence(draws: NDArray[np.float64]) -> tuple[list[str], float]:
    """The words of a sentence and what it means, in label units, from uniform draws."""
    words: list[str] = _pick(_OPENINGS, draws[0]).split()
    meaning, clauses = 0.0, 1 + int(draws[1] < 0.5)
    for clause in range(clauses):
        subject, verb, degree, opinion = draws[2 + 5 * clause : 6 + 5 * clause]
        words += _pick(_JOINTS, draws[6 + 5 * clause]).split() if clause else []
        adverb, adjective = _pick(tuple(_DEGREES), degree), _pick(tuple(_OPINIONS), opinion)
        words += [*_pick(_SUBJECTS, subject).split(), _pick(_VERBS, verb), *adverb.split(), adjective]
        meaning += _DEGREES[adverb] * _OPINIONS[adjective]
    return words, meaning / clauses**0.5


def _pick(choices: tuple[str, ...], draw: float) -> str:
    return choices[int(draw * len(choices))]
