"""Models shared: an export with its README, pushed to a hub on loopback and fetched from there."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import constants

import dmd
from dmd.checkpoint.format import list_checkpoints
from dmd.config.loading import config_to_dict, load_config
from dmd.data.targets import scoring_of
from dmd.inference.export import CARD, PROGRAM, WEIGHTS, example
from dmd.inference.readme import README, readme
from dmd.inference.training_facts import Measured, TrainingFacts
from dmd.system.trained_model import ModelCard, TrainedModel, config_of
from tests.support.commands import command, rejected
from tests.support.hub import WRITER, Hub, serve_hub

NAME = "me/dmd-tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve_hub(str(tmp_path / "hub"), monkeypatch) as served:
        yield served


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "tiny"
    assert dmd.save(run, out, program=False) == "not asked for"
    return out


def sentiments(model: TrainedModel) -> torch.Tensor:
    return model.predict(**example(model.card, 5)).sentiment


def message(name: str = NAME, **options: object) -> str:
    with pytest.raises(ValueError, match=name) as raised:
        dmd.from_pretrained(name, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def files(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    repository = hub.repositories[NAME]
    return repository.commits[repository.branches[branch]]


def test_what_is_pushed_predicts_the_same_where_it_is_fetched(hub, run, monkeypatch):
    url = dmd.push_to_hub(run, NAME, token=WRITER, license="mit", program=False)
    assert url.startswith(hub.server.url)
    assert set(files(hub)) == {WEIGHTS, CARD, README}
    assert f'from_pretrained("{NAME}")' in files(hub)[README].decode()
    model = dmd.from_pretrained(NAME, device="cpu")
    assert sentiments(model).equal(sentiments(dmd.load(run, "cpu")))
    first = hub.repositories[NAME].branches["main"]

    last = dmd.load(run, "cpu", step="last")
    dmd.push_to_hub(last, NAME, token=WRITER, program=False, commit_message="the last")
    assert sentiments(dmd.from_pretrained(NAME, device="cpu")).equal(sentiments(last))
    assert not sentiments(model).equal(sentiments(last))
    assert sentiments(dmd.from_pretrained(NAME, revision=first, device="cpu")).equal(sentiments(model))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sentiments(dmd.from_pretrained(NAME, device="cpu")).equal(sentiments(last))  # what was fetched


def test_an_export_is_pushed_as_it_is_by_the_command(hub, run, exported, tmp_path, capsys, monkeypatch):
    assert "there is no token to push to" in rejected(capsys, "export", run, tmp_path / "out", "--push", NAME)
    assert not (tmp_path / "out").exists()
    assert "--private is of the repository" in rejected(capsys, "export", run, tmp_path / "out", "--private")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert command("export", run, tmp_path / "out", "--no-program", "--push", NAME, "--private") == 0
    assert f'dmd.from_pretrained("{NAME}")' in capsys.readouterr().out
    assert hub.repositories[NAME].private
    assert files(hub)[WEIGHTS] == (exported / WEIGHTS).read_bytes()

    copy = tmp_path / "edited"
    shutil.copytree(exported, copy)
    (copy / README).write_text("---\nlicense: mit\n---\nmine\n")
    (copy / PROGRAM).write_bytes(b"no program of torch.export, which nobody loads")
    dmd.push_to_hub(copy, NAME, revision="other")
    assert files(hub, "other")[README] == (copy / README).read_bytes() != files(hub)[README]
    assert set(files(hub, "other")) == {WEIGHTS, CARD, README, PROGRAM} > set(files(hub))
    dmd.from_pretrained(NAME, revision="other")
    assert not hub.server.served(PROGRAM)
    (copy / PROGRAM).unlink()
    dmd.push_to_hub(copy, NAME, revision="other")
    assert set(files(hub, "other")) == {WEIGHTS, CARD, README}  # no program of other weights
    (copy / README).unlink()  # as an older program wrote it
    dmd.load(copy)
    dmd.push_to_hub(copy, NAME)
    assert HubCard(files(hub)[README].decode()).data.model_name == "dmd-tiny"


def test_what_goes_wrong_with_a_hub_is_said(hub, exported, monkeypatch):
    assert "there is no model" in message("me/nothing")
    assert "no name on the hub" in message("a/b/c")
    assert "no name on the hub" in message(str(exported / "nowhere"))
    with pytest.raises(ValueError, match="leave it out"):
        dmd.from_pretrained(exported, revision="main")
    with pytest.raises(ValueError, match="there is no token to push to me/dmd-tiny with"):
        dmd.push_to_hub(exported, NAME)
    with pytest.raises(ValueError, match="does not let this token write") as raised:
        dmd.push_to_hub(exported, NAME, token="hf_secret")
    assert "hf_secret" not in str(raised.value)
    with pytest.raises(ValueError, match="line break") as raised:
        dmd.push_to_hub(exported, NAME, token="hf_secret\n")
    assert "hf_secret" not in str(raised.value)
    with pytest.raises(ValueError, match="is an export, which has its checkpoint"):
        dmd.push_to_hub(exported, NAME, token=WRITER, step=1)

    dmd.push_to_hub(exported, NAME, token=WRITER, private=True)
    assert "the token does not see it" in message()
    assert "has no revision 'v9'" in message(revision="v9", token=WRITER)
    hub.server.faults, hub.server.part = ["flip"], WEIGHTS
    damaged = message(token=WRITER)
    assert "its sha256 differs" in damaged
    assert "to download it again, remove" in damaged
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-new")
    assert sentiments(dmd.from_pretrained(NAME, token=WRITER)).equal(sentiments(dmd.load(exported)))

    repository = hub.repositories[NAME]
    repository.commits["1" * 40] = {WEIGHTS: files(hub)[WEIGHTS]}
    repository.branches["main"] = "1" * 40
    assert "has no model.json" in message(token=WRITER)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in message("me/never-fetched")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in message("me/never-fetched")
    with pytest.raises(ValueError, match="cannot be reached"):
        dmd.push_to_hub(exported, NAME, token=WRITER)


def edit_on_hub(hub: Hub, text: bytes, commit: str) -> None:
    repository = hub.repositories[NAME]
    repository.commits[commit] = files(hub) | {README: text}
    repository.branches["main"] = commit


def test_a_push_never_makes_public_what_is_private(hub, exported, capsys, monkeypatch, tmp_path):
    dmd.push_to_hub(exported, NAME, token=WRITER)
    before = hub.repositories[NAME].branches["main"]
    with pytest.raises(ValueError, match="me/dmd-tiny: it is there and public, but a private repository was asked for"):
        dmd.push_to_hub(exported, NAME, token=WRITER, private=True, revision="other")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    options = ("--no-program", "--push", NAME, "--private")
    assert "no model was uploaded" in rejected(capsys, "export", exported, tmp_path / "out", *options)
    assert hub.repositories[NAME].branches == {"main": before}
    hub.repositories[NAME].private = True
    dmd.push_to_hub(exported, NAME, private=True)
    with pytest.raises(ValueError, match="it is there and private, but a public repository was asked for"):
        dmd.push_to_hub(exported, NAME, private=False)


def test_a_readme_that_was_changed_on_the_hub_stays(hub, run, exported, tmp_path, caplog):
    shutil.copytree(exported, tmp_path / "mine")
    (tmp_path / "mine" / README).write_text("---\nlicense: mit\n---\nmine\n")
    for export in (exported, tmp_path / "mine", exported):  # what was changed before a push is replaced by the next
        dmd.push_to_hub(export, NAME, token=WRITER)
        assert (b"mine" in files(hub)[README]) == (export != exported)
    assert not caplog.records
    edit_on_hub(hub, b"changed on its page\n", "1" * 40)
    for _ in range(2):
        dmd.push_to_hub(dmd.load(run, "cpu", step="last"), NAME, token=WRITER, program=False)
        assert files(hub)[README] == b"changed on its page\n"
        assert files(hub)[WEIGHTS] != (exported / WEIGHTS).read_bytes()
    assert [record.message for record in caplog.records] == 2 * [
        "warning: README.md of me/dmd-tiny was changed on the hub since the last push, so it stays; --replace-readme, "
        "or replace_readme=True, replaces it"
    ]
    fetched = dmd.from_pretrained(NAME, device="cpu")
    dmd.save(fetched, tmp_path / "again", program=False)
    assert "pushed_readme" not in (tmp_path / "again" / CARD).read_text()
    dmd.push_to_hub(exported, NAME, token=WRITER, replace_readme=True)
    dmd.push_to_hub(exported, NAME, token=WRITER)
    assert b"changed on its page" not in files(hub)[README]
    assert len(caplog.records) == 2
    hub.before_commit = lambda: edit_on_hub(hub, b"meanwhile\n", "2" * 40)
    with pytest.raises(ValueError, match=r"me/dmd-tiny cannot be pushed to: .* answers 412"):
        dmd.push_to_hub(exported, NAME, token=WRITER)
    assert files(hub)[README] == b"meanwhile\n"


def test_an_export_that_fails_leaves_the_one_before(run, exported, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    (out / PROGRAM).write_bytes(b"of these weights")
    (out / ".new").mkdir()  # of a process that was killed
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    model = dmd.load(run, "cpu", step="last")
    model.card.source["step"] = {1, 2}  # which no JSON can say
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        dmd.save(model, out, program=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    dmd.save(run, out, step="last", program=False)
    assert {path.name for path in out.iterdir()} == {WEIGHTS, CARD, README}
    assert sentiments(dmd.load(out)).equal(sentiments(dmd.load(run, "cpu", step="last")))


def test_the_readme_says_what_the_run_says(run, exported, tmp_path, caplog):
    text = (exported / README).read_text()
    front = HubCard(text).data
    step = dmd.load(exported).card.source["step"]
    assert command("evaluate", run, "--json", tmp_path / "valid.json") == 0
    valid = json.loads((tmp_path / "valid.json").read_text())
    results = {result.metric_name: result for result in front.eval_results}
    assert {result.dataset_split for result in results.values()} == {"valid"}
    found = results["MAE (protocol mosi)"]
    assert (found.dataset_name, found.dataset_revision) == (valid["data"], valid["generation"])
    assert found.metric_value == pytest.approx(valid["metrics"]["fused"]["mae"], rel=1e-6)
    assert (front.license, front.library_name, front.datasets) == (None, "dmd-cluster", ["synthetic"])
    for part in (
        "a sentiment from -3 to 3",
        "| audio | 5 features | 50 |",
        f"checkpoint: step {step} (",
        "train 70, valid 10, test 20",
        "`model.dim=8`",
        "nothing of the test split",
        "No license was chosen",
    ):
        assert part in text
    assert str(run) not in text

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert command("evaluate", copy, "--split", "test", "--json", copy / "test.json") == 0
    dmd.save(copy, tmp_path / "tested", program=False)
    splits = {result.dataset_split for result in HubCard.load(tmp_path / "tested" / README).data.eval_results}
    assert splits == {"valid", "test"}
    result = json.loads((copy / "test.json").read_text())
    with caplog.at_level(logging.WARNING):
        for damaged in (result | {"step": 10**6}, result | {"metrics": {"fused": {"mae": "low"}}}, []):
            (copy / "test.json").write_text(json.dumps(damaged))
            dmd.save(copy, tmp_path / "tested", program=False)
            assert "nothing of the test split" in (tmp_path / "tested" / README).read_text()
    assert len(caplog.records) == 3


def test_a_readme_claims_nothing_of_other_weights(run, exported, tmp_path):
    kept, changed = dmd.load(run, "cpu"), dmd.load(exported, "cpu")
    dmd.save(dmd.load(exported), tmp_path / "again", program=False)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (exported / WEIGHTS).read_bytes()
    dmd.save(tmp_path / "again", tmp_path / "again", program=False)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (exported / WEIGHTS).read_bytes()
    dmd.save(kept, tmp_path / "memory", program=False)
    for name in ("again", "memory"):
        assert "Result on the validation split" in (tmp_path / name / README).read_text()
    for model in (kept, changed):
        with torch.no_grad():
            next(model.modules.parameters()).mul_(2)
        dmd.save(model, tmp_path / "changed", program=False)
        assert "No validation of these weights is known" in (tmp_path / "changed" / README).read_text()
        assert sentiments(dmd.load(tmp_path / "changed")).equal(sentiments(model))


def card(*overrides: str, **data: object) -> ModelCard:
    config = load_config("recommended", overrides)
    sizes = {"text": 6, "audio": 7, "vision": 8}
    about = {"name": "set|1", "generation": "g", "text_kind": "features", "dims": sizes, "lengths": sizes, **data}
    encoder = {"model_type": "bert"} if about["text_kind"] == "tokens" else None
    return ModelCard(config=config_to_dict(config), data=about, text_encoder=encoder, source={"step": 3})


@pytest.mark.parametrize(
    "described, said",
    [
        (card("model.task=regression", label_scale=1.5, label_offset=3.0), "sentiment from 1 to 5"),
        (card("model.task=3"), "one of 3 classes: negative, neutral, positive"),
        (
            card("model.task=2", "data.classes=stored", class_names=["calm", "angry"], protocol="meld"),
            "one of 2 classes: calm, angry",
        ),
        (
            card("model.task=multilabel", "model.emotions=2", "data.classes=emotions", emotions=["joy", "fear"]),
            "which of 2 emotions are there: joy, fear",
        ),
        (
            card(
                "model.task=regression",
                "text.encoder=/home/someone/bert",
                text_kind="tokens",
                tokenizer={"name": "/home/someone/bert", "digest": "d1"},
                extraction={"audio": "librosa", "text_encoder": "/home/someone/bert"},
            ),
            "began as `bert` (type bert, trained)",
        ),
    ],
)
def test_a_readme_of_every_kind_of_model(described, said):
    scoring = scoring_of(config_of(described), described.data)
    about = {"data": "set|1", "generation": "g", "protocol": scoring.protocol, "samples": None}
    metrics = {row.name: 0.5 for row in scoring.rows()}
    facts = TrainingFacts(
        measured=(Measured(**about, split="valid", metrics=metrics | {scoring.rows()[0].name: None}),)
    )
    text = readme(described, facts, name="any", license=None)
    assert said in text
    assert "someone" not in text
    assert len(HubCard(text).data.eval_results) == len(metrics) - 1
    assert all(f"| {row.title}" in text for row in scoring.rows())
    without = readme(described, None, name="any", license="mit")
    assert "No validation of these weights is known" in without
    assert HubCard(without).data.license == "mit"
    assert HubCard(without).data.get("eval_results") is None


def test_an_export_that_is_not_what_was_written_is_noticed(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[-1] ^= 16
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match="its sha256 differs"):
        dmd.load(copy)
    card = json.loads((copy / CARD).read_text())
    card["source"]["training"]["counts"] = "many"
    shutil.copy(exported / WEIGHTS, copy / WEIGHTS)
    (copy / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="counts of the training is damaged"):
        dmd.save(copy, tmp_path / "out", program=False)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / README).write_text("mine")
    with pytest.raises(ValueError, match="holds other files than an export"):
        dmd.save(exported, tmp_path / "text", program=False)


def test_any_checkpoint_of_a_run_is_taken_and_said(run, shards, tmp_path, capsys):
    steps = [info.step for info in list_checkpoints(run / "checkpoints")]
    best = dmd.load(run).card.source["step"]
    assert command("checkpoints", run) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    roles = {step: line[header.index("role") :].strip() for step, line in zip(steps, lines, strict=True)}
    assert [step for step in steps if "best" in roles[step]] == [best]
    assert [step for step in steps if "last" in roles[step]] == [max(steps)]
    for option, step in (("--best", best), ("--last", max(steps)), (f"--step={min(steps)}", min(steps))):
        assert command("evaluate", run, option) == 0
        assert f"checkpoint of step {step}\n" in capsys.readouterr().out
        assert command("predict", run, shards, option) == 0
        assert f"checkpoint of step {step}\n" in capsys.readouterr().out
        assert command("predict", run, shards, option, "--out", tmp_path / f"{option}.csv") == 0
        assert f"checkpoint of step {step}\n" in capsys.readouterr().out
        assert command("export", run, tmp_path / option, option, "--no-program") == 0
        assert f"checkpoint of step {step}, " in capsys.readouterr().out
        assert dmd.load(tmp_path / option).card.source["step"] == step
    first, last = (tmp_path / f"{name}.csv" for name in (f"--step={min(steps)}", "--last"))
    assert first.read_text() != last.read_text()
    assert command("predict", run, shards, "--out", f"{tmp_path}/parts/", "--step", min(steps)) == 0
    assert f"checkpoint of step {min(steps)}\n" in capsys.readouterr().out
    error = rejected(capsys, "predict", run, shards, "--out", f"{tmp_path}/parts/", "--last")
    assert f"predictions with another step: {min(steps)}, not {max(steps)}; give another --out, or the --step" in error


def test_a_checkpoint_that_is_not_there_is_named(run, exported, shards, capsys):
    there = ", ".join(str(info.step) for info in list_checkpoints(run / "checkpoints"))
    for name, more in (("evaluate", ()), ("predict", (shards,)), ("export", (run.parent / "never",))):
        error = rejected(capsys, name, run, *more, "--step", 999)
        assert f"there is no checkpoint of step 999 in {run}/checkpoints; steps that are there: {there}" in error
    for option in (("--step", 1), ("--best",), ("--last",), ("--average", 2), ("--soup",)):
        assert "is an export, which holds one checkpoint" in rejected(capsys, "predict", exported, shards, *option)
        error = rejected(capsys, "evaluate", exported, "--data", shards, *option)
        assert "holds no checkpoint: an export, which `dmd predict` reads; `dmd evaluate` takes runs" in error
    for step in ("newest", True, 1.5):
        with pytest.raises(ValueError, match="it must be the step of a checkpoint, 'best' or 'last'"):
            dmd.load(run, step=step)
    with pytest.raises(SystemExit):
        command("evaluate", run, "--step", "first")
    assert "'first' is no step; give a number" in capsys.readouterr().err
