"""A system as DeepSpeed sees it at ZeRO stage 0: its trained weights joined, some of them to a bucket of the reduction.

Clip, Adam, DeepSpeed's own loops and the ranks' messages then have a tensor per bucket, not one per parameter.
"""

from torch import nn

from dmd.system.joined_weights import JoinedWeights
from dmd.system.pass_terms import PassTerms
from dmd.system.system import ParameterGroup, TrainingSystem
from launch.trainer.reduction import divided


def join_groups(system: TrainingSystem, groups: list[ParameterGroup], capacity: int) -> list[ParameterGroup]:
    """The groups with joined weights, the last ones first, as backward gives their gradients; the system has them too.

    Args:
        capacity: elements of joined weights, at most; a larger parameter stays alone.
    """
    names = {parameter: name for name, parameter in system.named_parameters()}
    system.weights, joined_groups = [], list[ParameterGroup]()
    for group in groups:
        runs = divided(group["params"][::-1], capacity)
        joined = [JoinedWeights({names[parameter]: parameter for parameter in run}) for run in runs]
        system.weights += joined
        joined_groups.append({**group, "params": [weights.whole for weights in joined]})
    return joined_groups


class JoinedSystem(nn.Module):
    """Runs a system; its parameters are the joined weights, and those that are not trained."""

    def __init__(self, system: TrainingSystem) -> None:
        super().__init__()
        self.trained = nn.ParameterList(weights.whole for weights in system.weights)
        self.frozen = nn.ParameterList(p for p in system.parameters() if not p.requires_grad)
        self._run = system.__call__  # no submodule, whose parameters would be these again

    def forward(self, *arguments: object) -> PassTerms:
        """The system's."""
        terms: PassTerms = self._run(*arguments)
        return terms
