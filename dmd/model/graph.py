"""GD-Unit (paper, eqs. 7-8): learned weights of distilling one modality into another.

Pairs (to, from), in the order of the published edges: text<-vision, text<-audio, vision<-text, vision<-audio,
audio<-text, audio<-vision.
"""

import torch
from torch import Tensor, nn

from dmd.kernels.losses.constants import EDGE_TEMPERATURE
from dmd.model.config import MODALITIES, Kind

PAIRS = (
    ("text", "vision"),
    ("text", "audio"),
    ("vision", "text"),
    ("vision", "audio"),
    ("audio", "text"),
    ("audio", "vision"),
)
"""(student, teacher) of each edge."""


def centred(logits: Tensor) -> Tensor:
    """Logits [..., classes] less their mean over the classes."""
    return logits - logits.mean(-1, keepdim=True)


class GDUnit(nn.Module):
    """Edge weights from the logits and representations of three modalities.

    z_m = [W_logit logit_m, W_repr repr_m]; edges = softmax over pairs of W_edge [z_to, z_from] / 8. Of a classifier,
    logit_m are the logits of the classes less their mean, which says nothing about the classes. Of emotions they are
    the logits themselves, each of which says something for itself.

    Args:
        repr_dim: width of the representations.
        size: width of the projections.
        outputs: numbers that a head gives.
        kind: what they are.
    """

    def __init__(self, repr_dim: int, size: int, outputs: int = 1, *, kind: Kind = "regression") -> None:
        super().__init__()
        self.kind = kind
        self.logit = nn.Linear(outputs, size)
        self.repr = nn.Linear(repr_dim, size)
        self.edge = nn.Linear(4 * size, 1)

    def forward(self, logits: dict[str, Tensor], reprs: dict[str, Tensor]) -> Tensor:
        """Edges [..., 6] from logits {m: [...] or [..., outputs]} and representations {m: [..., repr_dim]}."""
        logit = torch.stack([logits[m] for m in MODALITIES])
        if self.kind != "multilabel":
            logit = logit.unsqueeze(-1) if self.kind == "regression" else centred(logit)  # [3, ..., outputs]
        z = torch.cat([self.logit(logit), self.repr(torch.stack([reprs[m] for m in MODALITIES]))], dim=-1)
        as_student, as_teacher = self.edge.weight.chunk(2, dim=1)
        student = (z @ as_student.T).squeeze(-1)  # [3, ...]
        teacher = (z @ as_teacher.T).squeeze(-1)
        scores = torch.stack(
            [student[MODALITIES.index(to)] + teacher[MODALITIES.index(source)] for to, source in PAIRS], dim=-1
        )
        return torch.softmax((scores + self.edge.bias) / EDGE_TEMPERATURE, dim=-1)
