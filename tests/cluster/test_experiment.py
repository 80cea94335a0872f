"""One experiment on a real Ray cluster of two CPUs: its driver is killed, the same command finishes it, as a job.

ASHA stops trials of a grid over the learning rate. The test labels of the shards have the wrong sign, so the trial
that validation chooses is not the one that the test split would choose.
"""

import csv
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from ray.train import RunConfig, ScalingConfig

from cluster.jobs.submit import UPLOADED
from cluster.ray_runtime.access import agree_on_token, send_token
from cluster.ray_runtime.orphans import has_ended
from cluster.ray_runtime.process_group import RankEnvironment
from cluster.ray_runtime.trial import Trainer
from dmd.checkpoint.standing import standing
from dmd.config.loading import load_config
from dmd.evaluation.trained_run import evaluate_run
from dmd.exit_codes import LOST, STOPPED
from launch.network.ports import free_port
from tests.support.clusters import (
    TINY,
    Node,
    assert_stopped,
    dmd,
    finish,
    lines,
    make_shards,
    records,
    wait_for,
)
from tests.support.commands import command

pytestmark = [pytest.mark.ray, pytest.mark.multiproc, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EPOCHS = 6
SPACE = "train.learning_rate: {choice: [1.0e-2, 1.0e-6, 2.0e-6]}\n"


@dataclass(frozen=True)
class Cluster:
    """A head node of two CPUs."""

    node: Node
    address: str
    dashboard: str
    metrics: str
    """Where Ray's Prometheus exporter listens."""
    temp: Path

    def free(self) -> dict[str, float]:
        """CPUs that nobody holds, and placement groups that still stand."""
        groups = ray.util.placement_group_table().values()
        standing = sum(group["state"] != "REMOVED" for group in groups)
        return {"CPU": ray.available_resources().get("CPU", 0), "groups": standing}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    temp = tmp_path_factory.mktemp("r") / "r"  # short: Ray's sockets have long names
    port, dashboard, metrics = free_port(), free_port(), free_port()
    node = Node(
        temp,
        "--head",
        "--port",
        str(port),
        "--dashboard-port",
        str(dashboard),
        "--dashboard-host",
        "127.0.0.1",
        "--num-cpus",
        "2",
        "--temp-dir",
        str(temp),
        "--node-ip-address",
        "127.0.0.1",
        "--metrics-export-port",
        str(metrics),
        RAY_metrics_report_interval_ms="2000",
    )
    try:
        log = temp.parent / "r.log"
        wait_for(lambda: "Ray runtime started" in log.read_text(), "the head node", 120)
        send_token()
        environment = {"CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cuda"}
        ray.init(f"127.0.0.1:{port}", log_to_driver=False, runtime_env={"env_vars": environment})
        del os.environ["RAY_AUTH_MODE"]  # of this process alone, not of the commands that it starts
        yield Cluster(
            node, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics", temp
        )
    finally:
        ray.shutdown()
        node.kill()


def job_folder(path: Path) -> Path:
    """A checkout with a large data folder, a virtual environment and runs in it."""
    path.mkdir()
    for name in UPLOADED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, path / name)
    for name in ("data", ".venv", "runs"):
        (path / name).mkdir()
        with open(path / name / "large.bin", "wb") as file:
            file.truncate(2**30)  # Ray refuses an upload of more than 500 MiB
    (path / "my.yaml").write_text(SPACE)
    return path


@dataclass(frozen=True)
class Story:
    """What happened to the experiment."""

    out: Path
    shards: Path
    at_kill: list[dict]
    """Records when the driver was killed."""
    free_after_kill: dict[str, float]
    free_at_end: dict[str, float]
    ranks_at_end: list[psutil.Process]
    output: str
    """Of the job that finished it."""


@pytest.fixture(scope="module")
def story(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("experiment")
    shards, out, log = make_shards(folder / "shards"), folder / "out", folder / "log"
    checkout = job_folder(folder / "checkout")
    search = ["--data", shards, "--out", out, "--search", "grid", "--reduction", "2", "--final-seeds", "1,2", *TINY]
    search += [f"train.epochs={EPOCHS}"]
    driver = dmd("tune", "--address", cluster.address, "--space", checkout / "my.yaml", *search, log=log)
    wait_for(lambda: driver.poll() is not None or sum(r["state"] != "running" for r in records(out)) >= 2, "two trials")
    assert driver.poll() is None, log.read_text()
    driver.kill()
    driver.wait()
    at_kill = records(out)
    wait_for(lambda: cluster.free() == {"CPU": 2, "groups": 0}, "the killed driver's resources")
    free_after_kill = cluster.free()
    job = ["submit", "--address", cluster.dashboard, "--working-dir", checkout, "--environment", "node", "--id", "tiny"]
    log = folder / "job.log"
    output = finish(dmd(*job, "tune", "--space", "my.yaml", *search, log=log), log)
    wait_for(lambda: cluster.free() == {"CPU": 2, "groups": 0}, "the resources of the experiment")
    wait_for(lambda: not cluster.node.ranks(), "the ranks to end")
    return Story(out, shards, at_kill, free_after_kill, cluster.free(), cluster.node.ranks(), output)


def sessions(run: Path) -> int:
    return len(json.loads((run / "run.json").read_text())["sessions"])


def test_the_same_command_finishes_the_rest_only(story):
    done = [record for record in story.at_kill if record["state"] in ("finished", "stopped")]
    assert len(done) >= 2
    for record in done:
        after = records(story.out)[record["number"]]
        assert {key: record[key] for key in ("state", "values", "stopped_after")} == {
            key: after[key] for key in ("state", "values", "stopped_after")
        }
        assert record["losses"] == after["losses"][: len(record["losses"])], "its run may have gone on for a moment"
        assert sessions(story.out / "trials" / f"{record['number']:04d}") == 1
    rows = list(csv.DictReader((story.out / "trials.csv").read_text().splitlines()))
    assert sorted(int(row["trial"]) for row in rows) == [0, 1, 2]
    assert {row["state"] for row in rows} <= {"finished", "stopped"}


def test_asha_stops_trials_and_resources_come_back(story):
    stopped = [record for record in records(story.out) if record["state"] == "stopped"]
    finished = [record for record in records(story.out) if record["state"] == "finished"]
    assert stopped
    assert all(record["stopped_after"] < EPOCHS for record in stopped)
    assert all(record["stopped_after"] <= record["losses"][-1][0] for record in stopped)
    assert finished
    assert all(record["losses"][-1][0] == EPOCHS for record in finished)
    assert story.free_after_kill == story.free_at_end == {"CPU": 2, "groups": 0}
    assert story.ranks_at_end == []


def test_every_record_ends_where_its_run_ends(story):
    for record in records(story.out):
        stands = standing(story.out / "trials" / f"{record['number']:04d}")
        assert stands is not None
        assert stands.best is not None
        assert record["losses"] == [[v.epoch, v.best_loss] for v in stands.validations]
        assert record["losses"][-1][1] == stands.best.loss
        logged = lines(story.out / "trials" / f"{record['number']:04d}", "best_valid")[-1]
        assert (logged["step"], logged["best_valid/loss"]) == (stands.best.step, stands.best.loss)


def test_the_best_trial_is_chosen_by_validation(story):
    """Even though the test split would choose another."""
    ordered = sorted(records(story.out), key=lambda record: record["losses"][-1][1])
    best = load_config(file=story.out / "best.yaml")
    assert best.train.learning_rate == ordered[0]["values"]["train.learning_rate"] == 1e-2
    maes = {}
    for record in (ordered[0], ordered[-1]):
        result = evaluate_run(story.out / "trials" / f"{record['number']:04d}", data=str(story.shards), split="test")
        maes[record["number"]] = result["metrics"]["fused"]["mae"]
    assert maes[ordered[0]["number"]] > maes[ordered[-1]["number"]]


def test_trials_cannot_read_the_test_split(story):
    for record in records(story.out):
        about = json.loads((story.out / "trials" / f"{record['number']:04d}" / "run.json").read_text())["info"]
        assert about["data"] == str(story.out / "shards")
        assert "test" not in about["counts"]


def test_final_seeds(story):
    best = min(records(story.out), key=lambda record: record["losses"][-1][1])
    rows = list(csv.DictReader((story.out / "final" / "results.csv").read_text().splitlines()))
    titles = ["1", "2", "mean", "std", "95 % +-", "ensemble of 2 seeds"]
    splits = ("test", "valid")
    assert [(row["split"], row["seed"]) for row in rows] == [(split, title) for split in splits for title in titles]
    values = [float(row["MAE"]) for row in rows]
    assert values[0] != values[1]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)
    assert values[4] == pytest.approx(12.7062 * values[3] / 2**0.5)
    result = json.loads((story.out / "final" / f"trial_{best['number']:04d}" / "seed_1" / "test.json").read_text())
    assert (result["split"], result["samples"]) == ("test", 20)
    for place, (split, file) in {5: ("test", "test.json"), 11: ("valid", "valid.json")}.items():
        of_seeds = json.loads((story.out / "final" / f"trial_{best['number']:04d}" / file).read_text())
        assert of_seeds["split"] == split
        assert of_seeds["metrics"]["fused"]["mae"] == values[place] <= values[place - 3], "MAE is convex"


def test_one_directory_per_trial_with_hparams(story):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = story.out / "trials" / "0000"
    events = EventAccumulator(str(run)).Reload()
    assert "valid/loss" in events.Tags()["scalars"]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    assert "_hparams_/experiment" not in events.PluginTagToContent("hparams"), "the search describes all"
    above = EventAccumulator(next(str(path) for path in run.parent.glob("*.search"))).Reload()
    assert list(above.PluginTagToContent("hparams")) == ["_hparams_/experiment"]


def test_submitted_job(cluster, story, tmp_path):
    """Through the dashboard's job server, token and all; what the directory holds beside the code stays there."""
    assert "best: trial 0" in story.output
    assert (story.out / "best.yaml").exists()
    uploads = list(cluster.temp.glob("session_latest/runtime_resources/working_dir_files/*"))
    (unpacked,) = [path for path in uploads if path.is_dir()]
    assert {path.name for path in unpacked.iterdir()} == {*UPLOADED, "my.yaml"}
    log = tmp_path / "log"
    assert "tiny SUCCEEDED" in finish(dmd("submit", "--address", cluster.dashboard, "status", "tiny", log=log), log)


def test_shards_predictions_evaluation_and_report_by_jobs(cluster, story, one_thread, tmp_path):
    """All at once; predictions and metrics are those of one process."""
    run, shards = story.out / "trials" / "0000", story.shards
    wanted = {
        "shard": ("--synthetic", tmp_path / "made", "--samples", "20"),
        "predict": (run, shards, "--split", "train", "--out", f"{tmp_path}/predicted/", "--actors", "1"),
        "evaluate": (run, "--split", "valid", "--json", tmp_path / "valid.json", "--actors", "1"),
        "report": (run, "--out", tmp_path / "report", "--projection", "pca"),
    }
    options = ["submit", "--address", cluster.dashboard, "--working-dir", ROOT, "--environment", "node"]
    jobs = {name: dmd(*options, name, *rest, log=tmp_path / f"{name}.log") for name, rest in wanted.items()}
    said = {name: finish(job, tmp_path / f"{name}.log") for name, job in jobs.items()}
    assert f"{tmp_path / 'made'}: synthetic, train 14, valid 2, test 4; 3 shards, generation" in said["shard"]
    assert (tmp_path / "made" / "index.parquet").exists()
    assert f"{tmp_path}/predicted: 70 predictions (train 70) in 1 part; checkpoint of step " in said["predict"]
    assert command("predict", run, shards, "--split", "train", "--out", tmp_path / "here.parquet") == 0
    there, here = (pq.read_table(tmp_path / name) for name in ("predicted", "here.parquet"))
    assert there.replace_schema_metadata().equals(here.replace_schema_metadata())
    result = evaluate_run(run, data=None, split="valid")
    assert f"valid split, 10 samples, checkpoint of step {result['step']}\n" in said["evaluate"]
    assert json.loads((tmp_path / "valid.json").read_text()) == result
    assert str(tmp_path / "report") in said["report"]
    assert list((tmp_path / "report").glob("*.html"))
    wait_for(lambda: cluster.free() == {"CPU": 2, "groups": 0}, "the actors of the jobs")


def test_a_rank_without_a_claim_sees_no_gpu(cluster, tmp_path):
    """Whatever its node has; Ray itself leaves CUDA_VISIBLE_DEVICES to a process without a claim."""

    def look(settings: dict[str, Any]) -> dict[str, str | None]:
        import torch.distributed as dist

        from launch.trainer.engine import join_process_group

        join_process_group()
        return {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "backend": dist.get_backend()}

    left_by_ray = ray.remote(num_cpus=0)(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert ray.get(left_by_ray.remote()) == "0,1"
    trainer = Trainer(
        look,
        train_loop_config={},
        backend_config=RankEnvironment(run=tmp_path),
        scaling_config=ScalingConfig(num_workers=1, use_gpu=False),
        run_config=RunConfig(name="look", storage_path=str(tmp_path)),
    )
    assert trainer.fit().return_value == {"visible": "", "backend": "gloo"}


def exported(cluster: Cluster) -> list[str]:
    """The lines of Ray's Prometheus exporter."""
    with urllib.request.urlopen(cluster.metrics, timeout=30) as answer:
        return answer.read().decode().splitlines()


def test_a_failed_job_and_a_stopped_one(cluster, tmp_path):
    folder, log = job_folder(tmp_path / "checkout"), tmp_path / "log"
    options = ["submit", "--address", cluster.dashboard, "--working-dir", folder, "--environment", "node"]
    bad = [*options, "tune", "--data", tmp_path / "none", "--out", tmp_path / "out", "--space", "my.yaml"]
    assert "not a set of shards" in finish(dmd(*bad, log=log), log, code=2)
    shards = make_shards(tmp_path / "shards")
    long = ["experiment", "--data", shards, "--out", tmp_path / "long", "--seeds", "1", *TINY, "train.epochs=5000"]
    assert "job long" in finish(dmd(*options, "--no-wait", "--id", "long", *long, log=log), log)
    run = tmp_path / "long" / "preset" / "seed_1" / "metrics.jsonl"
    wait_for(run.exists, "the job's training")
    wait_for(
        lambda: any(text.startswith("ray_dmd_epoch{") and str(run.parent) in text for text in exported(cluster)),
        "the training's epochs in Ray's exporter",
    )
    finish(dmd("submit", "--address", cluster.dashboard, "stop", "long", log=log), log)
    wait_for(lambda: cluster.free() == {"CPU": 2, "groups": 0}, "the stopped job's resources")
    wait_for(lambda: not cluster.node.ranks(), "the stopped job's ranks to end")


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"RAY_AUTH_TOKEN": "another" * 8}, "refuses the token in RAY_AUTH_TOKEN; put the cluster's into RAY_AUTH_"),
        ({"HOME": "/nowhere"}, "wants a token and there is none; put the cluster's into RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token, but RAY_AUTH_MODE=disabled sends none; unset it"),
    ],
)
def test_a_token_that_does_not_fit(cluster, environment, message, monkeypatch, tmp_path):
    """The cause, at once, from a process of its own: Ray keeps the first token that a process shows."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        agree_on_token(cluster.address)
    log = tmp_path / "log"
    if "RAY_AUTH_MODE" not in environment:
        text = finish(dmd("submit", "--address", cluster.dashboard, "status", "x", log=log), log, code=2)
        assert message in text
        assert text.count("\n") == 1


def test_the_token_stays_private(cluster, home):
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600


def test_a_terminated_experiment(cluster, tmp_path):
    """SIGTERM, as from Slurm: one line, exit code 75, and the same command continues."""
    log, out, shards = tmp_path / "log", tmp_path / "out", make_shards(tmp_path / "shards")
    command = ["experiment", "--address", cluster.address, "--data", shards, "--out", out, "--seeds", "1", *TINY]
    driver = dmd(*command, "train.epochs=5000", log=log)
    wait_for(lambda: driver.poll() is not None or lines(out / "preset" / "seed_1", "valid"), "an epoch")
    driver.terminate()
    assert_stopped(finish(driver, log, code=STOPPED), "trainings ended: 0; the same command continues")
    wait_for(lambda: cluster.free() == {"CPU": 2, "groups": 0}, "the stopped experiment's resources")


def test_one_training_that_is_stopped(cluster, tmp_path):
    """SIGTERM ends with a checkpoint, and nothing is held."""
    log, run, shards = tmp_path / "log", tmp_path / "run", make_shards(tmp_path / "shards")
    train = ["train", "--data", shards, "--run", run, "--ranks", "2", *TINY, "train.epochs=5000"]
    training = dmd(*train, "--address", cluster.address, log=log)
    wait_for(lambda: training.poll() is not None or lines(run, "valid"), "an epoch")
    training.terminate()
    text = finish(training, log, code=STOPPED)
    assert "dmd train: stopping after a checkpoint; a second request ends at once" in text
    (step,) = re.findall(
        rf"^stopped at step (\d+); the command with --run {re.escape(str(run))} continues from the checkpoint /",
        text,
        re.MULTILINE,
    )
    assert (run / "checkpoints" / f"step_{int(step):08d}").is_dir()
    assert "Traceback" not in text
    wait_for(lambda: cluster.free() == {"CPU": 2, "groups": 0}, "the stopped training's resources")


def test_a_cluster_that_others_hold(cluster, tmp_path):
    """A wait has an end, with exit code 69: the same command continues when there is room."""
    log, shards = tmp_path / "log", make_shards(tmp_path / "shards")
    (tmp_path / "space.yaml").write_text(SPACE)
    others = ray.util.placement_group([{"CPU": 2}])
    ray.get(others.ready())
    try:
        common = ["--address", cluster.address, "--data", shards, "--patience", "5", *TINY]
        common += ["--concurrent", "1"]
        search = ["tune", "--out", tmp_path / "out", "--space", tmp_path / "space.yaml", *common]
        text = finish(dmd(*search, log=log), log, code=LOST)
        assert re.search(r"no training has had room for \d+ s \(free: 0 of 2 CPU, 0 of 0 GPU\)", text)
        assert "; trials ended: 0, begun: 1 (" in text
        assert "Traceback" not in text
        text = finish(dmd("experiment", "--out", tmp_path / "x", *common, log=log), log, code=LOST)
        assert re.search(r"no training has had room for .* trainings ended: 0; the same command continues\n$", text)
        data = ["shard", "--address", cluster.address, "--synthetic", tmp_path / "made"]
        text = finish(dmd(*data, "--patience", "3", log=log), log, code=LOST)
        assert re.search(r"no task has ended for \d+ s \(free: 0 of 2 CPU, .* GiB\): others hold the cluster, or", text)
        assert text.endswith(f"{tmp_path / 'made'} is as it was; the same command begins again\n")
    finally:
        ray.util.remove_placement_group(others)
    wait_for(lambda: cluster.free() == {"CPU": 2, "groups": 0}, "what others and the waiting trials held")


ORPHAN = """
import sys

import ray

from cluster.ray_runtime.access import send_token
from cluster.ray_runtime.orphans import EndWithOwner


@ray.remote(num_cpus=0)
class Orphan:
    def start_ranks(self):
        EndWithOwner().before_worker_group_start(None)
        return "started"


send_token()
ray.init(sys.argv[1], namespace="orphans", log_to_driver=False)
orphan = Orphan.options(name="orphan", lifetime="detached").remote()
print(ray.get(orphan.start_ranks.remote()))
"""


def test_a_controller_starts_no_ranks_for_a_job_that_has_ended(cluster):
    """It would ask for resources that nobody gives back; what makes this one outlive its job is that it is detached."""
    driver = subprocess.run(
        [sys.executable, "-c", ORPHAN, cluster.address], capture_output=True, text=True, timeout=120
    )
    assert driver.stdout == "started\n", driver.stderr
    orphan = ray.get_actor("orphan", namespace="orphans")
    job, actor = orphan._actor_id.job_id.hex(), orphan._actor_id.hex()
    own = ray.get_runtime_context().get_job_id()
    assert has_ended(job, None)
    assert not has_ended(own, actor), "it lives"
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(orphan.start_ranks.remote(), timeout=60)
    wait_for(lambda: has_ended(own, actor), "the end of the orphan", 60)


def test_requests_that_can_never_be_placed(cluster, tmp_path):
    log, shards = tmp_path / "log", make_shards(tmp_path / "shards")
    (tmp_path / "space.yaml").write_text(SPACE)
    common = ["--data", shards, "--out", tmp_path / "out", "--address", cluster.address]
    tune = ["tune", *common, "--space", tmp_path / "space.yaml"]
    text = finish(dmd(*tune, "--ranks-per-trial", "3", *TINY, log=log), log, code=2)
    assert "a trial wants 3 ranks of 1 CPU; the cluster's nodes (2 CPU, 0 GPU) have room for 2" in text
    text = finish(dmd("experiment", *common, "--gpus-per-rank", "1", *TINY, log=log), log, code=2)
    assert "a trial wants 1 rank of 1 CPU and 1 GPU" in text
    assert not (tmp_path / "out" / "trials").exists()
