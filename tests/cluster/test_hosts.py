"""Trials, trainings, shards and predictions over two hosts: the worker is killed, or the link goes down; what they end
with is what it would be.

Head and worker are Ray nodes of one CPU in network namespaces of their own, one rank on each, DeepSpeed over gloo
between them.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_shards.commands import shard
from dmd.inference.part_files import MANIFEST
from tests.support import ranks, trained
from tests.support.clips import tones, write_wav
from tests.support.clusters import TINY, WATCHFUL, Command, Node, dmd, finish, lines, make_shards, records, wait_for
from tests.support.commands import command
from tests.support.hosts import Host, can_make_hosts, hosts
from tests.support.small_data import files

pytestmark = [
    pytest.mark.ray,
    pytest.mark.hosts,
    pytest.mark.multiproc,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts, reason="needs root and iproute2"),
]

ROOT = Path(__file__).parents[2]
PORT = 6379
EPOCHS = 14
SETTINGS = [*TINY, f"train.epochs={EPOCHS}", "train.early_stop=1000", "train.collective_timeout=10"]


@dataclass
class Two:
    """A cluster of two hosts."""

    head: Host
    worker: Host
    temp: Path
    audit: Path
    worker_node: Node | None = None

    @property
    def private(self) -> Path:
        """A directory of which the worker has another one under the same path."""
        return self.temp.parent / "private"

    def started(self) -> int:
        """How many nodes have started so far."""
        return self.temp.with_suffix(".log").read_text().count("Ray runtime started")

    def join(self) -> None:
        """Start Ray on the worker, whose actors hang in the second part of a prediction."""
        mount = ["sh", "-c", f'mount -t tmpfs none {self.private} && exec "$@"', "sh"]
        self.worker_node = Node(
            self.temp,
            "--address",
            f"{self.head.address}:{PORT}",
            "--node-ip-address",
            self.worker.address,
            "--num-cpus",
            "1",
            inside=[*self.worker.inside, *mount],
            DMD_AUDIT=str(self.audit),
            RAY_AUTH_MODE="token",
            DMD_FAULT="hang:part@2",
            **WATCHFUL,
        )

    def dmd(self, *arguments: object, log: Path) -> Command:
        """A `dmd` command on the head, on this cluster."""
        name, *rest = arguments
        return dmd(
            name,
            "--address",
            f"{self.head.address}:{PORT}",
            *rest,
            host=self.head,
            log=log,
            RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="8",
        )

    def trains_on_worker(self) -> bool:
        """Whether a rank lives there."""
        assert self.worker_node is not None
        return bool(self.worker_node.ranks())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("h")
    audit = folder / "audit"
    audit.mkdir()
    with hosts(2) as (head, worker):
        head_node = Node(
            folder / "r",
            "--head",
            "--port",
            str(PORT),
            "--node-ip-address",
            head.address,
            "--num-cpus",
            "1",
            "--temp-dir",
            str(folder / "r"),
            inside=head.inside,
            DMD_AUDIT=str(audit),
            **WATCHFUL,
        )
        cluster = Two(head, worker, folder / "r", audit)
        cluster.private.mkdir()
        try:
            wait_for(lambda: cluster.started() == 1, "the head node", 120)
            cluster.join()
            wait_for(lambda: cluster.started() == 2, "the worker node", 120)
            yield cluster
        finally:
            if cluster.worker_node is not None:
                cluster.worker_node.kill()
            head_node.kill()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("hosts") / "shards")


@pytest.fixture(scope="module")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on two ranks of one host, never interrupted."""
    run = tmp_path_factory.mktemp("reference") / "run"
    ranks.finish(shards, run, *SETTINGS, "train.learning_rate=3e-3", ranks=2)
    return run


@pytest.fixture(scope="module")
def trial(two: Two, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial over both hosts; on its way the worker is killed and comes back, and its link fails and comes back."""
    folder = tmp_path_factory.mktemp("trial")
    out, log, space = folder / "out", folder / "log", folder / "space.yaml"
    space.write_text("train.learning_rate: {choice: [3.0e-3]}\n")
    run = out / "trials" / "0000"

    def epochs() -> int:
        ended = [record["state"] for record in records(out)]
        assert driver.poll() is None or ended == ["finished"], log.read_text()
        return len(lines(run, "valid"))

    def trains_again(since: int) -> bool:
        return epochs() >= since + 2 and two.trains_on_worker()

    driver = two.dmd(
        "tune",
        "--data",
        shards,
        "--out",
        out,
        "--space",
        space,
        "--search",
        "grid",
        "--ranks-per-trial",
        "2",
        "--max-failures",
        "8",
        *SETTINGS,
        "data.reader=stream",
        log=log,
    )
    try:
        wait_for(lambda: epochs() >= 3, "the first epochs")
        assert two.worker_node is not None
        assert len(two.worker_node.ranks()) == 1
        two.worker_node.kill()
        at_kill = epochs()
        assert at_kill < EPOCHS, "killed in mid-trial"
        two.join()
        wait_for(lambda: trains_again(at_kill), "the trial to go on after a kill")
        two.worker.link("down")
        lost = epochs()
        assert lost < EPOCHS, "lost in mid-trial"
        wait_for(lambda: not two.worker_node.processes() or not two.trains_on_worker(), "the lost rank to end")
        two.worker_node.kill()
        two.worker.link("up")
        two.join()
        wait_for(lambda: driver.poll() is not None, "the trial to end")
        finish(driver, log)
    finally:
        driver.kill()
    return run


def test_the_trial_ran_over_two_hosts(trial):
    about = json.loads((trial / "run.json").read_text())
    assert about["info"]["ranks"] == 2
    assert len(about["sessions"]) >= 3, "one start, one resume per loss, and more where a slow host seemed lost"


def test_the_result_is_that_of_one_host_without_a_loss(trial, reference):
    """The trial streamed its shards, the reference read them at random."""
    ranks.assert_bitwise(trial, reference)


def test_every_sample_once_per_epoch(trial, two):
    steps = ranks.committed_samples(two.audit)
    for epoch in range(EPOCHS):
        seen = sum((ids for (of, _), ids in steps.items() if of == epoch), Counter())
        assert len(seen) == 70
        assert set(seen.values()) == {1}


def test_a_submitted_training_goes_on_after_a_killed_node(two, shards, reference, tmp_path):
    """Begun by ranks of one host, continued as a job over both: what it ends with is what those ranks would have.

    The job's log has what each rank prints, with its rank and host; `logs --rank` shows that of one alone.
    """
    run, log = tmp_path / "run", tmp_path / "log"
    settings = [*SETTINGS, "train.learning_rate=3e-3"]
    ranks.finish(shards, run, *settings, "train.max_steps=6", ranks=2)
    submit = ["submit", "--address", "http://127.0.0.1:8265"]
    train = ["train", "--data", shards, "--run", run, "--ranks", "2", "--restarts", "1", *settings]
    options = ["--working-dir", ROOT, "--environment", "node", "--id", "training"]
    job = dmd(*submit, *options, *train, host=two.head, log=log)
    try:
        wait_for(lambda: job.poll() is not None or len(lines(run, "valid")) >= 4, "two more epochs")
        two.worker_node.kill()
        two.join()
        text = finish(job, log)
    finally:
        job.kill()
    assert re.search(
        r"^\(TrainController .*\) dmd train: restart 1 of 1: rank [01] .*(lost the other|died or)", text, re.M
    )
    for rank in range(2):
        assert re.search(rf"^\(rank {rank} on \S+ pid=.*\) rank {rank} of 2 trains on cpu", text, re.M)
    assert f"; run: {run}" in text
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert [session.get("restart", "")[:6] for session in sessions] == ["", "", "1 of 1"]
    assert not (run / ".ray").exists()
    ranks.assert_bitwise(run, reference)
    log = tmp_path / "rank-1"
    of_rank_1 = finish(dmd(*submit, "logs", "training", "--rank", "1", host=two.head, log=log), log)
    printed = [line for line in of_rank_1.splitlines() if "INFO sdk.py" not in line]
    assert len(printed) >= 2
    assert all(line.startswith("(rank 1 on ") for line in printed)


def test_storage_that_is_not_shared(trial, two, shards, tmp_path):
    """One line that names the node, before a trial starts."""
    log = tmp_path / "log"
    space = shards.parent / "space.yaml"
    space.write_text("train.learning_rate: {choice: [3.0e-3]}\n")
    options = ["tune", "--space", space, *SETTINGS]
    text = finish(two.dmd(*options, "--data", shards, "--out", two.private / "out", log=log), log, code=2)
    assert f"node {two.worker.address} does not see the experiment's directory {two.private}/out; put --out" in text
    assert not (two.private / "out" / "trials").exists()
    here = make_shards(two.private / "shards")
    text = finish(two.dmd(*options, "--data", here, "--out", tmp_path / "out", log=log), log, code=2)
    assert f"node {two.worker.address} does not see the shards" in text


def test_shards_are_written_by_both_hosts(two, tmp_path):
    """Same bytes as here; a directory that only one host has is an error that names the other one."""
    log = tmp_path / "log"
    data = ["--synthetic", "--samples", "600", "--samples-per-shard", "10"]
    finish(two.dmd("shard", *data, tmp_path / "out", log=log), log)
    assert shard([*data, str(tmp_path / "here")]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "here")
    text = finish(two.dmd("shard", *data, two.private / "out", log=log), log, code=2)
    assert f"node {two.worker.address} does not see {two.private}/out/.staging-" in text
    assert not (two.private / "out").exists()
    clips = two.private / "clips"
    clips.mkdir()
    for number in range(8):
        write_wav(clips / f"{number}.wav", tones(0.4))
    settings = ["--vision", "none", "--missing", "zeros"]
    text = finish(two.dmd("extract", clips, tmp_path / "features", *settings, log=log), log, code=2)
    assert (
        f"node {two.worker.address} does not see {clips}; put CLIPS (and --transcripts, --face-model, --text-enc"
        in text
    )


def test_an_elastic_trial_goes_on_with_the_rank_that_is_left(trial, two, shards, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    run = out / "preset" / "seed_1"
    driver = two.dmd(
        "experiment", "--data", shards, "--out", out, "--seeds", "1", "--ranks-per-trial", "1:2", *SETTINGS, log=log
    )
    try:
        wait_for(lambda: len(lines(run, "valid")) >= 2, "the first epochs")
        assert two.trains_on_worker()
        two.worker_node.kill()
        finish(driver, log)
    finally:
        driver.kill()
    about = json.loads((run / "run.json").read_text())
    assert (about["info"]["ranks"], len(about["sessions"])) == (1, 2)
    steps = [line["step"] for line in lines(run, "train")]
    assert steps == list(range(1, 3 * EPOCHS + 1))


def test_a_host_that_is_lost_in_a_prediction(two, one_thread, tmp_path):
    """Nothing is lost, nothing is there twice. The worker's host goes while its actor holds two parts; there is no room
    for another actor until that of the head has no more to do."""
    shards, log, out = trained.make_shards(tmp_path / "shards", 500), tmp_path / "log", tmp_path / "out"
    (run,) = trained.train(shards, {tmp_path / "run": ["train.epochs=1"]})
    order = (run, shards, "--split", "train", "--samples-per-part", 64)
    assert command("predict", *order, "--out", tmp_path / "here") == 0
    if not two.worker_node.processes():
        before = two.started()
        two.join()
        wait_for(lambda: two.started() > before, "the worker node", 120)

    def works_there() -> bool:
        """Whether the worker has an actor, and all parts are there but those two that it holds."""
        return bool(two.worker_node.named("MapWorker")) and len(list(out.glob("part-*"))) == 4

    driver = two.dmd("predict", *order, "--out", out, "--patience", 120, log=log)
    try:
        wait_for(lambda: driver.poll() is not None or works_there(), "parts on both hosts")
        assert driver.poll() is None, log.read_text()
        two.worker.link("down")
        said = finish(driver, log)
    finally:
        driver.kill()
        two.worker.link("up")
    assert f"{out}: 350 predictions (train 350) in 6 parts; checkpoint of step " in said
    assert json.loads((out / MANIFEST).read_text())["rows"] == 350
    assert files(out) == files(tmp_path / "here")
