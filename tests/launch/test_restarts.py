"""`dmd train --restarts`: what is lost is started again, within the limit; what a restart cannot mend is not.

`test_hosts.py` has a host that is lost.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dmd.checkpoint.format import MANIFEST
from dmd.checkpoint.resume import checkpoint_marks, resume_of_restart
from dmd.cli import main
from dmd.exit_codes import restart_mends
from dmd.training.logging.provenance import RESTART
from launch.commands import stop_ends_process
from launch.starting.environment import WRITERS
from launch.starting.hosts import Hosts
from launch.starting.rank_layout import RankLayout
from launch.starting.restarts import RestartRule, run_with_restarts
from launch.starting.runner import LauncherEnd
from launch.supervision.ending import Ending
from tests.support.commands import error_line
from tests.support.ranks import TINY, assert_bitwise, last

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="openssh-client is not installed")
SAVES = "train.save_every=2"
KILLED, STOPPED, LOST = 137, 75, 69


ONE_RANK = RankLayout(ranks=1)


def ends(
    *codes: int, stop_requested: bool = False
) -> tuple[Callable[..., LauncherEnd], list[tuple[str, Mapping[str, str]]]]:
    """Attempts that end with these codes, one after the other, and what each of them was given."""
    given: list[tuple[str, Mapping[str, str]]] = []

    def attempt(layout: RankLayout, arguments: list[str], about: Mapping[str, str]) -> LauncherEnd:
        given.append((arguments[-1], about))
        ending = Ending(code=codes[len(given) - 1], message=f"end {len(given)}; the same command continues")
        return LauncherEnd(ending=ending, stop_requested=stop_requested)

    return attempt, given


def run(
    folder: Path,
    attempt: Callable[..., LauncherEnd],
    *,
    restarts: int,
    layout: RankLayout = ONE_RANK,
    patience: float = 1,
) -> Ending:
    rule = RestartRule(restarts=restarts, min_ranks=1, patience=patience)
    return run_with_restarts(layout, ["--run", str(folder), "--resume", "auto"], rule, attempt)


@pytest.mark.parametrize("code", [0, 1, 2, 71, 74, 75])
def test_what_a_restart_cannot_mend_is_not_restarted(tmp_path, code):
    attempt, given = ends(code)
    assert run(tmp_path, attempt, restarts=3).code == code
    assert len(given) == 1
    assert not restart_mends(code)


@pytest.mark.parametrize("code", [LOST, KILLED, 134, 139])
def test_what_is_lost_is_restarted_within_the_limit(tmp_path, code, capsys):
    attempt, given = ends(code, code, code)
    ending = run(tmp_path, attempt, restarts=2)
    assert ending.code == code
    assert ending.message == "end 3; given up after 2 restarts; the same command continues"
    assert [about.get(RESTART) for _, about in given] == [None, "1 of 2: end 1", "2 of 2: end 2"]
    assert len({about[WRITERS] for _, about in given}) == 1
    assert capsys.readouterr().err.splitlines() == [
        "dmd train: restart 1 of 2: end 1; from the start",
        "dmd train: restart 2 of 2: end 2; from the start",
    ]


def test_a_training_that_ends_after_a_restart(tmp_path):
    attempt, given = ends(KILLED, 2)
    assert run(tmp_path, attempt, restarts=9) == Ending(code=2, message="end 2; the same command continues")
    assert len(given) == 2


def test_a_request_to_stop_ends_the_restarts(tmp_path):
    attempt, given = ends(LOST, stop_requested=True)
    assert run(tmp_path, attempt, restarts=9).message == "end 1; the same command continues"
    assert len(given) == 1


def test_no_restart_without_the_option(tmp_path):
    attempt, given = ends(KILLED)
    assert run(tmp_path, attempt, restarts=0).message == "end 1; the same command continues"
    assert given == [("auto", {})]


def test_a_restart_goes_back_again_until_the_training_has_written(tmp_path):
    """`--resume 4` leaves the checkpoints of steps 6 and 8 until it has saved one of its own."""
    manifests = [tmp_path / f"step_{step:08d}" / MANIFEST for step in (4, 6, 8)]
    for manifest in manifests:
        manifest.parent.mkdir()
        manifest.write_text("{}")
    before = checkpoint_marks(tmp_path)
    assert len(before) == 3
    assert resume_of_restart(tmp_path, 4, before) == 4
    shutil.rmtree(manifests[2].parent)
    assert resume_of_restart(tmp_path, 4, before) == 4, "one that is gone is no progress"
    manifests[1].unlink()
    manifests[1].write_text("{}")
    assert resume_of_restart(tmp_path, 4, before) == "auto"


NOWHERE = Hosts(path=Path("/none"), slots={"no-such-host.invalid": 1})


@needs_ssh
def test_hosts_that_do_not_come_back_end_the_wait(tmp_path, capsys):
    attempt, given = ends(LOST)
    layout = RankLayout(ranks=0, hosts=NOWHERE)
    ending = run(tmp_path, attempt, restarts=1, layout=layout)
    assert ending.code == LOST
    assert len(given) == 1
    reason = r"end 1; no-such-host\.invalid not reached by ssh within 1 s \(.*\); the same command continues"
    assert re.fullmatch(reason, ending.message)
    assert capsys.readouterr().err.startswith("dmd train: waiting for no-such-host.invalid: 0 of 1 ranks have a host, ")


@needs_ssh
def test_a_stop_request_ends_the_wait_for_hosts(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.starting.restarts.LOOK_SECONDS", 60)
    attempt, _ = ends(LOST)
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    asked = time.monotonic()
    with pytest.raises(SystemExit) as stop, stop_ends_process():
        run(tmp_path, attempt, restarts=1, layout=RankLayout(ranks=0, hosts=NOWHERE), patience=600)
    assert stop.value.code == STOPPED
    assert time.monotonic() - asked < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--restarts", "-1"], "--restarts is -1; it must be at least 0"),
        (["--min-ranks", "1"], "--min-ranks is 1 without --restarts"),
        (["--restarts", "1", "--patience", "0"], "--patience is 0; it must be at least 1"),
        (["--restarts", "1", "--min-ranks", "1"], "--min-ranks is 1; one host starts all of its ranks again"),
        (["--restarts", "1", "--hosts", "HOSTS", "--min-ranks", "3"], "--min-ranks is 3; it must lie between 1 and"),
        (["--restarts", "1", "--hosts", "HOSTS", "--host-rank", "0"], "start them by ssh (--hosts alone) or on a"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(shards, tmp_path, capsys, arguments, message):
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n")
    arguments = [str(hosts) if word == "HOSTS" else word for word in arguments]
    assert main(["train", "--data", str(shards), "--run", str(tmp_path / "run"), *TINY, *arguments]) == 2
    error = error_line(capsys)
    assert message in error


def train(shards: Path, folder: Path, *arguments: str, **env: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "dmd.cli", "train", "--data", str(shards), "--run", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(
        [*command, *TINY, SAVES, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.multiproc
@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_is_bitwise_the_same(shards, reference, tmp_path):
    folder = tmp_path / "run"
    code, output = train(shards, folder, "--ranks", "2", "--restarts", "2", DMD_FAULT="step@7@1")
    assert code == 0, output
    assert re.search(
        r"^dmd train: restart 1 of 2: rank 1 on \S+ was killed by SIGKILL \(signal 9\); from step_00000006$",
        output,
        re.MULTILINE,
    ), output
    assert "restart 2 of 2" not in output
    assert_bitwise(folder, reference(SAVES, ranks=2))
    sessions = json.loads((folder / "run.json").read_text())["sessions"]
    assert [session["resume_step"] for session in sessions] == [None, 6]
    assert "restart" not in sessions[0]
    assert sessions[1]["restart"].startswith("1 of 2: rank 1 on ")


@pytest.mark.multiproc
@pytest.mark.slow
def test_a_rank_that_is_killed_again_and_again_ends_after_the_last_restart(shards, tmp_path):
    """Each session is killed in its fifth step, and there is one restart. The newest checkpoint may be under way then,
    the one before it is whole: the first session leaves step 2 at least, from which the second one saves 4, 5 and 6.
    """
    code, output = train(shards, tmp_path / "run", "--ranks", "1", "--restarts", "1", DMD_FAULT="step@5")
    assert code == KILLED, output
    assert output.splitlines()[-1].endswith(
        "was killed by SIGKILL (signal 9); given up after 1 restart; the same command continues"
    )
    assert last(tmp_path / "run").step >= 5
