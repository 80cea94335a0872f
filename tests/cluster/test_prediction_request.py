"""What an actor of a prediction claims, and how many fit, without a cluster."""

import pytest
import torch

from cluster.jobs.job_commands import JOB_COMMANDS
from cluster.parsers import predict_parser
from cluster.prediction.evaluate import decode_shares, encode_shares
from cluster.prediction.request import pool_request
from cluster.ray_runtime.resources import slots
from dmd.commands import parts_order
from dmd.evaluation.evaluate import Share
from tests.support.imports import ROOT


def request(*options: str):
    parsed = predict_parser().parse_args(["run", "shards", "--out", "out/", *options])
    return pool_request(parsed)


@pytest.mark.parametrize(
    "options, with_gpus, without",
    [
        ([], {"CPU": 1, "GPU": 1}, {"CPU": 1}),
        (["--gpus-per-actor", "0.5", "--cpus-per-actor", "2"], {"CPU": 2, "GPU": 0.5}, {"CPU": 2, "GPU": 0.5}),
        (["--gpus-per-actor", "0"], {"CPU": 1}, {"CPU": 1}),
    ],
)
def test_an_actor_takes_a_gpu_where_there_is_one(options, with_gpus, without):
    found = request("--address", "auto", *options)
    assert (found.claim(has_gpus=True), found.claim(has_gpus=False)) == (with_gpus, without)


def test_without_an_address_there_is_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert request() is None
    assert request("--address", "local").address is None
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert request("--address", "local").claim(has_gpus=True) == {"CPU": 1}
    with pytest.raises(ValueError, match="keeps actors of this machine on the CPU; unset one"):
        request("--address", "local", "--gpus-per-actor", "1")


@pytest.mark.parametrize("option", [["--actors", "2"], ["--patience", "9"], ["--verbose"]])
def test_an_option_of_a_cluster_without_one(option):
    with pytest.raises(ValueError, match=f"{option[0]} is for actors on a Ray cluster; name one with --address"):
        request(*option)


@pytest.mark.parametrize("option, step", [(["--step", "7"], 7), (["--best"], "best"), (["--last"], "last"), ([], None)])
def test_a_job_predicts_and_evaluates_with_the_checkpoint_that_is_asked_for(option, step):
    lines = {"predict": ["/nfs/r", "/nfs/s", "--out", "/nfs/o/", *option], "evaluate": ["/nfs/r", *option]}
    for name, line in lines.items():
        command = JOB_COMMANDS[name]
        assert command.uploads(ROOT, line) == []
        assert command.parse([*command.added, *line]).step == step
    assert parts_order(JOB_COMMANDS["predict"].parse(lines["predict"])).step == step


def test_a_job_takes_the_runs_of_an_ensemble():
    """Which are not on this machine."""
    predict, evaluate = JOB_COMMANDS["predict"], JOB_COMMANDS["evaluate"]
    line = ["/nfs/a", "/nfs/b", "/nfs/shards", "--out", "/nfs/o/"]
    assert predict.uploads(ROOT, line) == evaluate.uploads(ROOT, ["/nfs/a", "/nfs/b"]) == []
    order = parts_order(predict.parse(line))
    assert [str(model) for model in order.models] == ["/nfs/a", "/nfs/b"]
    assert str(order.data) == "/nfs/shards"
    with pytest.raises(ValueError, match="RUN"):
        predict.uploads(ROOT, ["/nfs/a", "b", *line[2:]])


def test_actors_that_fit():
    nodes = [{"CPU": 4, "GPU": 2}, {"CPU": 1, "GPU": 2}, {"CPU": 8}]
    assert slots({"CPU": 1.0}, nodes) == 13
    assert slots({"CPU": 1.0, "GPU": 1.0}, nodes) == 3
    assert slots({"CPU": 2.0, "GPU": 0.5}, nodes) == 2


def test_shares_of_members_have_the_same_digits_on_the_other_side():
    """Of members with other heads, too."""
    rows = torch.tensor([3, 4, -1])
    one = torch.tensor([[0.1, -2e-38], [float("inf"), 3.0], [0.0, 1e-3]])
    sent: list[Share] = [(rows, one), (rows, torch.arange(9.0).view(3, 3))]
    number, found = decode_shares(encode_shares(7, sent), columns=[2, 3])
    assert number == 7
    for (there, values), (_, wanted) in zip(found, sent, strict=True):
        assert there.equal(rows)
        assert values.numpy().tobytes() == wanted.numpy().tobytes()
