"""A DeepSpeed engine behind the interface that the training loop asks for (`dmd.distributed.engine.Engine`)."""

import math
import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmd.checkpoint.state import model_state
from dmd.config import Config
from dmd.data.plan import EpochPlan
from dmd.distributed.engine import sizes_of
from dmd.system.pass_terms import PassTerms
from dmd.system.system import TrainingSystem, parameter_groups
from launch.devices import check_ranks
from launch.network.rendezvous import init_method
from launch.supervision.launcher_log import library_output
from launch.trainer.adam import make_adam
from launch.trainer.deepspeed_config import PRECISIONS, bucket_bytes, deepspeed_config
from launch.trainer.deepspeed_library import deepspeed, get_accelerator, safe_set_full_optimizer_state
from launch.trainer.joined_system import JoinedSystem, join_groups
from launch.trainer.reduction import GradientReduction
from launch.trainer.zero3 import DividedWeights, kept_elements
from launch.trainer.zero_state import GATHERED_ELEMENTS, gather_moment

STATE_KEYS = ("exp_avg", "exp_avg_sq")
LINKED_STAGES = (1, 2)
"""ZeRO stages at which DeepSpeed links a parameter to its part of a flat one."""
SHARED_MEMORY_OP = "deepspeed_shm_comm"


def join_process_group(timeout: timedelta = timedelta(minutes=30)) -> torch.device:
    """Join the ranks that the launcher (or Ray) started; returns this rank's device.

    DeepSpeed's shared-memory collective stays off on CPUs: it compiles for a minute and a half at first use, and it
    waits for a dead peer without a time limit, where gloo ends with an error.

    Raises:
        ValueError: more ranks on this host than it has GPUs, or rank 0 cannot listen where it should.
    """
    with library_output():  # it tries its compilers, and keeps them silent by the descriptor of `sys.stderr`
        deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
    accelerator = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if not on_cpu:
        check_ranks(int(os.environ.get("LOCAL_SIZE", "1")), accelerator.device_count())
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(auto_mpi_discovery=False, timeout=timeout, init_method=init_method())
    if on_cpu:
        return torch.device("cpu")
    return torch.device(accelerator.current_device_name())


def leave_process_group() -> None:
    """Leave the process group after the last collective. Under NCCL torch warns of a process that does not."""
    dist.destroy_process_group()


def limit_waiting(timeout: timedelta) -> None:
    """Give every process group this time limit. Those that DeepSpeed makes for itself (`groups._clone_world_group`)
    wait half an hour for a host that is gone, whatever timeout `init_distributed` got."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timeout, group)


class DeepSpeedEngine:
    """Data-parallel training of a system at ZeRO stage 0, 1, 2 or 3.

    Args:
        fused_adam: torch's fused Adam; None: on CUDA (`launch.trainer.adam`).

    Raises:
        ValueError: as `make_adam`.
    """

    def __init__(
        self,
        system: TrainingSystem,
        config: Config,
        plan: EpochPlan,
        device: torch.device,
        *,
        fused_adam: bool | None = None,
    ) -> None:
        self.system = system
        self.device = device
        self.rank = dist.get_rank()
        self.num_ranks = dist.get_world_size()
        self._zero_stage = config.train.zero_stage
        self._clip = config.train.clip
        self._clip_at = config.train.clip_at
        self._numbers = torch.zeros(0, device=device)
        self._found: list[float] = []
        self.sizes = sizes_of(system)
        self._parameters = {name: p for name, p in system.named_parameters() if p.requires_grad}
        self.reduction: GradientReduction | None = None
        """Of the gradients; None: DeepSpeed's own."""
        groups = parameter_groups(system, config)
        model: nn.Module = system
        if self._zero_stage == 0:
            precision = PRECISIONS[config.train.reduce_precision]
            groups = join_groups(system, groups, bucket_bytes(config) // precision.itemsize)
            model = JoinedSystem(system)
            self.reduction = GradientReduction(system.weights, precision=precision)
        self.optimizer: torch.optim.Optimizer = make_adam(groups, config, device, fused=fused_adam)
        settings = deepspeed_config(config, plan, kept_elements=kept_elements(system))
        with library_output():  # it builds operations, which print
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=self.optimizer, config=settings, dist_init_required=False
            )
        limit_waiting(timedelta(seconds=config.train.collective_timeout))
        self.optimizer.register_step_pre_hook(self._before_update)
        self._divided = DividedWeights(self._engine.optimizer, system) if self._zero_stage == 3 else None

    def forward(self, *arguments: object) -> PassTerms:
        """Loss terms of a batch (see `TrainingSystem.forward`)."""
        terms: PassTerms = self._engine(*arguments)
        return terms

    def backward(self, loss: Tensor) -> None:
        """Add gradients; the last pass of a step reduces them over the ranks (at ZeRO stage 2 every pass does)."""
        last = self._engine.is_gradient_accumulation_boundary()
        if self.reduction is None:
            self._engine.backward(loss, scale_wrt_gas=False)
        else:
            with self._engine.no_sync(), self.reduction if last else nullcontext():
                self._engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # moves DeepSpeed's count of passes, no update

    def step(self, numbers: Tensor) -> tuple[list[float], bool]:
        """Update the weights if loss and gradient are finite; see `dmd.distributed.engine.Engine`."""
        assert self._engine.is_gradient_accumulation_boundary()
        self._numbers = numbers
        self._found = []
        self._engine.step()
        if self._divided is not None:
            self._divided.keep()
        found = self._found or [*numbers.tolist(), math.nan]
        return found, _applies(found)

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Clip the reduced gradient, or remove it so that Adam does nothing.

        From ZeRO 1 on this is called once per parameter group, with this rank's flat part of it, after DeepSpeed has
        the norm over all groups; where that is not finite DeepSpeed does not call this at all.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        if self._zero_stage > 0:
            norm = torch.as_tensor(self._engine.optimizer._global_grad_norm, device=self.device)
        else:
            norm = torch.nn.utils.get_total_norm([weights.gradient_norms() for weights in self.system.weights])
        if not self._found:
            self._found = torch.cat([self._numbers, norm.view(1)]).tolist()  # waits for the device
        if not _applies(self._found):
            for parameter in parameters:
                parameter.grad = None
        elif self._clip == "value":
            torch._foreach_clamp_min_(gradients, -self._clip_at)
            torch._foreach_clamp_max_(gradients, self._clip_at)
        elif self._clip == "norm":
            factor = (self._clip_at / (norm + 1e-6)).clamp(max=1)
            torch._foreach_mul_(gradients, factor.to(gradients[0].device))  # offloaded ones are on the CPU

    def optimizer_state(self) -> dict[str, Tensor]:
        """Copies of Adam's moments on the CPU, `KEY/PARAMETER`, and `step`; empty before the first step."""
        if not any(self.optimizer.state.values()):
            return {}
        # DeepSpeed's FusedAdam counts, as a Python number, in the last parameter of each group alone.
        steps = [torch.as_tensor(own["step"], dtype=torch.float32) for own in self.optimizer.state.values() if own]
        state = {"step": torch.stack(steps).max().cpu()}
        if self._zero_stage in LINKED_STAGES:
            self._link_partitions()
        for key in STATE_KEYS:
            moments = self._moments(key)
            state |= {f"{key}/{name}": moments[name] for name in self._parameters}
        return state

    def _moments(self, key: str) -> dict[str, Tensor]:
        """A moment of each trained parameter, as copies on the CPU."""
        if self._divided is not None:
            moments = self._divided.moment(list(self._parameters.values()), key, capacity=GATHERED_ELEMENTS)
            return dict(zip(self._parameters, moments, strict=True))
        if self._zero_stage > 0:
            return dict(zip(self._parameters, gather_moment(list(self._parameters.values()), key), strict=True))
        own: dict[str, Tensor] = {}
        for weights in self.system.weights:
            parts = weights.parts(self.optimizer.state[weights.whole][key].cpu())
            own |= {name: part.clone() for name, part in zip(weights.parameters, parts, strict=True)}
        return own

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Take over `optimizer_state`, written at any stage and number of ranks."""
        if not state:
            return
        if self._zero_stage > 0:
            self._load_partitions(state)
            return
        for weights in self.system.weights:
            moments = {
                key: [state[f"{key}/{name}"].to(self.device, copy=True) for name in weights.parameters]
                for key in STATE_KEYS
            }
            self.optimizer.state[weights.whole] = {
                "step": self._step_count(state, self.device),
                **{key: weights.joined(parts) for key, parts in moments.items()},
            }

    def _step_count(self, state: dict[str, Tensor], device: torch.device) -> Tensor | int:
        """The number of updates in the optimizer's own form: a tensor of each parameter, which torch's fused Adam wants
        on the parameter's device, or FusedAdam's Python number."""
        if not isinstance(self.optimizer, torch.optim.Adam):
            return int(state["step"])
        return state["step"].to(device if self.optimizer.defaults["fused"] else "cpu", copy=True)

    def _load_partitions(self, state: dict[str, Tensor]) -> None:
        """Give each flat partition an empty state, let DeepSpeed link the parameters to it, fill it by the links."""
        flats = [flat for group in self.optimizer.param_groups for flat in group["params"]]
        for flat in flats if self._divided is None else self._divided.flat_parameters():
            self.optimizer.state[flat] = {
                "step": self._step_count(state, flat.device),
                **{key: torch.zeros_like(flat) for key in STATE_KEYS},
            }
        if self._divided is None:
            self._link_partitions()
        for name, parameter in self._parameters.items():
            for key in STATE_KEYS:
                whole = state[f"{key}/{name}"]
                if self._divided is None:
                    safe_set_full_optimizer_state(parameter, whole.to(self.device), key)
                else:
                    self._divided.load_moment(parameter, key, whole)

    def _link_partitions(self) -> None:
        """Link the parameters to their parts of the flat state. DeepSpeed does so once, after the first group's first
        update, when other groups (or a first step that was skipped) have no state yet."""
        self._engine.optimizer._hp_optimizer_states_linked = False
        self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take over the system's weights, and ZeRO's own float32 copy of them."""
        if self._divided is not None:
            self._divided.load(state)
            return
        self.system.load_state_dict(state)
        if self._zero_stage > 0:
            self._engine.optimizer.refresh_fp32_params()

    def weights(self) -> dict[str, Tensor]:
        """Copies on the CPU of the system's weights and buffers, on the first rank; the others get none."""
        if self._divided is not None:
            return self._divided.state(capacity=GATHERED_ELEMENTS)
        return model_state(self.system) if self.rank == 0 else {}

    def whole_weights(self) -> AbstractContextManager[None]:
        """Every rank has all weights inside the block."""
        return nullcontext() if self._divided is None else self._divided.whole()


def _applies(found: list[float]) -> bool:
    """Whether a step with these numbers may be applied: loss and gradient norm are finite."""
    return math.isfinite(found[0]) and math.isfinite(found[-1])
