"""The hyperparameters of the network. Defaults are the published ones for CMU-MOSI (mdswyz/DMD, config.json)."""

from dataclasses import dataclass
from typing import Literal

MODALITIES = ("text", "audio", "vision")
Task = Literal["regression", 2, 3, 5, 7]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Width, depth and dropout of DMD. Feature dims and sequence lengths are not here: they come from the data."""

    task: Task = "regression"
    """What the eight heads predict: the sentiment, or one of 2 (negative, not negative), 3 (by sign), 5 or 7 classes
    (rounded half to even, clipped to [-2, 2] or [-3, 3]) of it, as logits. For classes cross entropy takes the place of
    the absolute error, and the margin loss compares class numbers; see also `data.classes`."""
    dim: int = 50
    """Channels of every encoder (d in the paper)."""
    heads: int = 10
    """Attention heads; must divide `dim`."""
    levels: int = 4
    """Layers of the self-attention and crossmodal encoders; memory encoders have max(levels, 3)."""
    kernel_text: int = 5
    """Width of the temporal convolution of the text features, in time steps, without padding."""
    kernel_audio: int = 5
    """Width of the temporal convolution of the audio features."""
    kernel_vision: int = 5
    """Width of the temporal convolution of the vision features."""
    normalise: Literal["none", "train"] = "none"
    """`train`: each feature to mean 0 and standard deviation 1 over the frames of the train split that are not all
    zero, by the statistics that the shards' index holds; padding stays zero and token ids as they are. The statistics
    become part of the model."""
    text_dropout: float = 0.5
    """Dropout on the text features before their convolution."""
    attn_dropout: float = 0.3
    """Dropout of attention weights over text, and of the memory encoders."""
    attn_dropout_audio: float = 0.2
    """Dropout of attention weights over audio."""
    attn_dropout_vision: float = 0.0
    """Dropout of attention weights over vision."""
    relu_dropout: float = 0.0
    """Dropout after the ReLU of each encoder layer."""
    res_dropout: float = 0.0
    """Dropout of each residual branch."""
    embed_dropout: float = 0.2
    """Dropout of the scaled and positioned input of each encoder."""
    output_dropout: float = 0.5
    """Dropout inside the prediction heads."""
    gd_size_homo: int = 64
    """Width of the homogeneous GD-Unit's projections."""
    gd_size_hetero: int = 32
    """Width of the heterogeneous GD-Unit's projections."""
    decoupling: bool = True
    """Feature decoupling (FD in the paper's Table 3). Without it both spaces see the convolved features themselves, and
    the objective has no decoupling loss."""
    crossmodal: bool = True
    """Crossmodal attention (CA in Table 3). Without it each memory encoder sees its own modality twice."""
    masked_padding: bool = False
    """Attention does not see padded steps, and the encoders' last unpadded step is taken where the published code takes
    the last one. Unpadded are the steps from a sample's first to its last frame that is not all zero, and of tokens
    those of the attention mask."""
    modality_dropout: float = 0.0
    """Rate at which a whole modality of a training sample is set to zero, each by its own draw, behind the text
    encoder: practice for missing modalities. What is left is not scaled up."""

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "levels", "kernel_text", "kernel_audio", "kernel_vision"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("gd_size_homo", "gd_size_hetero"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.dim % self.heads:
            raise ValueError(f"model.heads is {self.heads}; it must divide model.dim, which is {self.dim}")
        if self.dim < 4:
            raise ValueError(f"model.dim is {self.dim}; the position embedding needs at least 4")
        for name in self.__dataclass_fields__:
            if name.endswith("dropout") or "dropout_" in name:
                rate = getattr(self, name)
                if not 0 <= rate < 1:
                    raise ValueError(f"model.{name} is {rate}; a dropout rate lies in [0, 1)")

    @property
    def outputs(self) -> int:
        """Numbers that a head gives: one, or a logit per class."""
        return 1 if self.task == "regression" else self.task

    @property
    def kernels(self) -> dict[str, int]:
        """Convolution width by modality."""
        return {"text": self.kernel_text, "audio": self.kernel_audio, "vision": self.kernel_vision}

    @property
    def source_dropout(self) -> dict[str, float]:
        """Attention dropout by the modality that is attended to."""
        return {"text": self.attn_dropout, "audio": self.attn_dropout_audio, "vision": self.attn_dropout_vision}
