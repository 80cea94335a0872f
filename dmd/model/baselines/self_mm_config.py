"""The hyperparameters of Self-MM. Defaults are the published ones for CMU-MOSI (thuiar/Self-MM@1786283,
config/config_regression.py)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SelfMMConfig:
    """Self-MM (`model.name: self_mm`): widths, dropout and the labels that it makes for each modality."""

    text_pooling: Literal["auto", "first", "lstm", "mean"] = "auto"
    """What stands for the text: `first`, its first unpadded step, which of BERT is [CLS] (published); `lstm`, the last
    state of an LSTM, as of audio and vision; `mean`, over its unpadded steps. auto: first where a text encoder reads
    tokens, lstm where the shards hold features."""
    text_lstm: int = 128
    """Channels of the LSTM over text features."""
    audio_lstm: int = 32
    """Channels of the LSTM over audio."""
    vision_lstm: int = 64
    """Channels of the LSTM over vision."""
    text_out: int = 128
    """Channels to which the last state of the text's LSTM is projected."""
    audio_out: int = 16
    """Channels to which audio's last state is projected."""
    vision_out: int = 32
    """Channels to which vision's last state is projected."""
    fused_dim: int = 128
    """Channels of the fused representation."""
    text_dim: int = 64
    """Channels of the text's representation, in the space in which its labels are made."""
    audio_dim: int = 16
    """Channels of audio's representation."""
    vision_dim: int = 32
    """Channels of vision's representation."""
    fused_dropout: float = 0.1
    """Dropout before the fused representation."""
    text_dropout: float = 0.0
    """Dropout before the text's representation."""
    audio_dropout: float = 0.1
    """Dropout before audio's representation."""
    vision_dropout: float = 0.1
    """Dropout before vision's representation."""
    first_epoch: int = 2
    """Epoch, counted from 1, from which the labels of single modalities are made; before, they are the sentiment, and
    the heads of single modalities learn nothing."""
    label_limit: float = 3.0
    """Largest label of a modality, on the scale of the shards ([-3, 3])."""
    exclude_zero: bool = False
    """Leave neutral samples out of the mean of the positive ones: `excludeZero` of the published code, which its
    configuration leaves off and that of MMSA switches on."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name.endswith("_dropout") and not 0 <= value < 1:
                raise ValueError(f"self_mm.{name} is {value}; a dropout rate lies in [0, 1)")
            if name.endswith(("_lstm", "_out", "_dim", "_epoch")) and value < 1:
                raise ValueError(f"self_mm.{name} is {value}; it must be at least 1")
        if self.label_limit <= 0:
            raise ValueError(f"self_mm.label_limit is {self.label_limit}; it must be above 0")

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each representation whose labels are made, the fused one first."""
        return {"fused": self.fused_dim, "text": self.text_dim, "audio": self.audio_dim, "vision": self.vision_dim}
