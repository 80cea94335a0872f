"""How features are made of clips: plain values that travel with shards, runs and exports."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from data_shards.extraction.scripts import SCRIPTS
from data_shards.format.schema import MODALITIES

AudioFeatures = Literal["opensmile-egemaps", "librosa", "none"]
VisionFeatures = Literal["mediapipe-blendshapes", "mediapipe-landmarks", "none"]
TextFeatures = Literal["raw", "tokens", "states"]
Alignment = Literal["none", "words"]
WordTimes = Literal["given", "spread"]
Missing = Literal["refuse", "zeros"]

_WHERE = "the settings of the extraction"
_CHOICES: dict[str, tuple[str, ...]] = {
    "audio": get_args(AudioFeatures),
    "vision": get_args(VisionFeatures),
    "text": get_args(TextFeatures),
    "alignment": get_args(Alignment),
    "word_times": get_args(WordTimes),
    "missing": get_args(Missing),
}
_RANGES = {
    "sample_rate": (16000, 48000),
    "audio_rate": (0.1, 100),
    "frames_per_second": (0.1, 240),
    "frame_size": (64, 8192),
}
_MOST_STEPS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings:
    """How features are made of a clip. The same clip and equal settings give the same bytes on the same machine.

    The last four fields are facts, not choices: `preparation.prepare` fills them in.
    """

    audio: AudioFeatures = "opensmile-egemaps"
    """`opensmile-egemaps`: the 25 low-level descriptors of eGeMAPS v02 (openSMILE's licence is for research);
    `librosa`: the descriptors of docs/extraction.md; `none`."""
    sample_rate: int = 16000
    """Samples per second to which sound is brought, mono: 16000 to 48000, a multiple of 100."""
    audio_rate: float = 20.0
    """Steps per second of an unaligned audio sequence, at most 100. Features have 100 frames per second; a step is
    their mean. Aligned to words, it is the mean over the word's frames, and this value is not used."""
    vision: VisionFeatures = "mediapipe-blendshapes"
    """`mediapipe-blendshapes`: 52 blendshapes and the head's pose (6); `mediapipe-landmarks`: 478 landmarks x 3 and the
    pose; `none`."""
    frames_per_second: float = 15.0
    """Video frames that are looked at per second, by presentation time; steps per second of an unaligned sequence."""
    frame_size: int = 640
    """Pixels of the longer side of a frame; larger frames are scaled down before a face is looked for."""
    text: TextFeatures = "raw"
    """`raw`: the transcript alone; `tokens`: token ids of `text_encoder`'s tokenizer; `states`: its last hidden states,
    one per word."""
    text_encoder: str = ""
    """Name or path of the tokenizer (`tokens`) or the encoder (`states`)."""
    alignment: Alignment = "none"
    """`none`: audio and vision at their own rates; `words`: one step per word, the mean of the frames in it."""
    word_times: WordTimes = "given"
    """`given`: those of the transcript; `spread`: where it has none, words take shares of the clip by their letters."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Steps per modality: shorter sequences are padded with zeros at their end, longer ones are cut at it, with a
    warning. A modality that is not named keeps its steps; tokens need a length."""
    missing: Missing = "refuse"
    """A clip without sound, video, any face or any word, where the settings ask for them: `refuse` is a `ClipError`;
    `zeros` gives one step of zeros (aligned: one per word) and a warning."""
    language: str = ""
    """Such as `en` or `zh`: a transcript in another script has a warning; "" looks at no script."""
    face_model: str = ""
    """sha256 of MediaPipe's face_landmarker.task."""
    text_digest: str = ""
    """Digest of the tokenizer or encoder."""
    dims: dict[str, int] = field(default_factory=dict)
    """Features per step of audio, vision and hidden states, 0 for tokens; a modality that is not made is absent."""
    versions: dict[str, str] = field(default_factory=dict)
    """Libraries that make the features -> their versions."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for `from_dict`."""
        return asdict(self)

    def unused(self) -> set[str]:
        """Names of settings that make no difference to the features, since others turn off what they are about."""
        names: set[str] = set()
        if self.audio == "none":
            names |= {"sample_rate", "audio_rate"}
        if self.vision == "none":
            names |= {"frames_per_second", "frame_size", "face_model"}
        if self.alignment == "words":
            names.add("audio_rate")
        if self.audio == self.vision == "none":
            names.add("alignment")
        return names

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExtractionSettings":
        """Settings from what `to_dict` gave; fields that are absent have their defaults.

        Raises:
            ValueError: a field is unknown or has an impossible value.
        """
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise ValueError(f"{_WHERE} know no {unknown[0]!r:.40}; they were written by another version")
        return cls(**values)

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible value."""
        for name, choices in _CHOICES.items():
            _check(getattr(self, name) in choices, name, getattr(self, name), f"one of {', '.join(choices)}")
        for name, (least, most) in _RANGES.items():
            _check(_is_number(getattr(self, name), least, most), name, getattr(self, name), f"{least:g} to {most:g}")
        _check(self.sample_rate % 100 == 0, "sample_rate", self.sample_rate, "a multiple of 100")
        whole = isinstance(self.frame_size, int) and isinstance(self.sample_rate, int)
        _check(whole, "frame_size and sample_rate", (self.frame_size, self.sample_rate), "whole numbers")
        languages = ("", *sorted(SCRIPTS))
        _check(self.language in languages, "language", self.language, f"one of {', '.join(sorted(SCRIPTS))}")
        for name in ("text_encoder", "face_model", "text_digest"):
            _check(isinstance(getattr(self, name), str), name, getattr(self, name), "a text")
        _check(_are_sizes(self.lengths, least=1), "lengths", self.lengths, "a positive number of steps per modality")
        _check(_are_sizes(self.dims, least=0), "dims", self.dims, "a number of features per modality")
        texts = [*self.versions.keys(), *self.versions.values()] if isinstance(self.versions, dict) else [None]
        _check(all(isinstance(text, str) for text in texts), "versions", self.versions, "a text per library")
        self._check_text()

    def _check_text(self) -> None:
        if (self.text == "raw") != (not self.text_encoder):
            advice = f"name a tokenizer or encoder for {self.text!r}, and none for 'raw'"
            raise ValueError(f"{_WHERE}: text_encoder is {self.text_encoder!r} and text {self.text!r}; {advice}")
        if self.text == "tokens" and "text" not in self.lengths:
            raise ValueError(f"{_WHERE}: text is 'tokens', and lengths names no text; say how many tokens a sample has")


def _check(is_right: bool, name: str, value: object, wanted: str) -> None:
    if not is_right:
        raise ValueError(f"{_WHERE}: {name} is {value!r:.80}; it must be {wanted}")


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _are_sizes(sizes: object, *, least: int) -> bool:
    """Whether these are numbers by modality."""
    if not isinstance(sizes, dict) or not set(sizes) <= set(MODALITIES):
        return False
    return all(type(size) is int and least <= size <= _MOST_STEPS for size in sizes.values())
