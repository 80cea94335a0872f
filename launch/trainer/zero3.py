"""ZeRO stage 3, where ranks divide the weights themselves: how whole ones are had for a validation or a checkpoint.

DeepSpeed gathers a module's weights right before it runs and lets go of them behind it. That suits a text encoder,
whose modules run one by one. The weights of the rest, of MISA 24 million and of the others a few, are read by kernels
that run many modules at once: they stay on every rank, and only their gradients and Adam's moments are divided.

This reaches into DeepSpeed where it has no interface: `ds_persist` and `persistent_parameters` name the weights that
stay, an entry in `ds_active_sub_modules` keeps one from being let go, and `param_coordinator` is what its hooks ask.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmd.system.system import TrainingSystem
from launch.trainer.deepspeed_library import (
    GatheredParameters,
    ZeroParamStatus,
    safe_get_local_optimizer_state,
    safe_set_local_optimizer_state,
)

_UNKNOWN_OUTPUT = "unknown inputs or outputs type (<class 'dmd.model."
"""Part of a warning of DeepSpeed's, of `runtime/zero/parameter_offload.py`."""
HELD = "held"
"""Stands for a user of a weight, beside the modules that DeepSpeed counts."""


def kept_elements(system: TrainingSystem) -> int:
    """Elements up to which DeepSpeed itself keeps a weight on every rank: the vectors of the text encoder."""
    encoder = system.network.text_encoder
    vectors = [] if encoder is None else [p.numel() for p in encoder.parameters() if p.ndim < 2]
    return max(vectors, default=0)


class DividedWeights:
    """The weights of a system whose text encoder is divided.

    Args:
        optimizer: DeepSpeed's, of stage 3.
        system: what it divides.
    """

    def __init__(self, optimizer: Any, system: TrainingSystem) -> None:
        self._optimizer = optimizer
        self._system = system
        encoder = system.network.text_encoder
        of_encoder = set() if encoder is None else {id(parameter) for parameter in encoder.parameters()}
        self._kept: list[Any] = optimizer.persistent_parameters
        every: list[Any] = list(system.parameters())
        for parameter in every:
            if id(parameter) not in of_encoder and not parameter.ds_persist:
                parameter.ds_persist = True
                self._kept.append(parameter)
        self._divided: list[Any] = [parameter for parameter in every if not parameter.ds_persist]
        logging.getLogger("DeepSpeed").addFilter(says_something)
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)
        self.keep()

    def keep(self) -> None:
        """Have what stays on every rank there, and keep it; after each step, for which DeepSpeed lets go of all."""
        gone = [parameter for parameter in self._kept if parameter.ds_status != ZeroParamStatus.AVAILABLE]
        if gone:
            gone[0].all_gather(gone)
        for parameter in self._kept:
            parameter.ds_active_sub_modules.add(HELD)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every rank has all weights inside the block, and no pass in it waits for another rank.

        DeepSpeed records the order in which modules run, and compares it over the ranks where it has changed. A rank
        may run more passes in the block than another, so nothing of them is recorded.
        """
        hooks = self._optimizer.parameter_offload
        coordinator = hooks.param_coordinator
        with GatheredParameters(self._divided):
            hooks.param_coordinator = _Idle()
            try:
                yield
            finally:
                hooks.param_coordinator = coordinator

    def state(self, *, capacity: int) -> dict[str, Tensor]:
        """Copies of the system's weights on the CPU, on rank 0; the others get none. A collective.

        Args:
            capacity: elements that are gathered at once.
        """
        found = self._system.state_dict(keep_vars=True)
        names = {id(tensor): name for name, tensor in found.items()}
        whole: dict[str, Tensor] = {}
        for group in _groups([p for p in self._divided if id(p) in names], capacity):
            with GatheredParameters(group):
                if dist.get_rank() == 0:
                    whole |= {names[id(p)]: p.detach().to("cpu", copy=True) for p in group}
        if dist.get_rank() != 0:
            return {}
        kept = {name: t for name, t in found.items() if name not in whole}
        whole |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept.items()}
        return {name: whole[name] for name in found}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over weights, and DeepSpeed's own float32 copy of them. A collective."""
        for parameter in self._kept:
            parameter.ds_active_sub_modules.discard(HELD)
        named = dict(self._system.named_parameters())
        with GatheredParameters([named[name] for name in state if name in named], modifier_rank=0):
            self._system.load_state_dict(state)
        self._optimizer.refresh_fp32_params()
        self.keep()

    def moment(self, parameters: Sequence[nn.Parameter], key: str, *, capacity: int) -> list[Tensor]:
        """One of Adam's moments of each trained parameter, in its shape, as copies on the CPU. A collective.

        Args:
            capacity: elements that are gathered at once.
        """
        ranks = dist.get_world_size()
        found: list[Tensor] = []
        for group in _groups(parameters, capacity):
            own = [safe_get_local_optimizer_state(parameter, key).flatten() for parameter in group]
            joined = torch.cat(own)
            every = [torch.empty_like(joined) for _ in range(ranks)]
            dist.all_gather(every, joined)
            parts = torch.stack(every).cpu().split([part.numel() for part in own], dim=1)  # [ranks, part]
            for parameter, part in zip(group, parts, strict=True):
                whole = part.reshape(-1)[: parameter.ds_numel].view(parameter.ds_shape)
                found.append(whole.clone(memory_format=torch.contiguous_format))
        return found

    def load_moment(self, parameter: Any, key: str, value: Tensor) -> None:
        """Take this rank's part of one of Adam's moments from the whole one."""
        size = parameter.ds_tensor.ds_numel
        begin = size * dist.get_rank()
        own = value.flatten()[begin : begin + size]
        safe_set_local_optimizer_state(parameter, nn.functional.pad(own, (0, size - own.numel())), key)

    def flat_parameters(self) -> list[Tensor]:
        """What the optimizer updates: this rank's parts of all trained parameters, in one or more flat tensors."""
        return self._optimizer.fp32_partitioned_groups_flat


class _Idle:
    """Stands for DeepSpeed's coordinator where its hooks have nothing to gather, let go of or record."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


def says_something(record: logging.LogRecord) -> bool:
    """Whether a line of DeepSpeed's is anything but the warning that it cannot look into a network's output, which it
    need not, as the network's weights are kept."""
    return _UNKNOWN_OUTPUT not in record.getMessage()


def _groups(parameters: Sequence[Any], capacity: int) -> Iterator[list[Any]]:
    """Parameters in groups of at most `capacity` elements; a larger one alone."""
    group: list[Any] = []
    room = capacity
    for parameter in parameters:
        if group and parameter.ds_numel > room:
            yield group
            group, room = [], capacity
        group.append(parameter)
        room -= parameter.ds_numel
    if group:
        yield group
