"""The objective of DMD: named terms per ghost batch and their weighted sum (paper, eqs. 6 and 11)."""

from collections.abc import Callable

import torch
from torch import Tensor

from dmd.kernels.cpu import CPU
from dmd.kernels.interface import Backend, LossKernels
from dmd.losses.config import ObjectiveConfig
from dmd.losses.decoupling import Compared, compare, mean_squared, orthogonality
from dmd.losses.distillation import make_prior
from dmd.losses.ghost import sample_mean
from dmd.losses.model_objective import LossTerm, ModelObjective, fused_error
from dmd.losses.sharing import Sharing
from dmd.losses.terms import Distilled, Inputs, Part, all_in_triton, all_terms, total, triton_order
from dmd.losses.triton_terms import KernelObjective
from dmd.model.config import MODALITIES, ModelConfig
from dmd.model.decouple import Decoupled
from dmd.model.dmd import DMDOutput, SampleOutput
from dmd.model.graph import GDUnit
from dmd.model.network import FUSED, NetworkOutput

MOST_SAMPLES = 64
"""Of a ghost batch that the Triton losses take: a program holds all of it, and ptxas works for minutes on more."""


class Objective(ModelObjective):
    """The two GD-Units and every loss term of DMD.

    Args:
        config: weights and switches.
        model: the network's hyperparameters, for the sizes of the GD-Units.
        backend: whose kernels of losses compute what they know of the config, of up to MOST_SAMPLES samples.
    """

    spaces = ("homo", "hetero")

    def __init__(self, config: ObjectiveConfig, model: ModelConfig, *, backend: Backend = CPU) -> None:
        super().__init__(model)
        self.config = config
        self.decoupling = model.decoupling
        self.homo = GDUnit(model.dim, model.gd_size_homo, model.outputs, kind=model.kind)
        self.hetero = GDUnit(2 * model.dim, model.gd_size_hetero, model.outputs, kind=model.kind)
        self.register_buffer("prior_homo", make_prior(config.prior, "homo"), persistent=False)
        self.register_buffer("prior_hetero", make_prior(config.prior, "hetero"), persistent=False)
        unweighted = config.label_density_smoothing == 0
        known = config.orthogonality == "batch" and model.kind == "regression" and unweighted
        self.known_to_kernels = known and all_in_triton()
        self.use(backend)

    @classmethod
    def make(cls, settings: object, model: ModelConfig) -> "Objective":
        """See `ModelObjective.make`."""
        assert isinstance(settings, ObjectiveConfig)
        return cls(settings, model)

    @classmethod
    def described(cls) -> list[LossTerm]:
        """Every row of `dmd.losses.terms`."""
        return [term.described for term in all_terms()]

    def use(self, backend: Backend) -> None:
        """Let a backend's kernels compute the losses from here on, and PyTorch what it has none for."""
        self.kernels = backend.losses
        if self.kernels is not None and self.known_to_kernels:
            priors = torch.stack([self.get_buffer("prior_homo"), self.get_buffer("prior_hetero")])
            names = triton_order()
            unit = dict(zip(names, torch.eye(len(names), device=priors.device), strict=True))
            self.register_buffer("priors", priors, persistent=False)
            self.register_buffer("coefficients", self.weighted_sum(unit), persistent=False)

    def forward(
        self, output: NetworkOutput, labels: Tensor, mask: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As `ModelObjective.forward`, and {"edges_homo", "edges_hetero": [G, 6]} (means over the samples of a ghost
        batch, for the log)."""
        assert isinstance(output, DMDOutput)
        kernels = self.kernels if labels.shape[1] <= MOST_SAMPLES else None
        mask = mask.to(labels.dtype)
        if kernels is not None and self.known_to_kernels:
            return self._terms_by_kernels(kernels, output, labels, mask)
        whole, compared = self._whole(output, mask)
        inputs = Inputs(
            config=self.config,
            output=whole,
            compared=compared,
            kind=self.kind,
            labels=labels,
            mask=mask,
            label_weights=self.weights_of(labels),
            kernels=kernels,
        )
        terms: dict[str, Tensor] = {}
        for term in all_terms():
            if term.space is not None and term.space not in inputs.distilled:
                inputs.distilled[term.space] = own = self._distilled(term.space, inputs.output)
                terms[f"edges_{term.space}"] = sample_mean(own.edges.detach(), inputs.mask)
            terms[term.name] = term.function(inputs)
        terms["total"] = self.weighted_sum(terms)
        if self.trains_another_error:
            terms |= fused_error(whole.predictions[FUSED], labels, mask, self.kind)
        return terms

    def edges(self, output: NetworkOutput) -> dict[str, Tensor]:
        """Edges per sample of both GD-Units, {"homo", "hetero": [B, 6]}."""
        assert isinstance(output, DMDOutput)
        edges = {}
        for space, reprs in output.spaces.items():
            logits = {m: output.predictions[f"{m}_{space}"].float() for m in MODALITIES}
            edges[space] = self.get_submodule(space)(logits, {m: reprs[m].float() for m in MODALITIES})
        return edges

    def _terms_by_kernels(
        self, kernels: LossKernels, output: DMDOutput, labels: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        by_kernels = KernelObjective(
            kernels=kernels,
            units=(self.homo, self.hetero),
            priors=self.get_buffer("priors"),
            regularised=self.config.prior != "none",
            coefficients=self.get_buffer("coefficients"),
            margin_constant=self.config.margin_constant if self.config.margin == "constant" else None,
            margin_smoothing=self.config.margin_smoothing,
        )
        if self.sharing is None:
            return by_kernels.terms(output, by_kernels.decoupling(output.decoupled, mask), labels, mask)
        whole, compared = self._whole(output, mask)
        errors = [mean_squared(x, mask) for x in (compared.reconstruction, compared.cycle)]
        decoupling = torch.stack([*errors, orthogonality(compared, mask)])
        return by_kernels.terms(_map(whole, lambda tensor: tensor.flatten(0, 1)), decoupling, labels, mask)

    def _whole(self, output: DMDOutput, mask: Tensor) -> tuple[SampleOutput, Compared]:
        """What the losses read of all samples of the ghost batches, [G, S, ...], in float32 at least: they are not
        computed in bfloat16."""
        own_mask = mask if self.sharing is None else self.sharing.own(mask)

        def view(tensor: Tensor) -> Tensor:
            return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).unflatten(0, own_mask.shape)

        own = _map(output, view)
        features = Decoupled(*({m: view(feature) for m, feature in of.items()} for of in output.decoupled))
        compared = compare(features, own_mask, along=self.config.orthogonality)
        return (own, compared) if self.sharing is None else _complete(self.sharing, own, compared, mask.shape[1])

    def weighted_sum(self, terms: dict[str, Tensor]) -> Tensor:
        """The objective from its terms; any shape, equal for all terms."""
        config = self.config
        rows = all_terms()

        def part(name: Part, space: str | None = None) -> Tensor:
            return total(terms[row.name] for row in rows if (row.part, row.space) == (name, space))

        homo = part("distillation", "homo") + part("regulariser", "homo")
        hetero = part("distillation", "hetero") + part("regulariser", "hetero")
        decoupling = part("decoupling") + config.gamma * part("relation")
        distillation = homo * config.homo_distillation + hetero * config.hetero_distillation
        weight = config.decoupling_weight * self.decoupling
        return part("task") + weight * decoupling + config.distillation_weight * distillation

    def _distilled(self, space: str, output: SampleOutput) -> Distilled:
        """A space's edges and what they are made of; of an output in ghost batches."""
        logits = {m: output.predictions[f"{m}_{space}"] for m in MODALITIES}
        reprs = output.homo_repr if space == "homo" else output.hetero_repr
        edges = self.get_submodule(space)(logits, reprs)  # [G, S, 6]
        return Distilled(edges=edges, prior=self.get_buffer(f"prior_{space}"), logits=logits, reprs=reprs)


def _map(output: SampleOutput, function: Callable[[Tensor], Tensor]) -> SampleOutput:
    """A function of every tensor."""

    def of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: function(tensor) for name, tensor in tensors.items()}

    return SampleOutput(
        predictions=of(output.predictions),
        margin_features=of(output.margin_features),
        homo_repr=of(output.homo_repr),
        hetero_repr=of(output.hetero_repr),
    )


def _complete(sharing: Sharing, own: SampleOutput, compared: Compared, size: int) -> tuple[SampleOutput, Compared]:
    """What the ranks that share ghost batches of `size` samples have of them, each the same: two collectives at most.

    Args:
        own: [G, P, ...], of this rank's samples.
        compared: of the same.
    """
    cosines = [] if compared.cosines is None else [compared.cosines]
    of_samples = [*_tensors(own), compared.reconstruction, compared.cycle, *cosines]
    whole = iter(sharing.gather(of_samples, size))
    sums = iter(sharing.add([x for products in compared.products for x in products]) if compared.products else ())
    return _map(own, lambda _: next(whole)), Compared(
        reconstruction=next(whole),
        cycle=next(whole),
        cosines=next(whole) if cosines else None,
        products=[(next(sums), next(sums), next(sums)) for _ in compared.products],
    )


def _tensors(output: SampleOutput) -> list[Tensor]:
    """Every tensor, in the order in which `_map` goes over them."""
    parts = (output.predictions, output.margin_features, output.homo_repr, output.hetero_repr)
    return [tensor for part in parts for tensor in part.values()]
