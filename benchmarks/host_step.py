"""Host time of a whole training step, by its parts: with the pass kernel by kernel, and as a CUDA graph.

    python -m benchmarks.host_step --out OUT.csv                 on a GPU: both forms
    DS_ACCELERATOR=cpu python -m benchmarks.host_step --device cpu --forms graph

The real engine (DeepSpeed, fused Adam, one rank), the real pass and log; few samples and short sequences, since the
host's work depends on neither. `pass` is from the batch to its loss terms, `backward` ends with the reduction,
`update` is norm, clip and Adam, `log` a line of the log, `rest` the copy of the batch, dropout keys and weighted sums.
Before each update the benchmark waits for the device, and that time is not counted; the update itself has to wait for
the norm. Milliseconds: median and least of the steps.

Without a GPU nothing can be captured. What a graph replays is left out there, and all around it is run: copies to its
inputs, torch's autograd function (`torch.cuda.make_graphed_callables`) in a copy whose replays do nothing. torch's
operations compute on the CPU, few and small ones with `model.dim=10`, and `operations` counts them: on a GPU each is a
launch, which costs more than that. The time is the CPU time of this thread there, which a busy machine stretches less.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.offline_driver import offline  # before a kernel is defined

# isort: split
import torch
from torch import Tensor

from benchmarks.counting import Counter
from benchmarks.host_time import CAPABILITY, make_system
from benchmarks.one_rank import join_alone
from benchmarks.replayed_nowhere import ReplayedNowhere
from benchmarks.step_implementations import synchronise
from benchmarks.step_sides import LENGTHS
from benchmarks.tables import Table, commit, processor
from dmd.system.pass_terms import PassTerms
from dmd.training.logging.logbook import Logbook
from dmd.training.logging.recorder import Recorder
from dmd.training.step import make_plan, train_step
from launch.trainer.engine import DeepSpeedEngine

FORMS = ("eager", "graph")
PARTS = ("pass", "backward", "update", "log", "rest", "step")
SMALL = ("model.dim=10",)
"""On a CPU: as many tensors as the preset has, with little in them."""
WARMUPS = 4


class TimedEngine(DeepSpeedEngine):
    """Adds up the time of its parts, without that in which the device has yet to finish the backward pass."""

    clock: Callable[[], float]
    times: dict[str, float]

    def _timed(self, part: str, run: Callable[..., Any], *arguments: Any) -> Any:
        began = self.clock()
        result = run(*arguments)
        self.times[part] = self.times.get(part, 0.0) + self.clock() - began
        return result

    def forward(self, *arguments: object) -> PassTerms:
        """The engine's."""
        return self._timed("pass", super().forward, *arguments)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """The engine's."""
        self._timed("backward", super().backward, loss)

    def step(self, numbers: Tensor) -> tuple[list[float], bool]:
        """The engine's, after waiting for the device."""
        self._timed("waited", synchronise, self.device)
        return self._timed("update", super().step, numbers)  # type: ignore[no-any-return]


def make_engine(preset: str, form: str, device: torch.device) -> tuple[TimedEngine, Any, Any, Any]:
    """A preset's engine, its config, plan and a batch of a step."""
    if device.type == "cpu":
        system, config, batch = make_system(preset, SMALL)
        system._graph = ReplayedNowhere(system.terms, system, lambda: system.weights) if form == "graph" else None
    else:
        graph = "auto" if form == "graph" else "'off'"  # a bare off is YAML's false
        overrides = (f"train.cuda_graph={graph}", "train.ghost_batches_per_forward=10")
        system, config, batch = make_system(preset, overrides, device=device)
        batch = batch.pin_memory()
    system.train()
    plan = make_plan(config, batch.mask.numel(), 1)
    engine = TimedEngine(system, config, plan, device, fused_adam=True)
    engine.clock = time.thread_time if device.type == "cpu" else time.perf_counter
    return engine, config, plan, batch


def measure(preset: str, form: str, device: torch.device, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of a form."""
    engine, config, plan, batch = make_engine(preset, form, device)
    log = Logbook(folder, lambda resumed: Recorder(folder, config={}, info={}, resume_step=resumed), None)
    found: list[dict[str, float]] = []
    counter = Counter()
    for number in range(WARMUPS + steps + 1):
        last = number == WARMUPS + steps
        engine.times = {}
        began = engine.clock()
        with counter if last and device.type == "cpu" else contextlib.nullcontext():
            result = train_step(engine, [batch], config, plan, step=number, step_in_epoch=0)
            engine._timed("log", log.step, number + 1, result.values, [1e-4], 0.0)
        whole = engine.clock() - began - engine.times.pop("waited")
        # the first pass, by which the keys are known, computes nothing where there is no device
        assert result.applied or number == 0, "the update was skipped: loss or gradient is not finite"
        engine.times |= {"rest": whole - sum(engine.times.values()), "step": whole}
        found.append(engine.times)
    log.close(None)
    about = {
        "preset": preset,
        "form": form if device.type == "cuda" else f"{form}, replays left out",
        "tensors": len(engine._parameters),
        "operations": counter.names.total() or "",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "torch": torch.__version__,
        "commit": commit(),
    }
    rows = []
    for part in PARTS:
        times = [1e3 * of[part] for of in found[WARMUPS:-1]]
        figures = {"median_ms": round(statistics.median(times), 3), "least_ms": round(min(times), 3)}
        rows.append({"part": part, **figures, **about})
    return rows


def main() -> None:
    """Measure, print and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=LENGTHS, default="mosi-aligned")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device == "cpu" and options.forms != ["graph"]:
        parser.error("--device cpu: only --forms graph; the other one is benchmarks.host_time")
    torch.set_num_threads(1)
    device = join_alone()
    assert device.type == options.device, (device, "DS_ACCELERATOR")
    table, summary = Table(options.out), []
    with tempfile.TemporaryDirectory() as folder:
        for form in options.forms:  # a capture that fails ends the program, when the other is there
            driver = offline(CAPABILITY, noting=False) if device.type == "cpu" else contextlib.nullcontext()
            with driver:
                rows = measure(options.preset, form, device, options.steps, Path(folder) / form)
            for row in rows:
                table.add(row)
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            summary.append(f"{form}: {rows[-1]['median_ms']} ms of the host a step")
    print("; ".join(summary))


if __name__ == "__main__":
    main()
