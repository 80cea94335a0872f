"""`dmd submit` sends the variables of the trackers that its command asks for, and no key."""

from pathlib import Path

import pytest

from cluster.jobs.job_commands import JOB_COMMANDS
from cluster.jobs.submit import public_variables, runtime_environment
from dmd.training.logging.trackers.variables import tracker_variables

DATA = ("--data", "/nfs/s")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "arguments", "trackers"),
    [
        ("train", [*DATA, "--run", "/nfs/r", "train.trackers=[wandb]"], ["wandb"]),
        ("train", [*DATA, "--run", "/nfs/r"], []),
        ("experiment", [*DATA, "--out", "/nfs/o", "--config", "mine.yaml"], ["mlflow"]),
        ("experiment", [*DATA, "--out", "/nfs/o", "--config", "/nfs/no.yaml", "train.trackers=[wandb]"], ["wandb"]),
        ("shard", ["/nfs/f.pkl", "/nfs/s"], []),
    ],
)
def test_trackers_of_a_command_line(command, arguments, trackers, tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {trackers: [mlflow]}\n")
    assert list(JOB_COMMANDS[command].trackers(tmp_path, arguments)) == trackers


def test_keys_are_named_and_not_sent(capsys):
    given = {
        "WANDB_PROJECT": "mine",
        "WANDB_API_KEY": "k" * 40,
        "WANDB_RUN_ID": "one",
        "MLFLOW_TRACKING_URI": "http://user:secret@tracker:5000",
        "HOME": "/root",
    }
    variables = public_variables(tracker_variables(["wandb"], given))
    assert variables == {"WANDB_PROJECT": "mine"}
    said = capsys.readouterr().err
    assert "not sent, since Ray's job list is open to everybody: WANDB_API_KEY, MLFLOW_TRACKING_URI; set them" in said
    assert runtime_environment(ROOT, [], variables, pinned=False)["env_vars"]["WANDB_PROJECT"] == "mine"
