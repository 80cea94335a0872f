"""Which failures of ranks Ray Train starts them again after, and what a training that it gives up ends with."""

import pickle

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cluster.experiments.training import RAY_NOTES, remove_notes
from cluster.parsers import train_parser
from cluster.ray_runtime.rank_endings import RankEnded, RestartPolicy, ending_of_failure
from cluster.request import train_request
from data_shards.durable import Unreadable
from dmd.training.logging.provenance import RESTART
from launch.arguments import parse_train
from launch.supervision.ending import Ending

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE
LOST, STORAGE, USER_ERROR, FAILED = 69, 74, 2, 1


def failed(failures: dict[int, Exception]) -> WorkerGroupError:
    return WorkerGroupError("what ranks said", failures)


def ended(code: int, message: str, rank: int) -> RankEnded:
    return RankEnded(Ending(code=code, message=message, origin=rank))


def died() -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("a health check failed", failure=ActorDiedError())


def test_a_bug_of_one_rank_decides_over_those_that_lost_it():
    error = failed({0: ended(LOST, "rank 0 lost the others", 0), 1: ended(FAILED, "rank 1 failed", 1)})
    assert ending_of_failure(error) == Ending(code=FAILED, message="rank 1 failed", origin=1)
    assert RestartPolicy(FailureConfig(max_failures=5)).make_decision(error) is RAISE


def test_a_rank_that_died_is_started_again_within_the_limit(monkeypatch, capsys):
    monkeypatch.setenv(RESTART, "")
    policy = RestartPolicy(FailureConfig(max_failures=2))
    error = failed({1: died()})
    assert [policy.make_decision(error) for _ in range(3)] == [RETRY, RETRY, RAISE]
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[2].partition(":")[0] for line in printed] == [" restart 1 of 2", " restart 2 of 2"]
    assert "rank 1 died or cannot be reached (The actor died" in printed[0]
    ending = ending_of_failure(error)
    assert (ending.code, ending.origin) == (LOST, 1)
    assert ending.message.endswith("; the same command continues")


def of_a_rank(error: Exception) -> Exception:
    """What `ray.get` raises of an actor's method that has raised this error."""
    told = f"\x1b[36mray::Worker.execute()\x1b[39m (pid=1, ip=10.0.0.1)\n  File ...\n{type(error).__name__}: {error}"
    raised = RayTaskError("execute", told, error, proctitle="ray::Worker", pid=1, ip="10.0.0.1").as_instanceof_cause()
    assert isinstance(raised, type(error))
    return raised


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (of_a_rank(ValueError("node 10.0.0.1 offers a GPU to Ray")), USER_ERROR, "node 10.0.0.1 offers a GPU to Ray"),
        (ValueError("run/checkpoints holds no step 4"), USER_ERROR, "run/checkpoints holds no step 4"),
        (
            Unreadable("run/checkpoints cannot be read"),
            STORAGE,
            "run/checkpoints cannot be read; the same command continues when the storage works again",
        ),
        (of_a_rank(RuntimeError("no port\nis free")), FAILED, "Ray Train failed: no port"),
        (RuntimeError(), FAILED, "Ray Train failed: RuntimeError"),
    ],
)
def test_an_error_before_the_ranks_train_keeps_its_reason_and_exit_code(failure, code, message):
    error = cloudpickle.loads(cloudpickle.dumps(ControllerError(failure)))  # as it comes to the command
    assert ending_of_failure(error) == Ending(code=code, message=message)
    assert RestartPolicy(FailureConfig(max_failures=5)).make_decision(ControllerError(failure)) is RAISE


@pytest.mark.parametrize(
    "error",
    [
        ControllerError(WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")),
        ControllerError(ActorDiedError()),
        failed({0: WorkerHealthCheckFailedError("a health check failed", failure=RayActorError(preempted=True))}),
    ],
    ids=["while ranks start", "when they are told to train", "on a node that is drained"],
)
def test_every_loss_of_ranks_is_one_of_the_restarts(error, monkeypatch, capsys):
    monkeypatch.setenv(RESTART, "")
    policy = RestartPolicy(FailureConfig(max_failures=3))
    losses = [failed({1: died()}), error, error, error]
    assert [policy.make_decision(loss) for loss in losses] == [RETRY, RETRY, RETRY, RAISE]
    assert [line[:25] for line in capsys.readouterr().out.splitlines()] == [
        f"dmd train: restart {number} of 3" for number in (1, 2, 3)
    ]
    ending = ending_of_failure(error)
    assert ending.code == LOST
    assert "rank" in ending.message
    assert ending.message.endswith("; the same command continues")


def test_ranks_that_do_not_start_count_as_no_restart():
    """Ray Train asks for them again; the command's patience ends that."""
    policy = RestartPolicy(FailureConfig(max_failures=0))
    waiting = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert [policy.make_decision(waiting) for _ in range(3)] == [RETRY] * 3
    assert policy.make_decision(failed({0: died()})) is RAISE


def test_an_ending_travels_from_a_rank_to_the_command():
    error = pickle.loads(pickle.dumps(ended(USER_ERROR, "model.dim is 7", 3)))
    assert error.ending == Ending(code=USER_ERROR, message="model.dim is 7", origin=3)
    assert str(error) == "model.dim is 7"


CPUS, GPUS = [{"CPU": 4.0}, {"CPU": 2.0}], [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("options", "nodes", "expected"),
    [
        ([], CPUS, (1, 1, 0)),
        ([], GPUS, (4, 4, 1)),
        (["--ranks", "3"], GPUS, (3, 3, 1)),
        (["--ranks", "6", "--restarts", "1", "--min-ranks", "2"], CPUS, (2, 6, 0)),
        (["--gpus-per-rank", "0"], GPUS, (1, 1, 0)),
        (["--cpus-per-rank", "8"], GPUS, (2, 2, 1)),
        (["--cpus-per-rank", "9"], GPUS, (1, 1, 1)),
        (["--gpus-per-rank", "2"], [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 3.0}], (2, 2, 2)),
    ],
)
def test_the_size_of_a_training(options, nodes, expected):
    line = ["--address", "auto", "--data", "s", "--run", "r", *options]
    size = train_request(parse_train(train_parser(), line)).size(nodes)
    assert (size.min_ranks, size.max_ranks, size.gpus_per_rank) == expected


def test_a_rank_without_a_cpu():
    line = ["--address", "auto", "--data", "s", "--run", "r", "--cpus-per-rank", "0"]
    with pytest.raises(ValueError, match=r"CPUs per rank: 0\.0; more than 0"):
        train_request(parse_train(train_parser(), line)).size(GPUS)


def test_a_command_removes_no_notes_of_another(tmp_path):
    for name in ("train-1", "train-2"):
        (tmp_path / RAY_NOTES / name / "of-ray").mkdir(parents=True)
    remove_notes(tmp_path, "train-3")
    remove_notes(tmp_path, "train-1")
    assert [path.name for path in (tmp_path / RAY_NOTES).iterdir()] == ["train-2"]
    remove_notes(tmp_path, "train-2")
    remove_notes(tmp_path, "train-2")
    assert list(tmp_path.iterdir()) == []
