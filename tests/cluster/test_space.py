"""Search spaces: what they draw, and every way in which a file can be wrong."""

import math
from pathlib import Path

import pytest

from cluster.search.recorded_search import RecordedSearch
from cluster.search.space import Space, apply, load_space
from cluster.search.strategies import make_strategy
from cluster.search.trial_records import TrialRecord, TrialRecords
from dmd.config import Config
from dmd.config.loading import config_to_dict

SPACE = """
train.learning_rate: {loguniform: [1e-5, 1e-3]}
model.levels: {int: [2, 4]}
train.clip: {choice: [value, none]}
train.clip_at: {uniform: [0.02, 0.2], when: {train.clip: value}}
"""


def read(text: str, folder: Path) -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return load_space(path, Config())


def test_draws(tmp_path):
    space = read(SPACE, tmp_path)
    draws = [space.random(7, number) for number in range(200)]
    assert draws == [space.random(7, number) for number in range(200)]
    assert draws != [space.random(8, number) for number in range(200)]
    assert {draw["model.levels"] for draw in draws} == {2, 3, 4}
    for draw in draws:
        assert 1e-5 <= draw["train.learning_rate"] <= 1e-3
        assert ("train.clip_at" in draw) == (draw["train.clip"] == "value")
        apply(Config(), draw)
    below = sum(draw["train.learning_rate"] < 1e-4 for draw in draws)
    assert 60 < below < 140, "half of a loguniform lies below the geometric mean"


def test_grid(tmp_path):
    space = read(
        "train.clip: {choice: [value, none]}\ntrain.clip_at: {choice: [0.1, 0.2], when: {train.clip: value}}\n"
        "model.levels: {int: [2, 3]}\n",
        tmp_path,
    )
    points = list(space.grid())
    assert len(points) == 6
    assert {"train.clip": "none", "model.levels": 3} in points
    with pytest.raises(ValueError, match=r"train\.learning_rate is loguniform: a grid needs choice or int"):
        list(read(SPACE, tmp_path).grid())


def test_a_grid_that_nobody_trains(tmp_path):
    names = ("decoupling_weight", "gamma", "distillation_weight", "margin_constant")
    choices = "".join(f"objective.{name}: {{choice: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}}\n" for name in names)
    space = read(f"model.levels: {{int: [1, 2]}}\n{choices}", tmp_path)
    with pytest.raises(ValueError, match="more than 10000 points; use another --search"):
        make_strategy("grid", space, 0)


def test_no_text(tmp_path):
    (tmp_path / "space.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        load_space(tmp_path / "space.yaml", Config())


def test_shipped_spaces():
    paths = sorted((Path(__file__).parents[2] / "cluster" / "spaces").glob("*.yaml"))
    assert paths
    published = config_to_dict(Config())
    for path in paths:
        parameters = load_space(path, Config()).parameters
        assert parameters
        for parameter in parameters:
            section, _, name = parameter.key.partition(".")
            value = published[section][name]
            if parameter.key == "text.learning_rate":
                value = value or published["train"]["learning_rate"]
            inside = value in parameter.choices or parameter.low <= value <= parameter.high
            assert inside, f"{path.name}: the published {parameter.key} is {value}"


@pytest.mark.parametrize(
    "text, message",
    [
        ("train.learning_rat: {uniform: [1, 2]}", r"unknown key 'train.learning_rat'.*did you mean train.learning_ra"),
        ("train.clip: {choice: []}", r"train.clip has the choice \[\]; list at least one"),
        ("train.learning_rate: {uniform: [2, 1]}", r"min is above max; swap"),
        ("train.learning_rate: {loguniform: [0, 1]}", r"min must be above 0"),
        ("train.learning_rate: {uniform: [1]}", r"give \[min, max\]"),
        ("train.learning_rate: {uniform: [a, b]}", r"give \[min, max\]"),
        ("train.learning_rate: {uniform: [1, .inf]}", r"give \[min, max\]"),
        ("model.levels: {int: [1.5, 3]}", r"give whole numbers"),
        ("model.levels: {normal: [1, 3]}", r"give it one of uniform, loguniform, int, choice"),
        ("model.levels: {int: [1, 3], step: 2}", r"give it one of"),
        ("model.levels: 3", r"give it one of"),
        ("data: {choice: [a, b]}", r"varies 'data', the shards, which is the same for every trial"),
        ("data.window: {int: [1, 3]}", r"varies 'data.window', the shards"),
        ("run: {choice: [a]}", r"varies 'run', the run directory"),
        ("train.seed: {int: [1, 3]}", r"varies 'train.seed', the seed"),
        ("train.clip_at: {uniform: [0.1, 0.2], when: {train.clip: value}}", r"depends on 'train.clip', which is not"),
        ("train.clip: {choice: [none]}\ntrain.clip_at: {uniform: [0.1, 0.2], when: {train.clip: value}}", "never appl"),
        ("model.levels: {int: [2, 3]}\nmodel.dim: {int: [50, 60], when: {model.levels: 4}}", r"of int \[2, 3\]"),
        ("train.clip: {choice: [value]}\ntrain.clip_at: {uniform: [0.1, 1], when: {train.clip: {a: 1}}}", "never appl"),
        ("train.clip_at: {uniform: [0.1, 1]}\nmodel.levels: {int: [2, 3], when: {train.clip_at: 0.1}}", "which is uni"),
        ("model.heads: {choice: [5, 7]}", r"can draw an impossible config: model.heads is 7; it must divide"),
        ("model.text_dropout: {uniform: [0.0, 1.0]}", r"impossible config: model.text_dropout is 1.0"),
        ("train.clip: {choice: [value, values]}", r"impossible config: train.clip is 'values'"),
        ("train.clip: {choice: [[1]]}", r"a choice is a number, a text"),
        ("- a", "is no mapping"),
        ("", "is no mapping"),
        ("a: [", "is no valid YAML"),
    ],
)
def test_bad_spaces(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(text, tmp_path)


def test_no_space_file(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read: No such file.*shipped ones: .*mosi\.yaml"):
        load_space(tmp_path / "space.yaml", Config())


def fill(trials: TrialRecords, search: RecordedSearch, count: int) -> list[dict]:
    """Let a search hand out trials whose loss is the distance of the learning rate from 1e-4."""
    values = []
    for _ in range(count):
        suggestion = search.suggest(f"ray-{len(trials.records)}")
        assert isinstance(suggestion, dict)
        record = trials.records[suggestion["number"]]
        record.note(1, abs(math.log10(suggestion["values"]["train.learning_rate"]) + 4), {})
        search.on_trial_complete(record.ray_id)
        values.append(suggestion["values"])
    return values


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_search_continues(method, tmp_path):
    """Trials that ended are not handed out again, one that was under way is, with its values."""
    space = read(SPACE, tmp_path)
    trials = TrialRecords(tmp_path)
    search = RecordedSearch(trials, make_strategy(method, space, 0), 5)
    fill(trials, search, 2)
    begun = search.suggest("killed")
    again = RecordedSearch(TrialRecords(tmp_path), make_strategy(method, space, 0), 5)
    assert again.num_left == 3
    assert again.suggest("a") == begun
    assert [again.suggest(name)["number"] for name in "bc"] == [3, 4]
    assert again.suggest("d") == "FINISHED"


def test_tpe_learns(tmp_path):
    """After a few trials it proposes near the optimum, also in a second session."""
    pytest.importorskip("optuna")
    space = read("train.learning_rate: {loguniform: [1e-6, 1e-2]}", tmp_path)
    first = TrialRecords(tmp_path)
    fill(first, RecordedSearch(first, make_strategy("tpe", space, 0), 40), 20)
    second = TrialRecords(tmp_path)
    late = fill(second, RecordedSearch(second, make_strategy("tpe", space, 1), 40), 20)
    distances = [abs(math.log10(values["train.learning_rate"]) + 4) for values in late]
    assert sum(distances) / len(distances) < 0.6, "independent draws are 1.0 away on average"


def test_a_record_that_repeats_an_epoch():
    record = TrialRecord(number=0, values={})
    for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7), (2, 0.8)):
        record.note(epoch, loss, {})
    assert record.losses == [(1, 0.9), (2, 0.8)]
