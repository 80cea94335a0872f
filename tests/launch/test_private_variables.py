"""What other hosts get: unchanged words, secrets in private files, and a store that listens on one address."""

import argparse
import os
import stat
import subprocess

import psutil
import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

from data_shards.places import to_place
from launch.arguments import make_parser, rank_arguments
from launch.network.rendezvous import listening_address
from launch.starting.private_variables import TOKEN, is_private, private_files, read_private_file, shell_word
from tests.support.ranks import Session, newest_step
from tests.support.waiting import until

WORDS = [
    "plain",
    "o'brien",
    'a "quoted" word',
    "$(touch RAN)",
    "x$(touch RAN)y",
    "`touch RAN`",
    "a `touch RAN` b",
    "a $HOME b",
    "back\\slash",
    "back \\slash",
    "a;touch RAN",
    "a & b",
    "*",
    "~",
    "a  two spaces",
    "ümlaut é",
    'a\'b "c" $d `e` \\f',
    "!x",
]


def test_every_word_survives_the_launcher_and_a_remote_shell(tmp_path):
    launcher = PDSHRunner(argparse.Namespace(user_args=[shell_word(word) for word in WORDS], user_script="x"), "")
    line = " ".join(["printf '%s\\0'", *launcher.parse_user_args()])  # pdsh joins words with a space, ssh hands them on
    for shell in ("bash", "sh"):
        got = subprocess.run([shell, "-c", line], capture_output=True, cwd=tmp_path, check=True).stdout
        assert got.decode().split("\0")[:-1] == WORDS
    assert list(tmp_path.iterdir()) == []
    for word in ("100%n", "two\nlines"):
        with pytest.raises(ValueError, match="cannot reach other hosts"):
            shell_word(word)


@pytest.mark.parametrize(
    ("name", "value", "private"),
    [
        ("HF_TOKEN", "hf_x", True),
        ("HF_HUB_TOKEN", "hf_x", True),
        ("MLFLOW_TRACKING_PASSWORD", "x", True),
        ("NCCL_API_KEY", "x", True),
        ("HF_ENDPOINT", "https://bob:x@mirror", True),
        ("HF_HOME", "/a/$(x)", True),
        ("HF_HOME", "/models/hub", False),
        ("TOKENIZERS_PARALLELISM", "true", False),
        ("NCCL_DEBUG", "INFO", False),
        ("HF_ENDPOINT", "https://mirror", False),
        ("HF_HOME", 'a "b"', True),
        ("NCCL_X", "%n", True),
    ],
)
def test_which_variables_are_private(name, value, private):
    assert is_private(name, value) == private


def test_a_path_that_a_shell_would_change_is_rejected():
    with pytest.raises(ValueError, match="a remote shell would change"):
        is_private("PYTHONPATH", "/a/$(touch RAN)")


def test_every_rank_gets_its_own_file_which_is_gone_once_read(tmp_path):
    run = tmp_path / "run"
    (run / ".private-of-a-killed-start").mkdir(parents=True)
    with private_files(run, {"HF_TOKEN": "hf_SECRET"}, 2) as found:
        files = sorted(run.glob(".private-*/*"))
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
        assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
        for rank in ("1", "0"):
            environment = {**found, "RANK": rank}
            read_private_file(run, environment)
            assert environment == {"RANK": rank, "HF_TOKEN": "hf_SECRET"}
        assert list(run.glob(".private-*/*")) == []
        with pytest.raises(ValueError, match="not the first host's"):
            read_private_file(run, {**found, "RANK": "0"})
    assert list(run.iterdir()) == []
    with private_files(tmp_path / "none", {}, 2) as found:
        assert TOKEN not in found
    assert not (tmp_path / "none").exists()
    read_private_file(run, {"RANK": "0"})


def test_a_rank_command_has_no_secret_and_no_relative_path():
    url = "https://bob:SECRET@host/set?sig=SECRET"
    options = make_parser().parse_args(["--data", url, "--run", "r", "model.levels=1"])
    arguments = rank_arguments(options)
    assert "SECRET" not in " ".join(arguments)
    assert arguments[arguments.index("--data") + 1] == "https://host/set"
    assert to_place(options.data).address == url
    options = make_parser().parse_args(["--data", "file://s", "--run", "r"])
    assert rank_arguments(options)[:4] == ["--data", os.path.abspath("s"), "--run", os.path.abspath("r")]


def test_where_the_store_listens():
    assert listening_address({"MASTER_ADDR": "10.0.0.1"}) == "127.0.0.1"
    assert listening_address({"MASTER_ADDR": "127.0.0.2", "CROSS_SIZE": "2"}).startswith("127.")
    named = {"MASTER_ADDR": "127.0.0.1", "CROSS_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    assert listening_address(named) == "127.0.0.1"


@pytest.mark.multiproc
@pytest.mark.slow
def test_ranks_of_one_host_listen_on_its_loopback_alone(shards, tmp_path):
    session = Session(shards, tmp_path / "run", "train.epochs=500", "train.early_stop=500", ranks=2)
    until(lambda: newest_step(tmp_path / "run") >= 5, lambda: session.output)
    pids = {session.trainer(rank) for rank in range(2)}
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    for rank in range(2):
        os.kill(session.supervisor(rank), 15)
    assert session.wait().codes == [75, 75], session.output
    assert len(listening) >= 3, "the store and a gloo of each rank"
    assert set(listening) == {"127.0.0.1"}


def test_a_store_that_cannot_listen_says_which_port():
    import socket

    from launch.network.rendezvous import listen

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"port \d+ is taken at 127\.0\.0\.1, .* give another --port"):
            listen("127.0.0.1", taken.getsockname()[1])
