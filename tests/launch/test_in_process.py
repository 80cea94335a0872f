"""`dmd.train`: the run of the launcher's rank, in the caller's process, which is as it was afterwards."""

import os
import re
import signal
import sys
import threading
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tqdm import tqdm

import dmd
from data_shards.sole_writer import DirectoryInUse, sole_writer
from dmd.checkpoint.format import checkpoint_name
from dmd.config import load_config
from dmd.distributed.errors import StorageFailed
from dmd.training.in_process import to_config
from dmd.training.logging.trackers.processes import Senders
from dmd.training.outcome import Outcome
from tests.support.ranks import TINY, assert_bitwise, finish

CONFIG = load_config(None, TINY)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As the launcher's ranks of these tests, and nothing that a user would have to set."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    yield
    torch.set_num_threads(before)


pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def unchanged(interruptible):
    """The process afterwards is as it was before, in what can be read of it: not the thresholds of malloc."""
    state = process_state()
    yield
    for before, after in zip(state, process_state(), strict=True):
        assert after == before


def process_state():
    return (
        {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        torch.get_num_threads(),
        torch.random.get_rng_state().tolist(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        signal.getsignal(signal.SIGINT),
        sys.excepthook,
        dist.is_initialized(),
    )


class Watcher(dmd.Callback):
    """Notes what it is told, and does something at a step or an epoch."""

    def __init__(self, at: int = -1, act=lambda: None, *, epoch: int = -1):
        self.steps, self.epochs = [], []
        self.at, self.epoch, self.act = at, epoch, act

    def on_step(self, report):
        self.steps.append(report)
        if report.step == self.at:
            self.act()

    def on_epoch(self, report):
        self.epochs.append(report)
        if report.epoch == self.epoch:
            self.act()


def with_steps(steps: int) -> object:
    return load_config(None, [*TINY, f"train.max_steps={steps}"])


def stop() -> None:
    raise dmd.StopTraining


def raise_mistake() -> None:
    raise KeyError("a mistake in a callback")


@pytest.mark.multiproc
def test_a_run_goes_on_from_call_to_command_and_back_bitwise(shards, reference, tmp_path, unchanged):
    run = tmp_path / "run"
    assert dmd.train(with_steps(3), shards, run).step == 3
    finish(shards, run, "train.max_steps=7")
    outcome = dmd.train(CONFIG, dmd.Dataset.from_shards(shards), str(run))
    assert (outcome.first_step, outcome.step, outcome.epoch) == (7, 10, 2)
    assert_bitwise(run, reference())
    with torch.random.fork_rng():  # a model that is built draws numbers
        assert dmd.evaluate(run)["fused"]["mae"] == pytest.approx(outcome.best_loss, rel=1e-6)


@pytest.mark.multiproc
def test_errors_and_interrupts_leave_a_checkpoint_and_the_process_as_it_was(
    shards, reference, tmp_path, unchanged, capfd
):
    """Of one run: a callback that fails inside an epoch, one at its end, Ctrl-C, a stop by a callback, the end."""
    run, threads = tmp_path / "run", set(threading.enumerate())
    failing = Watcher(2, raise_mistake)
    later = Watcher()
    with pytest.raises(KeyError) as raised:
        dmd.train(CONFIG, shards, run, callbacks=[failing, later])
    assert "raise_mistake" in "".join(traceback.format_tb(raised.tb))
    assert [report.step for report in failing.steps] == [1, 2]
    assert [report.step for report in later.steps] == [1]  # those behind a failing one are not called
    with pytest.raises(KeyError):
        dmd.train(CONFIG, shards, run, callbacks=[Watcher(epoch=1, act=raise_mistake)])
    interrupted = Watcher(7, lambda: signal.raise_signal(signal.SIGINT))
    outcome = dmd.train(CONFIG, shards, run, callbacks=[interrupted])
    assert (outcome.first_step, outcome.stopped) == (5, True)
    assert "Ctrl-C: stopping after a checkpoint; a second one ends at once" in capfd.readouterr().err
    outcome = dmd.train(CONFIG, shards, run, callbacks=[Watcher(9, stop)])
    assert (outcome.first_step, outcome.step, outcome.stopped) == (interrupted.steps[-1].step, 9, True)
    watcher = Watcher()
    assert not dmd.train(CONFIG, shards, run, callbacks=[watcher]).stopped
    assert_bitwise(run, reference())
    (step,), (epoch,) = watcher.steps, watcher.epochs
    assert (step.epoch, step.step_in_epoch, step.steps_per_epoch, step.applied) == (1, 5, 5, True)
    assert step.loss == step.values["total"]
    assert (epoch.epoch, epoch.step) == (2, 10)
    assert set(threading.enumerate()) - threads <= {tqdm.monitor}


def test_a_second_interrupt_ends_at_once_and_lets_go_of_the_run(shards, tmp_path, unchanged, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    run, patient = tmp_path / "run", []

    def interrupted(senders: Senders, *, at_once: bool = False) -> bool:
        patient.append(not at_once)
        raise KeyboardInterrupt

    monkeypatch.setattr(Senders, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dmd.train(CONFIG, shards, run, callbacks=[_Method(twice)])
    assert patient == [False]
    with sole_writer(run):
        pass


def test_an_interrupt_before_the_training_begins_is_one(shards, tmp_path, unchanged):
    class AtTheStart:
        """A callback that is looked at before the first step."""

        @property
        def on_step(self):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        dmd.train(CONFIG, shards, tmp_path / "run", callbacks=[AtTheStart()])
    with sole_writer(tmp_path / "run"):
        pass


def test_what_a_callback_raised_outlives_a_failure_of_the_storage(shards, tmp_path, unchanged):
    run = tmp_path / "run"

    def fail() -> None:
        (run / "checkpoints").write_text("a file")
        raise_mistake()

    with pytest.raises(KeyError) as raised:
        dmd.train(CONFIG, shards, run, callbacks=[Watcher(2, fail)])
    assert isinstance(raised.value.__context__, StorageFailed)


class _Method:
    """An object that is no `Callback` and has one of its methods."""

    def __init__(self, act):
        self.act = act

    def on_step(self, report):
        self.act()


def test_mistakes_are_those_of_the_command(shards, tmp_path, unchanged):
    run = tmp_path / "run"
    for arguments, message in (
        (("mosi-aligne", shards, run), r"unknown preset 'mosi-aligne' \(did you mean mosi-aligned"),
        ((CONFIG, tmp_path, run), "index"),
        ((CONFIG, shards, shards / "index.parquet"), "is a file; give another --run"),
        ((CONFIG, shards, shards), r"holds shards \(index.parquet\); give another --run"),
        ((CONFIG, shards, ""), "run is ''; give the directory of the run"),
        (({"train.epoch": 1}, shards, run), r"unknown config key 'train.epoch' \(did you mean train.epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            dmd.train(*arguments)
    with pytest.raises(ValueError, match="--resume is 'always'; it must be auto, never, or the step"):
        dmd.train(CONFIG, shards, run, resume="always")
    with pytest.raises(ValueError, match=r"has neither on_step\(report\) nor on_epoch\(report\)"):
        dmd.train(CONFIG, shards, run, callbacks=[print])
    with pytest.raises(ValueError, match=r"callbacks is .*; give a list, such as \[Curve\(\)\]"):
        dmd.train(CONFIG, shards, run, callbacks=Watcher())
    with pytest.raises(ValueError, match=r"callbacks has the class Watcher; give an object of it: Watcher\(\)"):
        dmd.train(CONFIG, shards, run, callbacks=[Watcher])
    outcome = Outcome(step=1, epoch=1, first_step=0, best_step=1, best_loss=1.0, stopped=False, finished_before=False)
    with pytest.raises(ValueError, match=r"run_or_model is Outcome.*; give the directory of the run"):
        dmd.evaluate(outcome)
    assert not run.exists()
    with sole_writer(run), pytest.raises(DirectoryInUse):
        dmd.train(CONFIG, shards, run)


@pytest.mark.slow
def test_the_page_about_python_runs_as_it_stands(tmp_path, monkeypatch, unchanged):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(block, "docs/api.md", "exec"), names)
    assert min(names["curve"].losses) == names["outcome"].best_loss
    assert names["features"].fused.shape == (32, 180)


def test_a_process_group_of_the_caller_stays(shards, tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="this process is in a process group already"):
            dmd.train(CONFIG, shards, tmp_path / "run")
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_a_process_trains_one_model_at_a_time(shards, tmp_path, unchanged):
    """A call in a callback and one in another thread meanwhile are refused, and the training goes on."""
    refused: list[str] = []

    def train_another() -> None:
        with pytest.raises(ValueError, match="this process trains already") as raised:
            dmd.train(CONFIG, shards, tmp_path / "other")
        refused.append(str(raised.value))

    def train_others() -> None:
        train_another()
        thread = threading.Thread(target=train_another)
        thread.start()
        thread.join()

    assert dmd.train(with_steps(2), shards, tmp_path / "run", callbacks=[Watcher(1, train_others)]).step == 2
    assert len(refused) == 2
    assert not (tmp_path / "other").exists()


def test_a_callback_may_change_the_working_directory(shards, tmp_path, unchanged, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    outcome = dmd.train(with_steps(2), shards, "run", callbacks=[Watcher(1, lambda: os.chdir(elsewhere))])
    assert (tmp_path / "run" / "checkpoints" / checkpoint_name(outcome.best_step)).is_dir()
    assert not list(elsewhere.iterdir())


def test_configs_of_every_form(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("train: {epochs: 3}\nmodel: {dim: 20}\n")
    wanted = load_config(None, ["train.epochs=3", "model.dim=20"])
    assert to_config(wanted) is wanted
    assert to_config(file) == to_config(str(file)) == wanted
    assert to_config({"train.epochs": 3, "model": {"dim": 20}}) == wanted
    assert to_config("mosi-aligned") == load_config("mosi-aligned")
    for values, message in (
        ({"train.epochs": 3, "train": {"epochs": 3}}, "config key 'train.epochs' is given twice"),
        (None, "config is None; give the name of a preset, a YAML or JSON file"),
        ({1: 2}, "config key 1 is no text; give keys such as 'train.epochs'"),
        ({"epochs": 3}, r"unknown config key 'epochs' \(did you mean train.epochs"),
        ({"train": 3, "train.epochs": 3}, "config section 'train' is 3, not a mapping"),
        ({"train.epochs": "many"}, "train.epochs is 'many'"),
    ):
        with pytest.raises(ValueError, match=message):
            to_config(values)
