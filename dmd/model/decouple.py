"""Feature decoupling (paper, eqs. 1-3): one shared encoder, a private encoder and a decoder per modality."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmd.model.config import MODALITIES


class Decoupled(NamedTuple):
    """Per modality, each [B, T, d]."""

    origin: dict[str, Tensor]
    """Output of the temporal convolution."""
    private: dict[str, Tensor]
    """Modality-exclusive (heterogeneous) features."""
    shared: dict[str, Tensor]
    """Modality-irrelevant (homogeneous) features."""
    reconstructed: dict[str, Tensor]
    """Decoder output from [private, shared]."""
    private_again: dict[str, Tensor]
    """Private encoder applied to the reconstruction."""


class Undecoupled(nn.Module):
    """The ablation without feature decoupling: both spaces are the convolved features, and nothing is to rebuild."""

    def forward(self, origin: dict[str, Tensor]) -> Decoupled:
        """{modality: [B, T_m, d]} as it is, in every place."""
        return Decoupled(origin, origin, origin, origin, origin)


class Decoupler(nn.Module):
    """E^com, E_m^prt and D_m: linear maps per time step without bias (the published 1x1 convolutions)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shared = nn.Linear(dim, dim, bias=False)
        self.private = nn.ModuleDict({m: nn.Linear(dim, dim, bias=False) for m in MODALITIES})
        self.decoder = nn.ModuleDict({m: nn.Linear(2 * dim, dim, bias=False) for m in MODALITIES})

    def forward(self, origin: dict[str, Tensor]) -> Decoupled:
        """Decouple {modality: [B, T_m, d]}."""
        private = {m: self.private[m](origin[m]) for m in MODALITIES}
        shared = {m: self.shared(origin[m]) for m in MODALITIES}
        again = {m: self.decoder[m](torch.cat([private[m], shared[m]], dim=-1)) for m in MODALITIES}
        private_again = {m: self.private[m](again[m]) for m in MODALITIES}
        return Decoupled(origin, private, shared, again, private_again)
