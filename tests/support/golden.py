"""The golden files: numbers computed with the published implementation (mdswyz/DMD@516d4e1), float32, no dropout."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmd.losses import Objective, ObjectiveConfig
from dmd.model import DMD, ModelConfig
from dmd.published.parameter_names import GD_UNIT, from_published, slots

FOLDER = Path(__file__).parent.parent / "golden"
SETTINGS = ("aligned", "unaligned")
LETTER = {"text": "l", "audio": "a", "vision": "v"}


class Golden:
    """One golden file as a mapping of float32 tensors."""

    def __init__(self, setting: str) -> None:
        self.arrays = dict(np.load(FOLDER / f"dmd_{setting}.npz"))
        self.settings = json.loads(str(self.arrays.pop("config")))

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def model_config(self) -> ModelConfig:
        s = self.settings
        kernels = {f"kernel_{m}": width for m, width in s["conv_kernels"].items()}
        off = {n: 0.0 for n in ModelConfig.__dataclass_fields__ if "dropout" in n}
        return ModelConfig(task="regression", dim=s["d"], heads=s["heads"], levels=s["levels"], **kernels, **off)

    def build(self, **objective: str) -> tuple[DMD, Objective]:
        config = self.model_config()
        model = DMD(config, self.settings["feature_dims"], self.settings["seq_lens"])
        losses = Objective(ObjectiveConfig(**objective), config)
        report = from_published(self.under("state/dmd/"), model.state_dict(), slots(config.levels))
        assert not report.missing
        assert not report.unknown
        model.load_state_dict(report.state)
        for space in ("homo", "hetero"):
            unit = losses.get_submodule(space)
            imported = from_published(self.under(f"state/{space}/"), unit.state_dict(), list(GD_UNIT))
            assert not imported.missing
            unit.load_state_dict(imported.state)
        return model, losses

    def batch(self, prefix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return tuple(self[f"{prefix}{name}"] for name in ("text", "audio", "vision", "labels"))


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| in the Euclidean norm; absolute where `want` is zero."""
    got, want = got.detach().double().flatten(), want.double().flatten()
    return float((got - want).norm() / (want.norm() if want.norm() > 0 else 1))
