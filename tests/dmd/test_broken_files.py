"""Every reader of a file from elsewhere is given broken ones of every kind: one line, exit code 2, no traceback."""

import gzip
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.search.space import load_space
from cluster.search.trial_records import TrialRecords, keep_request
from data_shards.format.schema import DatasetInfo
from dmd.checkpoint.format import Snapshot
from dmd.checkpoint.select import chosen_checkpoint
from dmd.checkpoint.writer import write_checkpoint
from dmd.config import Config
from dmd.config.loading import load_config, parse_yaml
from dmd.documents import parse_line
from launch.starting.hosts import read_hosts
from tests.support.commands import command

DEEP = 100_000
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "number": b"7",
    "text": b'"x"',
    "list": b"[]",
    "list of lists": b"[[1], 2]",
    "object": b"{}",
    "other object": b'{"a": {"b": [1, null]}}',
    "cut short": b'{"config": {"model"',
    "nul": bytes(99),
    "noise": bytes(range(256)) * 4,
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP,
    "long number": b"9" * 5000,
    "NaN": b"NaN",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "page": b"<!doctype html><html>Sign in</html>",
    "gzip": gzip.compress(b"{}"),
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbf{}",
    "csv": b"id,label\n1,2\n",
    "pickle": b"\x80\x04}.",
    "zip": b"PK\x03\x04",
    "parquet": b"PAR1PAR1",
    "wrong types": b'{"config": [], "info": 3, "sessions": {"a": 1}, "format": 1, "data": [], "weight_map": []}',
}
Break = Callable[[bytes], int | None]


@pytest.fixture(autouse=True)
def limited_memory() -> Iterator[None]:
    """What is declared must not be taken: a reader that tries gets a MemoryError here, not the machine's last page."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def made(run, shards, tmp_path_factory) -> dict[str, Path]:
    """A copy of everything that is broken: a run, an export."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(run, folder / "run")
    assert command("export", run, folder / "export", "--no-program") == 0
    return {"run": folder / "run", "export": folder / "export", "shards": shards, "folder": folder}


def readers(made: dict[str, Path]) -> dict[str, tuple[Path, list[tuple[object, ...]]]]:
    """{what: (the file, commands that read it)}."""
    run, export, shards, folder = made["run"], made["export"], made["shards"], made["folder"]
    out = folder / "out"
    checkpoint = max((run / "checkpoints").iterdir())
    return {
        "run.json": (
            run / "run.json",
            [
                ("evaluate", run),
                ("report", run, "--out", out),
                ("missing", run, "--out", out, "--rates", 0),
            ],
        ),
        "metrics.jsonl": (run / "metrics.jsonl", [("report", run, "--out", out)]),
        "manifest.json": (checkpoint / "manifest.json", [("checkpoints", run)]),
        "model.json": (export / "model.json", [("predict", export, shards, "--out", folder / "p.csv")]),
        "weights": (export / "model.safetensors", [("predict", export, shards, "--out", folder / "p.csv")]),
        "preset": (
            folder / "preset.yaml",
            [
                ("presets", folder / "preset.yaml"),
                ("train", "--preset", folder / "preset.yaml", "--data", folder / "gone", "--run", folder / "r"),
            ],
        ),
        "hostfile": (
            folder / "hosts",
            [
                ("train", "--data", shards, "--run", folder / "r", "--hosts", folder / "hosts", "--host-rank", 0),
            ],
        ),
        "features": (
            folder / "in.pkl",
            [
                ("shard", folder / "in.pkl", folder / "s"),
                ("predict", run, folder / "in.pkl", "--out", folder / "p.csv"),
            ],
        ),
        "table": (folder / "in.parquet", [("shard", folder / "in.parquet", folder / "s")]),
        "arrow": (folder / "in.arrow", [("shard", folder / "in.arrow", folder / "s")]),
        "published": (folder / "in.pth", [("import", folder / "in.pth", folder / "r", "--preset", "mosi-aligned")]),
        "index": (
            folder / "set" / "index.parquet",
            [
                ("inspect", folder / "set"),
                ("verify", folder / "set"),
                ("evaluate", run, "--data", folder / "set"),
            ],
        ),
        "tar": (folder / "tars" / "train-0.tar", [("index", folder / "tars")]),
    }


NAMES = (
    "run.json",
    "metrics.jsonl",
    "manifest.json",
    "model.json",
    "weights",
    "preset",
    "hostfile",
    "features",
    "table",
    "arrow",
    "published",
    "index",
    "tar",
)
SOUND = {("preset", kind) for kind in ("empty", "null", "object", "bom", "nul")} | {
    ("metrics.jsonl", kind) for kind in BROKEN
}  # a torn last line is what a kill leaves; see below for others
"""What is no mistake."""


@pytest.mark.slow
@pytest.mark.parametrize("what", NAMES)
def test_a_broken_file_is_one_line(made, capsys, what):
    path, commands = readers(made)[what]
    whole = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    try:
        for kind, raw in BROKEN.items():
            path.write_bytes(raw)
            for arguments in commands:
                capsys.readouterr()
                code = command(*arguments)
                error = capsys.readouterr().err.strip()
                where = f"{what}, {kind}: {arguments[0]} gave {code}: {error[:300]}"
                if (what, kind) in SOUND and code == 0:
                    continue
                if what == "manifest.json":  # one checkpoint of several: the listing says which is damaged
                    assert code in (0, 1, 2), where
                    continue
                assert code == 2, where
                assert 1 <= len(error.splitlines()) <= 2, where
                assert len(error) < 2000, where
    finally:
        path.unlink()
        if whole is not None:
            path.write_bytes(whole)


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b'{"step": -1, "a/b": 1}',
        b'{"step": "1", "a/b": 1}',
        b'{"step": true}',
        b'{"step": 1, "a/b": "x"}',
        b'{"step": 1, "a/b": [1]}',
        b'{"step": 1.5}',
        b'{"time": 1, "a/b": 1}',
        b'{"step": 1, "a/b": 1' + b"0" * 400 + b"}",
        b"[" * DEEP,
    ],
)
def test_a_line_of_the_log_that_tells_no_step_is_named(made, capsys, line):
    assert parse_line(line) is None
    path = made["run"] / "metrics.jsonl"
    whole = path.read_bytes()
    try:
        path.write_bytes(line + b"\n" + whole)
        assert command("report", made["run"], "--out", made["folder"] / "out") == 2
        assert "line 1 is damaged" in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


CHANGES: list[tuple[str, Any]] = [
    ("config", []),
    ("config", {"model": {"levels": 10**9}}),
    ("config", {"model": {"dim": 10**12, "heads": 1}}),
    ("config", {"train": {"learning_rate": float("nan")}}),
    ("config", {"nosuch": {}}),
    ("data", {}),
    ("data", None),
    ("data/dims", {"text": "x", "audio": 1, "vision": 1}),
    ("data/dims", {"text": 2**40, "audio": 5, "vision": 5}),
    ("data/lengths", {"text": -1, "audio": 1, "vision": 1}),
    ("data/lengths", {"text": 50, "audio": 50}),
    ("data/text_kind", "tokens"),
    ("data/text_kind", 3),
    ("text_encoder", []),
    ("text_encoder", {"model_type": "bert"}),
]


@pytest.mark.parametrize(("where", "value"), CHANGES)
def test_a_model_that_declares_what_it_is_not_is_rejected(made, tmp_path, capsys, where, value):
    card = json.loads((made["export"] / "model.json").read_text())
    snapshot = chosen_checkpoint(made["run"])
    state = json.loads(json.dumps(snapshot.state)) | {"best_step": None}
    for content in (card, state):
        *above, last = where.split("/")
        inner = content[above[0]] if above else content
        inner[last] = value
    shutil.copytree(made["export"], tmp_path / "export")
    (tmp_path / "export" / "model.json").write_text(json.dumps(card))
    (tmp_path / "run").mkdir()
    shutil.copy(made["run"] / "run.json", tmp_path / "run")
    write_checkpoint(
        tmp_path / "run" / "checkpoints",
        Snapshot(step=snapshot.step, model=snapshot.model, optimizer={"none": torch.zeros(1)}, state=state),
        keep=2,
    )
    for name, model in (("predict", "export"), ("predict", "run"), ("evaluate", "run"), ("export", "run")):
        more = {"predict": (made["shards"], "--out", tmp_path / "p.csv"), "evaluate": (), "export": (tmp_path / "e",)}
        capsys.readouterr()
        assert command(name, tmp_path / model, *more[name]) == 2, (name, model)
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1, error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {seed: 1, seed: 2}", "is there twice"),
        ("train:\n  seed: 1\ntrain:\n  epochs: 2\n", "is there twice"),
        ("a: &x [1]\nb: *x", "an alias"),
        ("[" * DEEP, "nested too deep"),
        ("a: 2020-13-45", "month"),
        ("train: {learning_rate: .nan}", "must be a finite number"),
        ("train: {clip_at: .inf}", "must be a finite number"),
        ("model: {relu_dropout: .nan}", "finite number|rate lies"),
    ],
)
def test_a_preset_says_each_thing_once_and_finite(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_config(file=tmp_path / "x.yaml")


@pytest.mark.parametrize("key", ["train.learning_rate", "train.clip_at", "train.save_minutes", "text.learning_rate"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", ".nan", "1e999"])
def test_no_number_of_a_config_is_endless(key, value):
    with pytest.raises(ValueError, match=r"must be|valid"):
        load_config(None, [f"{key}={value}"])


def test_other_files_of_every_kind(tmp_path):
    """Readers that no quick command reaches."""
    path = tmp_path / "file"
    (tmp_path / "trials" / "0").mkdir(parents=True)
    for kind, raw in BROKEN.items():
        path.write_bytes(raw)
        (tmp_path / "trials" / "0" / "trial.json").write_bytes(raw)
        for read in (
            lambda: load_space(path, Config()),
            lambda: read_hosts(path),
            lambda: keep_request(path, {"config": {}, "seed": 1}),
            lambda: TrialRecords(tmp_path),
        ):
            with pytest.raises(ValueError, match=r"\w"):
                read()
            assert kind
    assert parse_yaml("{a: 1}") == {"a": 1}


def test_declared_sizes_are_bounded(shards, tmp_path, monkeypatch, capsys):
    from data_shards.reading.index import ShardIndex

    info = json.loads(ShardIndex.load(shards).info.to_json())
    for change in (
        {"lengths": dict.fromkeys(("text", "audio", "vision"), 1 << 40)},
        {"vocab_size": "x"},
        {"vocab_size": -1},
        {"tokenizer": {"name": "x"}},
        {"tokenizer": {"name": "x", "digest": 1}},
        {"dims": dict.fromkeys(("text", "audio", "vision"), 1 << 30)},
    ):
        with pytest.raises(ValueError, match="the index"):
            DatasetInfo.from_json(json.dumps(info | change))
    bomb = pa.table(
        {
            "split": ["train"] * 4,
            "id": list("abcd"),
            "label": [0.0, 1.0, 2.0, -1.0],
            **{m: pa.array([[[0.0] * 3]] * 4) for m in ("text", "audio", "vision")},
        }
    )
    pq.write_table(bomb, tmp_path / "in.parquet")
    assert command("shard", tmp_path / "in.parquet", tmp_path / "s") == 0
    capsys.readouterr()
    monkeypatch.setattr("data_shards.sources.memory.free_memory", lambda: 100)
    assert command("shard", tmp_path / "in.parquet", tmp_path / "s2") == 2
    assert "write it with smaller row groups" in capsys.readouterr().err
