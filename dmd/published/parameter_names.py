"""Names of the published implementation's parameters (mdswyz/DMD) and ours, and the way between them.

The published state dict has one tensor per encoder; ours stacks the encoders of a stage. Parameters that it declares
and never uses (`proj_cosine_*`, BERT's pooler) and its position buffers have no counterpart.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dmd.model.config import MODALITIES
from dmd.model.dmd import CROSSMODAL

LETTER = {"text": "l", "audio": "a", "vision": "v"}
UNUSED = ("proj_cosine_", "text_model.model.pooler.", "text_model.model.embeddings.position_ids")
BUFFERS = (".version", ".embed_positions._float_tensor")
TEXT_ENCODER = ("text_model.model.", "text_encoder.network.")


class Slot(NamedTuple):
    """Where a published tensor lives here: our parameter and the part of it (index path), () for the whole."""

    published: str
    ours: str
    part: tuple[int, ...] = ()


def _linear(published: str, ours: str) -> Iterator[Slot]:
    for kind in ("weight", "bias"):
        yield Slot(f"{published}.{kind}", f"{ours}.{kind}")


def _head(published: str, ours: str) -> Iterator[Slot]:
    """`published` holds a {} where the names of a head's three layers differ."""
    for theirs, mine in (("proj1", "fc1"), ("proj2", "fc2"), ("out_layer", "out")):
        yield from _linear(published.format(theirs), f"{ours}.{mine}")


def _encoder(published: str, ours: str, member: int, levels: int) -> Iterator[Slot]:
    for level in range(levels):
        theirs, mine = f"{published}.layers.{level}", f"{ours}.layers.{level}"
        for kind in ("weight", "bias"):
            yield Slot(f"{theirs}.self_attn.in_proj_{kind}", f"{mine}.in_proj_{kind}", (member,))
            yield Slot(f"{theirs}.self_attn.out_proj.{kind}", f"{mine}.out_proj_{kind}", (member,))
            yield Slot(f"{theirs}.fc1.{kind}", f"{mine}.fc1_{kind}", (member,))
            yield Slot(f"{theirs}.fc2.{kind}", f"{mine}.fc2_{kind}", (member,))
            for norm in (0, 1):
                yield Slot(f"{theirs}.layer_norms.{norm}.{kind}", f"{mine}.norm_{kind}", (norm, member))
    for kind in ("weight", "bias"):
        yield Slot(f"{published}.layer_norm.{kind}", f"{ours}.norm_{kind}", (member,))


def slots(levels: int) -> list[Slot]:
    """Every tensor of the published DMD class that ours has too, for encoders of `levels` layers."""
    found = [Slot("encoder_c.weight", "decoupler.shared.weight")]
    for number, modality in enumerate(MODALITIES):
        m = LETTER[modality]
        found += [
            Slot(f"proj_{m}.weight", f"convolution.{modality}.weight"),
            Slot(f"encoder_s_{m}.weight", f"decoupler.private.{modality}.weight"),
            Slot(f"decoder_{m}.weight", f"decoupler.decoder.{modality}.weight"),
            *_linear(f"align_c_{m}", f"margin.{modality}"),
            *_linear(f"weight_{m}", f"gates.{modality}"),
            *_head(f"{{}}_{m}_low", f"homo_heads.{modality}"),
            *_head(f"{{}}_{m}_high", f"hetero_heads.{modality}"),
            *_encoder(f"self_attentions_c_{m}", "shared_encoders", number, levels),
            *_encoder(f"trans_{m}_mem", "memory_encoders", number, max(levels, 3)),
        ]
    for number, (target, source) in enumerate(CROSSMODAL):
        name = f"trans_{LETTER[target]}_with_{LETTER[source]}"
        found += _encoder(name, "crossmodal_encoders", number, levels)
    found += [*_head("{}_c", "shared_head"), *_head("{}", "fused_head"), *_linear("weight_c", "shared_gate")]
    return found


GD_UNIT = tuple(
    Slot(f"{theirs}.{kind}", f"{mine}.{kind}")
    for theirs, mine in (("W_logit", "logit"), ("W_repr", "repr"), ("W_edge", "edge"))
    for kind in ("weight", "bias")
)
"""The published DistillationKernel's parameters and those of `GDUnit`."""


class Import(NamedTuple):
    """What became of a published state dict."""

    state: dict[str, Tensor]
    """Tensors under our names, complete where every part was found."""
    mapped: list[str]
    skipped: list[str]
    """Published tensors without a counterpart: unused parameters and position buffers."""
    unknown: list[str]
    missing: list[str]
    """Our parameters that the file lacks, in whole or in part."""


def _kernel_one(tensor: Tensor) -> Tensor:
    """A published 1x1 convolution [out, in, 1] as the linear map [out, in] that it is."""
    return tensor.squeeze(-1) if tensor.dim() == 3 and tensor.shape[-1] == 1 else tensor


def from_published(published: Mapping[str, Tensor], ours: Mapping[str, Tensor], table: list[Slot]) -> Import:
    """Map a published state dict to our names.

    Args:
        published: tensors under the published names.
        ours: the state dict of the module to fill (its shapes are the contract).
        table: `slots(levels)` or `GD_UNIT`.

    Raises:
        ValueError: a tensor has another shape than the configuration asks for; names the tensor and both shapes.
    """
    state = {name: tensor.clone() for name, tensor in ours.items()}
    filled: dict[str, int] = dict.fromkeys(ours, 0)
    mapped = []
    for slot in table:
        if slot.published not in published or slot.ours not in state:
            continue
        target = state[slot.ours][slot.part]
        tensor = published[slot.published]
        if slot.ours.startswith("decoupler."):
            tensor = _kernel_one(tensor)
        if tensor.shape != target.shape:
            raise ValueError(
                f"{slot.published} has shape {list(tensor.shape)}, the configuration asks for {list(target.shape)}; "
                "choose the preset and the data that the file was trained with"
            )
        with torch.no_grad():
            target.copy_(tensor)
        filled[slot.ours] += tensor.numel()
        mapped.append(slot.published)
    for name, tensor in published.items():
        mine = TEXT_ENCODER[1] + name.removeprefix(TEXT_ENCODER[0])
        if name.startswith(TEXT_ENCODER[0]) and mine in state and tensor.shape == state[mine].shape:
            state[mine] = tensor.clone()
            filled[mine] = tensor.numel()
            mapped.append(name)
    rest = [name for name in published if name not in set(mapped)]
    skipped = [name for name in rest if name.startswith(UNUSED) or name.endswith(BUFFERS)]
    unknown = [name for name in rest if name not in set(skipped)]
    missing = [name for name, tensor in ours.items() if filled[name] < tensor.numel()]
    return Import(state, mapped, skipped, unknown, missing)


def to_published(ours: Mapping[str, Tensor], table: list[Slot]) -> dict[str, Tensor]:
    """Our tensors under the published names (without the tensors that we do not have)."""
    result = {}
    for slot in table:
        if slot.ours in ours:
            tensor = ours[slot.ours][slot.part]
            result[slot.published] = tensor.unsqueeze(-1) if slot.ours.startswith("decoupler.") else tensor
    result.update(
        {
            TEXT_ENCODER[0] + name.removeprefix(TEXT_ENCODER[1]): tensor
            for name, tensor in ours.items()
            if name.startswith(TEXT_ENCODER[1])
        }
    )
    return result
