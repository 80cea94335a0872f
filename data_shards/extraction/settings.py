"""How features are made of clips: plain values that travel with shards, runs and exports."""

from dataclasses import dataclass, field
from typing import Any, Literal

AudioFeatures = Literal["opensmile-egemaps", "librosa", "none"]
VisionFeatures = Literal["mediapipe-blendshapes", "mediapipe-landmarks", "none"]
TextFeatures = Literal["raw", "tokens", "states"]
Alignment = Literal["none", "words"]
WordTimes = Literal["given", "spread"]
Missing = Literal["refuse", "zeros"]


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings:
    """How features are made of a clip. The same clip and equal settings give the same bytes on the same machine.

    The last four fields are facts, not choices: `preparation.prepare` fills them in.
    """

    audio: AudioFeatures = "opensmile-egemaps"
    """`opensmile-egemaps`: the 25 low-level descriptors of eGeMAPS v02 (openSMILE's licence is for research);
    `librosa`: the descriptors of docs/extraction.md; `none`."""
    sample_rate: int = 16000
    """Samples per second to which sound is brought, mono; a multiple of 100."""
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
    """`given`: those of the transcript; `spread`: where it has none, words take even shares of the clip."""
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
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExtractionSettings":
        """Settings from what `to_dict` gave; fields that are absent have their defaults.

        Raises:
            ValueError: a field is unknown or has an impossible value.
        """
        raise NotImplementedError
