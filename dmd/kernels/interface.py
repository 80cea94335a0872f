"""What a backend computes: encoder stacks, attention, dropout, and the losses that it has kernels for.

`dmd.kernels.backend.choose_execution` chooses one for a device, once. The model and the objective are handed it and ask
nothing else. Backends are `dmd.kernels.cpu` (PyTorch, made for CPUs), `dmd.kernels.portable` (PyTorch on any device,
and what `torch.export` writes) and `dmd.kernels.triton_backend`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import EncoderStack, StackPlan


class LossKernels(ABC):
    """Losses of ghost batches as kernels. G ghost batches of S samples."""

    @abstractmethod
    def margin(self, rows: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """The published margin loss, [G].

        Args:
            rows: [G, R, d], float32.
            labels: [G, R].
            mask: [G, R], 1 for a row of a sample, 0 for padding.
        """

    @abstractmethod
    def decoupling(self, mask: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Reconstruction, cycle and orthogonality (over the samples) of one modality, [3, G].

        Args:
            mask: [G, S].
            features: origin, private, shared, reconstructed and private_again, [G * S, T, d] each.
        """

    @abstractmethod
    def graph(
        self,
        predictions: Tensor,
        labels: Tensor,
        mask: Tensor,
        *,
        priors: Tensor,
        regularised: bool,
        reprs: Sequence[Tensor],
        units: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Task and distillation losses [13, G] and the mean edges of both GD-Units [2, G, 6].

        Args:
            predictions: [8, G, S], float32, in the order of `dmd.model.dmd.HEADS`.
            labels: [G, S].
            mask: [G, S].
            priors: [2, 6].
            regularised: whether edges are drawn towards the priors.
            reprs: homogeneous [G * S, d] and then heterogeneous [G * S, 2d] representations of three modalities.
            units: weight and bias of `logit`, `repr` and `edge` of the homogeneous and then of the other GD-Unit.
        """


class Backend(ABC):
    """An implementation of what the network is made of. Backends have no state: one object serves all models."""

    name: Literal["fused", "plain"]
    """What `train.kernels` and run.json call it."""
    keys_on_device: bool
    """Whether the keys of dropout come from a table in the device's memory; otherwise from the host."""
    losses: LossKernels | None
    """Kernels of losses; None: `dmd.losses` computes them in PyTorch."""

    @abstractmethod
    def tables(self, plan: StackPlan) -> dict[str, Tensor]:
        """Constants of a stack by name, which the model keeps on its device."""

    @abstractmethod
    def encode(
        self,
        stack: EncoderStack,
        inputs: Sequence[Tensor],
        sources: Sequence[Tensor] | None = None,
        *,
        key_ranges: Sequence[Tensor] | None = None,
        rng: DropoutRNG | None = None,
    ) -> list[Tensor]:
        """Run E encoders.

        Args:
            inputs: [B, Tq, d] of each encoder.
            sources: [B, Tk, d] of each encoder, which it attends to; None: itself.
            key_ranges: (begin, end) of the unpadded frames of each sample's keys, [B, 2] integers of each encoder;
                None: all frames. With `plan.last_step`, the last unpadded frame is then the last step.
            rng: dropout RNG; None switches dropout off.

        Returns:
            [B, Tq, d] of each encoder, or [B, d] with `plan.last_step`.
        """

    @abstractmethod
    def encode_pairs(
        self,
        first: EncoderStack,
        second: EncoderStack,
        inputs: Sequence[Tensor],
        sources: Sequence[Tensor],
        *,
        key_ranges: tuple[Sequence[Tensor] | None, Sequence[Tensor] | None] = (None, None),
        rng: DropoutRNG | None = None,
    ) -> list[Tensor]:
        """Run `first` over inputs and sources, and `second` over its outputs, two by two side by side in the channels.

        Args:
            inputs: [B, Tq, d] of each of the 2 E encoders of `first`; consecutive ones have equal lengths.
            sources: [B, Tk, d] of each of them.
            key_ranges: as for `encode`, of either stack.

        Returns:
            what `encode` gives for the E encoders of `second`, of 2d channels.
        """

    @abstractmethod
    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        rng: DropoutRNG | None = None,
        key_ranges: Tensor | None = None,
    ) -> Tensor:
        """softmax(q k^T / sqrt(d / H) + mask) v with dropout on the weights; keeps no attention matrix for backward.

        Args:
            query: [E, B, Tq, d], or [E, B, 1, d] with `plan.last_step`.
            key: [E, B, Tk, d].
            value: [E, B, Tk, d].
            rng: dropout RNG; None switches dropout off.
            key_ranges: [E, B, 2], integers: first unpadded key frame of each sample and the end of its unpadded key
                frames. Key j is then visible only where begin <= j < end too. None (the published behaviour): no frame
                is padding.

        Returns:
            like `query`; rows past an encoder's length, and rows that see no key, are zero and pass no gradient.
        """

    @abstractmethod
    def dropout(self, x: Tensor, rate: float, rng: DropoutRNG | None, *, batch_dim: int = 0) -> Tensor:
        """Dropout of x; the identity where `rng` is None (evaluation) or the rate is 0.

        Args:
            batch_dim: the axis of x that counts the samples.
        """

    def drop_samples(self, x: Tensor, rate: float, rng: DropoutRNG | None) -> Tensor:
        """Set whole samples of x [B, ...] to zero, the rest as it is; the identity where `dropout` is one."""
        if rng is None or rate == 0:
            return x
        return x * (self.dropout(x.new_ones(len(x), *[1] * (x.dim() - 1)), rate, rng) > 0)
