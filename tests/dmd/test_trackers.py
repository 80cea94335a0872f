"""Trackers get the numbers of the log, each step once, across resumes and failures that no training notices."""

import _thread
import json
import math
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import get_args

import pytest

from dmd.checkpoint.standing import read_lines
from dmd.config.loading import load_config
from dmd.config.schema import TrackerName
from dmd.documents import EXPERIMENT
from dmd.training.logging.trackers.about import about
from dmd.training.logging.trackers.command import track
from dmd.training.logging.trackers.log import Sent, read_sent, write_sent
from dmd.training.logging.trackers.origin import origin
from dmd.training.logging.trackers.processes import Senders
from dmd.training.logging.trackers.sender import Sender
from dmd.training.logging.trackers.table import TRACKERS, check_trackers
from dmd.training.logging.trackers.tracker import About, Picture, SessionEnding, Step
from dmd.training.logging.trackers.turn import wait_for_turn
from dmd.training.logging.trackers.variables import tracker_variables, without_ties
from launch.starting.environment import forwarded
from launch.starting.private_variables import is_private
from tests.support.records import recorder, train
from tests.support.servers import STALL, silent_server
from tests.support.trained import train_and_capture


class Kept:
    """A tracker whose server is a list in this process, which may be away."""

    def __init__(self, server: "Server") -> None:
        self.server = server

    def failures(self) -> tuple[type[Exception], ...]:
        return (ConnectionError,)

    def place(self) -> str:
        return self.server.place

    def open(self, about: About, identity: str | None, *, patience: float) -> str:
        self.server.answer()
        self.server.sessions.append(identity)
        return identity or f"run{len(self.server.sessions)}"

    def describe(self, about: About) -> None:
        self.server.answer()

    def send(self, steps: list[Step]) -> None:
        self.server.answer()
        self.server.steps += steps

    def show(self, picture: Picture) -> None:
        self.server.answer()
        self.server.pictures.append(picture)

    def close(self, ending: SessionEnding) -> None:
        self.server.answer()
        self.server.endings.append(ending)


class Server:
    def __init__(self) -> None:
        self.place = "here"
        self.away = False
        self.asked = 0
        self.steps: list[Step] = []
        self.sessions: list[str | None] = []
        self.pictures: list[Picture] = []
        self.endings: list[SessionEnding] = []
        self.said: list[str] = []

    def answer(self) -> None:
        self.asked += 1
        if self.away:
            raise ConnectionError("no answer from https://user:secret@there/x?key=secret\nat all")

    def numbers(self) -> dict[int, dict[str, float]]:
        assert len({step.step for step in self.steps}) == len(self.steps), "no step twice"
        return {step.step: dict(step.numbers) for step in self.steps}

    def sender(self, run: Path) -> Sender:
        return Sender(run, "kept", Kept(self), patience=1, say=self.said.append)


def logged(run: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in read_lines(run):
        found.setdefault(line["step"], {}).update({tag: value for tag, value in line.items() if "/" in tag})
    return found


@pytest.fixture
def server(tmp_path) -> Server:
    (tmp_path / "trackers").mkdir()
    return Server()


def test_a_tracker_gets_what_the_log_says_while_it_is_written(tmp_path, server):
    record, sender = recorder(tmp_path), server.sender(tmp_path)
    train(record, 1, 12)
    assert sender.send()
    assert set(server.numbers()) == set(range(1, 12)), "more may follow of the last step"
    record.scalars(12, {"mae": 0.5}, kind="valid")
    record.close({"mae": 0.9})
    assert sender.send(ended=True)
    assert server.numbers() == logged(tmp_path)
    assert server.numbers()[12].keys() == {"train/loss", "train/lr", "valid/mae", "final/mae"}
    assert server.endings == ["finished"]
    assert server.said == ["kept: run run1 at here"]


@pytest.mark.parametrize("resume", [20, 13])
def test_a_resume_continues_the_run_without_a_step_missing_or_twice(tmp_path, server, resume):
    """Also where the training begins again at an earlier step than the tracker has."""
    record, sender = recorder(tmp_path), server.sender(tmp_path)
    train(record, 1, 20)
    record.close(None)
    sender.send(ended=True)
    record, sender = recorder(tmp_path, resume), server.sender(tmp_path)
    train(record, resume + 1, 30)
    record.close({"mae": 0.9})
    sender.send(ended=True)
    assert server.numbers() == logged(tmp_path)
    assert server.sessions == [None, "run1"]
    assert server.endings == ["stopped", "finished"]


def test_the_last_step_of_a_killed_training_waits_for_the_rest_of_it(tmp_path, server):
    train(recorder(tmp_path), 1, 9)
    server.sender(tmp_path).send(ended=True)
    assert set(server.numbers()) == set(range(1, 9))
    assert server.endings == ["lost"]
    record = recorder(tmp_path, 8)
    record.scalars(9, {"loss": 1 / 9}, kind="train")
    record.scalars(9, {"mae": 2 / 9}, kind="valid")
    record.close(None)
    server.sender(tmp_path).send(ended=True)
    assert server.numbers()[9] == {"train/loss": 1 / 9, "valid/mae": 2 / 9}


def test_numbers_wait_in_the_log_while_a_server_is_away(tmp_path, server):
    record, sender = recorder(tmp_path), server.sender(tmp_path)
    train(record, 1, 3)
    server.away = True
    assert not sender.send()
    assert not sender.send()
    assert server.asked == 1, "nothing is tried for a while"
    assert not sender.send(ended=True)
    assert server.said == [f"kept: no answer from https://there/x; its numbers wait in {tmp_path / 'metrics.jsonl'}"]
    server.away = False
    train(record, 4, 9)
    record.close(None)
    assert sender.send(ended=True)
    assert server.numbers() == logged(tmp_path)


def test_another_place_gets_the_whole_log_as_a_run_of_its_own(tmp_path, server):
    record, sender = recorder(tmp_path), server.sender(tmp_path)
    train(record, 1, 3)
    record.close(None)
    sender.send(ended=True)
    other = Server()
    other.place = "elsewhere"
    other.sender(tmp_path).send(ended=True)
    assert other.numbers() == logged(tmp_path)
    assert other.sessions == [None]


def test_a_training_that_begins_anew_is_a_run_of_its_own(tmp_path, server):
    for last in (9, 3):  # the second one is behind what the tracker has of the first
        record = recorder(tmp_path)
        train(record, 1, last)
        record.close(None)
        server.steps.clear()
        server.sender(tmp_path).send(ended=True)
        assert server.numbers() == logged(tmp_path)
    assert server.sessions == [None, None]
    assert server.said == ["kept: run run1 at here", "kept: run run2 at here"]


def test_a_copy_is_a_run_of_its_own_and_a_moved_run_goes_on(tmp_path, server):
    run, moved, copy = (tmp_path / name for name in ("run", "moved", "copy"))
    (run / "trackers").mkdir(parents=True)
    train(recorder(run), 1, 3)
    server.sender(run).send(ended=True)
    run.rename(moved)
    server.sender(moved).send(ended=True)
    shutil.copytree(moved, copy)
    server.sender(copy).send(ended=True)
    (tmp_path / "link").symlink_to(copy)
    server.sender(tmp_path / "link").send(ended=True)
    assert server.sessions == [None, "run1", None, "run3"]
    assert server.said == [
        "kept: run run1 at here",
        f"kept: {copy} is a copy of {moved} and becomes a run of its own",
        "kept: run run3 at here",
    ]


def test_a_number_that_is_not_finite_is_nan(tmp_path, server):
    record = recorder(tmp_path)
    record.scalars(1, {"loss": math.inf}, kind="train")
    record.close(None)
    server.sender(tmp_path).send(ended=True)
    assert math.isnan(server.numbers()[1]["train/loss"])


def test_pictures_are_those_of_tensorboard_each_once(run, tmp_path, server):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for _ in range(2):
        server.sender(tmp_path).send(ended=True)
    found = [(picture.tag, picture.step) for picture in server.pictures]
    assert sorted(found) == [(tag, step) for tag in ("edges_beside_prior", "predictions") for step in (1, 2)]
    assert all(picture.png.startswith(b"\x89PNG") for picture in server.pictures)


def test_what_a_tracker_is_told_of_a_trial(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--preset", "mosi-aligned"])
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / EXPERIMENT).write_text("{}")
    run = tmp_path / "search" / "trials" / "0007"
    recorder(run, config={"train": {"seed": 3}}).close(None)
    told = about(run)
    assert (told.group, told.name) == ("search", "trials/0007")
    assert told.parameters == {"train.seed": 3}
    assert {"preset": "mosi-aligned", "seed": "3", "generation": "abc"}.items() <= told.tags.items()


def test_variables_of_trackers_reach_the_ranks_and_keys_stay_private():
    given = {"WANDB_API_KEY": "k", "WANDB_SERVICE": "s", "MLFLOW_TRACKING_URI": "http://u:p@h", "HOME": "/root"}
    assert tracker_variables((), given) == {}
    assert tracker_variables(("wandb",), given).keys() == {"WANDB_API_KEY", "MLFLOW_TRACKING_URI"}
    assert without_ties(given).keys() == given.keys() - {"WANDB_SERVICE"}
    assert {"WANDB_API_KEY", "MLFLOW_TRACKING_URI"} <= forwarded(given).keys()
    assert all(is_private(name, given[name]) for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"))


def test_trackers_by_name(monkeypatch):
    assert tuple(TRACKERS) == get_args(TrackerName)
    config = load_config(None, ["train.trackers=[mlflow, wandb]"])
    check_trackers(config)
    with pytest.raises(ValueError, match=r"train.trackers is 'tensorboard'; input should be 'wandb' or 'mlflow'"):
        load_config(None, ["train.trackers=[tensorboard]"])
    monkeypatch.setattr("dmd.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs mlflow, which is not installed: pip install 'dmd-cluster\[track\]'"):
        check_trackers(config)


def short_run(path: Path, last: int = 4) -> Path:
    record = recorder(path)
    train(record, 1, last)
    record.close({"mae": 0.9})
    return path


def test_the_next_sender_waits_for_the_one_before(tmp_path, server):
    said: list[str] = []
    handles = [wait_for_turn(tmp_path, "kept", say=said.append)]
    other = threading.Thread(target=lambda: handles.append(wait_for_turn(tmp_path, "kept", say=said.append)))
    other.start()
    other.join(0.3)
    assert other.is_alive()
    os.close(wait_for_turn(tmp_path, "another", say=said.append))
    os.close(handles[0])
    other.join(5)
    assert not other.is_alive()
    os.close(handles[1])
    assert said == [f"kept: waits for another process that still sends the numbers of {tmp_path}"]


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_sender_that_fails_or_is_interrupted(tmp_path, capfd):
    """With a tracker that is not there, so that its process ends when its turn comes, and with an error."""
    run = short_run(tmp_path / "run")
    (run / "trackers").mkdir()
    turn = wait_for_turn(run, "none", say=print)
    senders = Senders(run, ["none"], patience=60)
    (process,) = senders._processes.values()
    threading.Timer(1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        senders.close()
    assert process.wait(5) < 0, "Ctrl-C ends it at once"
    os.close(turn)
    write_sent(run, "none", Sent(place="here", identity="run1", step=4, origin=origin(run)))
    capfd.readouterr()
    assert not Senders(run, ["none"], patience=60).close()
    assert f"none: its pictures or how it ended are not sent; `dmd track {run}` sends them\n" in capfd.readouterr().err


def test_what_is_no_run_is_said_and_left_alone(tmp_path):
    with pytest.raises(ValueError, match=r"typo has no readable run.json: not the directory of a run"):
        track([str(tmp_path / "typo"), "--to", "mlflow"])
    assert not (tmp_path / "typo").exists()


def test_the_library_that_reads_pictures_is_in_the_extra(tmp_path, monkeypatch):
    run = short_run(tmp_path / "run")
    monkeypatch.setattr("dmd.extras.find_spec", lambda name: None if name == "tensorboard" else name)
    with pytest.raises(ValueError, match=r"needs tensorboard, which is not installed: .*\[track\]"):
        track([str(run), "--to", "mlflow"])


@pytest.mark.slow
def test_both_libraries_without_a_server(run, tmp_path, monkeypatch, capfd):
    """A run that was trained without them, then two more steps of it: one run, all numbers, in local stores."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlflow'}")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert track([str(copy), "--to", "mlflow", "wandb"]) == 0
    assert track([str(copy), "--to", "mlflow"]) == 0, "nothing is left to send"
    said = capfd.readouterr()
    there = re.escape(f"file:{tmp_path / 'mlflow'}")
    assert re.fullmatch(
        rf"(mlflow: has every step up to 2, in run (\w+) at {there})\nwandb: has every step up to 2, in run \w+ at \S+ "
        r"offline\n\1\n",
        said.out,
    )
    assert sorted(line.split(" ")[:2] for line in said.err.splitlines()) == [["mlflow:", "run"], ["wandb:", "run"]]
    (store,) = (tmp_path / "mlflow").glob("*/*/meta.yaml")
    assert "status: 3" in store.read_text(), "finished"
    for tag in ("train/total", "valid/mae", "best_valid/loss", "final/valid/loss"):
        written = [line.split() for line in (store.parent / "metrics" / tag).read_text().splitlines()]
        expected = [(line["step"], line[tag]) for line in read_lines(copy) if tag in line]
        assert [(int(step), float(value)) for _, value, step in written] == expected
    assert (store.parent / "params" / "train.seed").read_text() == "1"
    assert len(list((store.parent / "artifacts" / "images").glob("*.png"))) == 4
    (offline,) = (copy / "wandb").glob("offline-run-*")
    content = next(offline.glob("*.wandb")).read_bytes()
    assert offline.name.endswith(read_sent(copy, "wandb").identity)
    for tag in (b"train/edges_homo/text_from_audio", b"valid/mae", b"learning_rate"):
        assert tag in content
    assert len(list((offline / "files" / "media" / "images").glob("*.png"))) == 4


@pytest.mark.slow
def test_a_resume_may_add_a_tracker_which_gets_all_numbers(run, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    train_and_capture(shards, {copy: ["train.seed=1", "train.epochs=3", "train.trackers=[wandb]"]})
    assert track([str(copy)]) == 0, "what the end of the training did not wait for"
    sent = read_sent(copy, "wandb")
    assert sent.step == read_lines(copy)[-1]["step"] > read_lines(run)[-1]["step"]
    logs = [path.read_bytes() for path in copy.glob("wandb/offline-run-*/*.wandb")]
    assert sum(log.count(b"valid_heads/fused/mae") for log in logs) >= 3, "of all epochs, also those before"


@pytest.mark.slow
def test_servers_that_hang_or_refuse_delay_no_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = short_run(tmp_path / "run")
    with silent_server() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("//", "//user:secret@"))
        senders = Senders(run, ["wandb", "mlflow"], patience=STALL)
        begin = time.monotonic()
        assert not senders.close()
        assert time.monotonic() - begin < 2 * STALL
    said = capfd.readouterr().err
    for name in ("wandb", "mlflow"):
        assert f"{name}: the numbers of 4 steps are not sent; `dmd track {run}` sends them\n" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("//", "//user:secret@"))  # nobody listens there any more
    assert not Senders(run, ["mlflow"], patience=60).close()
    said = capfd.readouterr().err
    assert said.startswith("mlflow: API request to ")
    assert said.count("\n") == 2
    assert "secret" not in said
    assert json.loads((run / "run.json").read_text())["sessions"][-1]["finished"]
