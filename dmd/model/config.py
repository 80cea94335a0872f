"""The hyperparameters of the network. Defaults are the published ones for CMU-MOSI (mdswyz/DMD, config.json)."""

from dataclasses import dataclass
from typing import Literal, get_args

MODALITIES = ("text", "audio", "vision")
ModelName = Literal["dmd", "text_only", "early_fusion", "late_fusion", "mult", "misa", "self_mm"]
"""The rows of `dmd.system.models`."""
Task = Literal["auto", "regression", "multilabel"] | int
Kind = Literal["regression", "classes", "multilabel"]
"""What the heads predict: a sentiment, one of several classes, or any number of emotions."""
_FEWEST = 2
"""Classes or emotions that there are at least."""
_LEAST_DIM = 4
"""What the position embedding of DMD's encoders needs; of every model, so that a search may vary models."""


def kind_of(task: Task) -> Kind:
    """The kind of a task that is resolved.

    Raises:
        ValueError: `auto`, which only the shards can resolve.
    """
    if task == "auto":
        raise ValueError("model.task is 'auto', what the shards hold; give shards, or set model.task")
    return task if isinstance(task, str) else "classes"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Width, depth and dropout of the network. Feature dims and sequence lengths are not here: they come from the data.
    docs/models.md says which keys a model reads; of DMD all."""

    name: ModelName = "dmd"
    """Which model is trained: dmd, or a baseline on the same footing (docs/models.md). A value under a key that it does
    not read is an error."""
    task: Task = "auto"
    """What the heads predict (docs/tasks.md). regression: the sentiment. A number of classes: one of them, as
    logits, with cross entropy in the place of the absolute error; `data.classes` says where they come from. multilabel:
    each emotion of the shards, as a logit, with binary cross entropy. auto: what the shards hold. run.json, checkpoints
    and exports name what it was."""
    emotions: int = 0
    """Emotions of `task: multilabel`: as many as the shards hold, which sets it; 0 otherwise."""
    dim: int = 50
    """Channels of every encoder (d in the paper of DMD); of a baseline, of its layers."""
    heads: int = 10
    """Attention heads; must divide `dim`, where the model has some."""
    levels: int = 4
    """Layers of the self-attention and crossmodal encoders, of which memory encoders have max(levels, 3); of early
    fusion, of its LSTM."""
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
    """Dropout of attention weights over text, and of the memory encoders; of MISA, in its fusion layer."""
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
    """Dropout inside the prediction heads; of early and late fusion in all layers, of MISA behind its fusion."""
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
        if self.name not in get_args(ModelName):
            raise ValueError(f"model.name is {self.name!r}; give one of {', '.join(get_args(ModelName))}")
        self._check_task()
        for name in ("dim", "heads", "levels", "kernel_text", "kernel_audio", "kernel_vision"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("gd_size_homo", "gd_size_hetero"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.dim < _LEAST_DIM:
            raise ValueError(f"model.dim is {self.dim}; it must be at least {_LEAST_DIM}")
        for name in self.__dataclass_fields__:
            if name.endswith("dropout") or "dropout_" in name:
                rate = getattr(self, name)
                if not 0 <= rate < 1:
                    raise ValueError(f"model.{name} is {rate}; a dropout rate lies in [0, 1)")

    def _check_task(self) -> None:
        if not isinstance(self.task, str) and self.task < _FEWEST:
            raise ValueError(
                f"model.task is {self.task}; give auto, regression, multilabel, or at least {_FEWEST} classes"
            )
        if self.emotions < 0 or (self.emotions and self.task != "multilabel"):
            raise ValueError(
                f"model.emotions is {self.emotions} and model.task is {self.task!r}; the shards say how many there "
                "are: leave it out"
            )

    def check_heads(self) -> None:
        """Raise ValueError where attention heads do not fit, of a model that has some."""
        if self.dim % self.heads:
            raise ValueError(f"model.heads is {self.heads}; it must divide model.dim, which is {self.dim}")

    @property
    def kind(self) -> Kind:
        """What the heads predict. Raises ValueError where that is not resolved."""
        return kind_of(self.task)

    @property
    def outputs(self) -> int:
        """Numbers that a head gives: one, or a logit per class or emotion. Raises ValueError as `kind`."""
        if self.kind == "multilabel":
            if self.emotions < _FEWEST:
                raise ValueError(
                    f"model.task is 'multilabel' and model.emotions is {self.emotions}; the shards say how many there "
                    f"are: give shards with at least {_FEWEST}"
                )
            return self.emotions
        return self.task if isinstance(self.task, int) else 1

    @property
    def kernels(self) -> dict[str, int]:
        """Convolution width by modality."""
        return {"text": self.kernel_text, "audio": self.kernel_audio, "vision": self.kernel_vision}

    @property
    def source_dropout(self) -> dict[str, float]:
        """Attention dropout by the modality that is attended to."""
        return {"text": self.attn_dropout, "audio": self.attn_dropout_audio, "vision": self.attn_dropout_vision}
