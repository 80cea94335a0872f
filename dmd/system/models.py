"""The models that can be trained, one row each: `model.name` chooses one.

Whatever trains, evaluates, predicts or reports reads the row. A new model is a network (`dmd.model.network.Network`) in
a file of `dmd/model/baselines`, an objective (`dmd.losses.terms_objective.TermsObjective`) in one of
`dmd/losses/baselines` where it is more than the task loss of the fused head, its name in `ModelName`, and a row.
docs/models.md says how. Rows name classes by their place, so that reading this table needs no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from dmd.model.config import Kind, ModelName

if TYPE_CHECKING:
    from dmd.losses.model_objective import LossTerm, ModelObjective
    from dmd.model.network import Head, Network

_ALWAYS = (
    "model.name",
    "model.task",
    "model.emotions",
    "objective.consistency",
    "objective.label_density_smoothing",
)
"""Keys that every model reads, beside those of its own section."""
_INPUTS = ("model.normalise", "model.text_dropout", "model.modality_dropout")
"""Keys of `Network.begin`."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model."""

    name: ModelName
    """What `model.name` says; in checkpoints how the names of its network's weights begin."""
    title: str
    """In tables."""
    source: str
    """Where it is published, and what here is otherwise."""
    network: str
    """`module:class`, of a `Network`."""
    objective: str = "dmd.losses.terms_objective:TermsObjective"
    """`module:class`, of a `ModelObjective`."""
    section: str = ""
    """The section of the config that is its own, which its network and its objective are given; empty: none."""
    reads: tuple[str, ...]
    """The keys of `model` that it reads beside `_ALWAYS`, or patterns of them."""
    kinds: tuple[Kind, ...] = ("regression", "classes", "multilabel")
    """What its heads can predict."""
    is_captured: bool = False
    """Whether its pass has run as a CUDA graph."""

    def network_class(self) -> "type[Network]":
        """The class of its network."""
        found: type[Network] = resolve_name(self.network)
        return found

    def objective_class(self) -> "type[ModelObjective]":
        """The class of its objective."""
        found: type[ModelObjective] = resolve_name(self.objective)
        return found

    def reads_key(self, key: str) -> bool:
        """Whether a config key matters to it."""
        patterns = (*_ALWAYS, *self.reads, *([f"{self.section}.*"] if self.section else []))
        return key.partition(".")[0] not in _owned_sections() or any(fnmatchcase(key, each) for each in patterns)


_ROWS = (
    Model(
        name="dmd",
        title="DMD",
        source="Li, Wang and Cui, Decoupled Multimodal Distilling for Emotion Recognition (CVPR 2023)",
        network="dmd.model.dmd:DMD",
        objective="dmd.losses.objective:Objective",
        section="objective",
        reads=("model.*",),
        is_captured=True,
    ),
    Model(
        name="text_only",
        title="text only",
        source="DMD's own path of the text, alone",
        network="dmd.model.baselines.text_only:TextOnly",
        reads=(
            *_INPUTS,
            "model.dim",
            "model.heads",
            "model.levels",
            "model.kernel_text",
            "model.attn_dropout",
            "model.relu_dropout",
            "model.res_dropout",
            "model.embed_dropout",
            "model.output_dropout",
        ),
    ),
    Model(
        name="early_fusion",
        title="early fusion (EF-LSTM)",
        source="Williams et al., Recognizing Emotions in Video Using Multimodal DNN Feature Fusion (2018), as in MMSA",
        network="dmd.model.baselines.early_fusion:EarlyFusion",
        reads=(*_INPUTS, "model.dim", "model.levels", "model.output_dropout"),
    ),
    Model(
        name="late_fusion",
        title="late fusion (LF-DNN)",
        source="Cambria et al., Benchmarking Multimodal Sentiment Analysis (2017), as in MMSA",
        network="dmd.model.baselines.late_fusion:LateFusion",
        reads=(*_INPUTS, "model.dim", "model.output_dropout"),
    ),
    Model(
        name="mult",
        title="MulT",
        source="Tsai et al., Multimodal Transformer for Unaligned Multimodal Language Sequences (ACL 2019)",
        network="dmd.model.baselines.mult:MulT",
        reads=(
            *_INPUTS,
            "model.dim",
            "model.heads",
            "model.levels",
            "model.kernel_*",
            "model.attn_dropout*",
            "model.relu_dropout",
            "model.res_dropout",
            "model.embed_dropout",
            "model.output_dropout",
            "model.masked_padding",
        ),
    ),
    Model(
        name="misa",
        title="MISA",
        source="Hazarika, Zimmermann and Poria, MISA: Modality-Invariant and -Specific Representations for Multimodal "
        "Sentiment Analysis (ACM MM 2020)",
        network="dmd.model.baselines.misa:MISA",
        objective="dmd.losses.baselines.misa:MisaObjective",
        section="misa",
        reads=(
            *_INPUTS,
            "model.dim",
            "model.heads",
            "model.attn_dropout",
            "model.relu_dropout",
            "model.res_dropout",
            "model.output_dropout",
        ),
    ),
    Model(
        name="self_mm",
        title="Self-MM",
        source="Yu, Xu, Yuan and Wu, Learning Modality-Specific Representations with Self-Supervised Multi-Task "
        "Learning for Multimodal Sentiment Analysis (AAAI 2021)",
        network="dmd.model.baselines.self_mm:SelfMM",
        objective="dmd.losses.baselines.self_mm:SelfMMObjective",
        section="self_mm",
        reads=_INPUTS,
        kinds=("regression",),
    ),
)
MODELS: dict[str, Model] = {row.name: row for row in _ROWS}
"""The models by name, in the order of docs/models.md."""
DEFAULT = "dmd"
"""What a config that names no model means: it is older than other models."""


def _owned_sections() -> frozenset[str]:
    """The config sections whose keys belong to some models and not to others."""
    return frozenset({"model", *(row.section for row in MODELS.values() if row.section)})


def name_in(config: Mapping[str, Mapping[str, Any]]) -> str:
    """The model of a config that was written."""
    return str(config.get("model", {}).get("name", DEFAULT))


def heads_of(name: str) -> "Mapping[str, Head]":
    """The heads of a model."""
    return MODELS[name].network_class().heads


def terms_of(name: str) -> "list[LossTerm]":
    """The terms that trainings of a model log, in the order of the log: those of its objective, and the one that
    `objective.consistency` adds; and validation's loss, where a training has another."""
    from dmd.losses.consistency import CONSISTENCY  # with torch
    from dmd.losses.model_objective import FUSED_ERROR

    return [*MODELS[name].objective_class().described(), CONSISTENCY, FUSED_ERROR]


def spaces_of(name: str) -> tuple[str, ...]:
    """The GD-Units of a model."""
    return MODELS[name].objective_class().spaces


def unread_keys(name: str, keys: Iterable[str]) -> list[str]:
    """Those of some dotted config keys that a model does not read."""
    return [key for key in keys if not MODELS[name].reads_key(key)]
