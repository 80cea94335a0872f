"""Presets, files, overrides and their mistakes; what the command line says about keys."""

import json
import re

import pytest
import yaml

from dmd.config import Config
from dmd.config.explain import annotated
from dmd.config.loading import all_keys, config_from_dict, config_to_dict, load_config, parse_yaml
from dmd.config.options import joined
from dmd.config.preset_files import preset_names
from tests.support.commands import command, rejected


def test_every_preset_loads_and_survives_a_round_trip():
    assert {"mosi-aligned", "mosi-unaligned", "mosei-aligned", "mosei-unaligned", "demo"} <= set(preset_names())
    for name in preset_names():
        config = load_config(name)
        assert config_from_dict(config_to_dict(config)) == config


def test_published_hyperparameters():
    mosi, mosei = load_config("mosi-aligned"), load_config("mosei-unaligned")
    assert (mosi.model.dim, mosi.model.heads, mosi.model.levels, mosi.train.learning_rate) == (50, 10, 4, 1e-4)
    assert (mosei.model.dim, mosei.model.heads) == (30, 6)
    assert mosei.model.kernels == {"text": 5, "audio": 1, "vision": 3}
    assert mosi.train.clip_at * mosi.train.ghost_batches_per_step == pytest.approx(0.6)


def test_overrides_win_over_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {dim: 12, heads: 3}\ntrain: {seed: 5}\n")
    config = load_config(None, ["model.dim=15", "train.learning_rate=5e-5", "train.max_steps=null"], file=path)
    assert (config.model.dim, config.model.heads, config.train.seed) == (15, 3, 5)
    assert config.train.learning_rate == 5e-5
    assert config.train.max_steps is None


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.lr=1", "unknown config key 'train.lr' (did you mean train.learning_rate"),
        (
            "learning_rate=1",
            "'learning_rate' (did you mean text.learning_rate or train.learning_rate",
        ),
        (
            "lr=1",
            "unknown config key 'lr' (did you mean text.learning_rate or text.lora_rank or train.learning_rate",
        ),
        ("model.dims=3", "unknown config key 'model.dims' (did you mean model.dim"),
        ("dim", "'dim' is not of the form section.key=value"),
        ("model=3", "unknown config key 'model'"),
        ("train.clip=foo", "train.clip is 'foo'; input should be 'none', 'value' or 'norm'"),
        ("model.heads=7", "model.heads is 7; it must divide model.dim, which is 50"),
        ("model.dim=abc", "model.dim is 'abc'"),
        ("train.seed=1.5", "train.seed is 1.5"),
        ("train.learning_rate=0", "train.learning_rate is 0"),
        ("model.text_dropout=1", "model.text_dropout is 1"),
        ("train.keep_checkpoints=1", "train.keep_checkpoints is 1; it must be at least 2"),
        ("train.trackers=[wandb,wandb]", "train.trackers is [wandb,wandb]; name each tracker once"),
        ("objective.gamma=-1", "objective.gamma is -1"),
        ("train.plateau_factor=1", "train.plateau_factor is 1"),
        ("train.max_steps=0", "train.max_steps is 0"),
        ("data.window=0", "data.window is 0"),
        ("text.learning_rate=-1", "text.learning_rate is -1"),
        ("train.seed=[", "no valid YAML"),
        ("train.epochs=010", "the value of train.epochs is '010'; 010 is a number in YAML's own notation"),
        ("train.epochs=5:30", "5:30 is a number in YAML's own notation; write it with decimal digits"),
        ("train.epochs=1_000", "1_000 is a number in YAML's own notation"),
        ("train.learning_rate=1:30.5", "1:30.5 is a number in YAML's own notation"),
        ("train.seed=9223372036854775808", "train.seed is 9223372036854775808; a whole number must fit into 64 bits"),
        (f"train.epochs={'9' * 400}", f"train.epochs is {'9' * 40}; a whole number must fit"),
    ],
)
def test_a_mistake_names_key_value_and_suggested_fix(override, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config("mosi-aligned", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("- 1", "holds a list"),
        ("a: [", "no valid YAML"),
        ("train: {epochs: 0x10}", "0x10 is a number in YAML's own notation"),
        ("trian: {}", "unknown config key 'trian'"),
        ("train: 3", "config section 'train' is 3"),
    ],
)
def test_a_bad_config_file(content, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(file=path)


def test_unknown_presets():
    with pytest.raises(ValueError, match=r"unknown preset 'mosi' \(did you mean mosi-aligned"):
        load_config("mosi")
    with pytest.raises(ValueError, match=r"'gone.yaml' cannot be read"):
        load_config(file="gone.yaml")
    with pytest.raises(ValueError, match=r"'mine.yaml' is a file; give it as --config mine.yaml"):
        load_config("mine.yaml")


def test_the_keys_are_those_of_a_written_config():
    written = config_to_dict(load_config(None))
    assert all_keys() == [f"{section}.{name}" for section, values in written.items() for name in values]


def test_off_is_a_word_and_a_switch(tmp_path):
    config = load_config(None, ["train.cuda_graph=off", "text.frozen=on", "data.check=off"])
    assert (config.train.cuda_graph, config.text.frozen, config.data.check) == ("off", True, False)
    preset = tmp_path / "own.yaml"
    preset.write_text("train: {cuda_graph: off}\ntext: {frozen: yes}\ndata: {check: false}\n")
    config = load_config(file=preset)
    assert (config.train.cuda_graph, config.text.frozen, config.data.check) == ("off", True, False)


def test_yaml_makes_plain_values_only():
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


def test_a_file_stands_between_preset_and_words(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {dim: 12, heads: 3}\ntrain: {learning_rate: 0.5}\n")
    config = load_config("mosei-aligned", ["model.dim=15"], file=tmp_path / "mine.yaml")
    assert (config.model.dim, config.model.heads, config.train.learning_rate) == (15, 3, 0.5)
    assert config.model.kernels == load_config("mosei-aligned").model.kernels


def test_what_a_command_prints_it_reads_back(tmp_path, capsys):
    """The whole config with odd values, over another preset."""
    odd = ["train.learning_rate=1e-05", "train.max_steps=7", "text.lora_rank=2", "text.lora_targets=[query, value]"]
    line = ["--preset", "mosei-aligned", *odd, "train.cuda_graph=off"]
    for name in ("train", "tune", "experiment"):
        assert command(name, *line, "--print-config") == 0
        printed = capsys.readouterr().out
        assert printed == annotated(load_config("mosei-aligned", line[2:]))
    (tmp_path / "all.yaml").write_text(printed)
    assert load_config("demo", file=tmp_path / "all.yaml") == load_config("mosei-aligned", line[2:])
    lines = printed.splitlines()
    assert "  learning_rate: 1.0e-05  # default: 0.0001" in lines
    assert "  seed: 1111" in lines
    assert lines[lines.index("  seed: 1111") - 1] == "  # Seed of weights, sample order and dropout."
    assert sum("# default: " in line for line in lines) == len(odd) - 1 + len(changed(load_config("mosei-aligned"))) + 1


def changed(config: Config) -> list[str]:
    """The keys that a config sets to another value than the default."""
    values, defaults = config_to_dict(config), config_to_dict(Config())
    return [key for section in values for key in values[section] if values[section][key] != defaults[section][key]]


def test_a_run_gives_its_config(tmp_path):
    written = load_config("demo", ["model.task=3", "train.seed=4"])
    (tmp_path / "run.json").write_text(json.dumps({"config": config_to_dict(written), "sessions": []}))
    assert load_config(file=tmp_path / "run.json") == written
    assert load_config(None, ["train.seed=5"], file=tmp_path / "run.json").train.seed == 5
    old = config_to_dict(written)
    del old["model"]["task"]
    (tmp_path / "run.json").write_text(json.dumps({"config": old}))
    assert load_config(file=tmp_path / "run.json").model.task == "regression"
    (tmp_path / "run.json").write_text('{"config": ')
    with pytest.raises(ValueError, match="is no JSON object"):
        load_config(file=tmp_path / "run.json")
    with pytest.raises(
        ValueError, match=f"must end in .yaml, .yml or .json; the config of a run is {tmp_path}/run.json"
    ):
        load_config(file=tmp_path)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("train.seed=3", ["train.seed=3"]),
        ("train.seed = 3 model.dim=8", ["train.seed=3", "model.dim=8"]),
        ("train.seed= 3 model.dim =8", ["train.seed=3", "model.dim=8"]),
        ("train.clip = norm train.seed = 3", ["train.clip=norm", "train.seed=3"]),
        ("text.encoder = a=b", ["text.encoder=a=b"]),
        ("seed", ["seed"]),
        ("", []),
    ],
)
def test_spaces_around_the_equals_sign(words, meant):
    assert joined(words.split()) == meant


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train.seed =", "train.seed= has no value; write train.seed=VALUE, or train.seed=null for none"),
        ("train.seed= model.dim=8", "train.seed= has no value"),
        ("train.seed = model.dim = 8", "'=' has no key before it"),
        ("= 3", "'=' has no key before it; write section.key=value"),
        ("train.seed=3 = 4", "'=' has no key before it"),
    ],
)
def test_an_equals_sign_that_lacks_something(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        joined(words.split())


def test_every_command_with_overrides_takes_spaces(capsys):
    for line in (["train"], ["tune"], ["experiment"]):
        assert command(*line, "--print-config", "train.seed", "=", "3") == 0
        assert "\n  seed: 3  # default: 1111\n" in capsys.readouterr().out


def test_keys_are_listed_and_explained(capsys):
    assert command("config") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed if re.match(r"[a-z_]+\.[a-z]", line)] == all_keys()
    assert command("config", "objective") == 0
    assert "\nobjective.gamma  " in capsys.readouterr().out
    assert command("config", "model.dim", "train.clip") == 0
    explained = capsys.readouterr().out
    assert "model.dim\n  type: int\n  default: 50\n" in explained
    assert "\n  preset mosei-aligned: 30\n" in explained
    assert "train.clip\n  type: none or value or norm\n" in explained
    assert "did you mean text.learning_rate or text.lora_rank or train.learning_rate?" in rejected(
        capsys, "config", "lr"
    )


def test_a_config_that_a_command_line_cannot_mean(capsys, tmp_path):
    assert "give it as --config x.yaml" in rejected(capsys, "train", "--preset", "x.yaml", "--print-config")
    assert "unknown config key 'train.sed'" in rejected(capsys, "tune", "--print-config", "train.sed", "=", "1")
    (tmp_path / "x.yaml").write_text("train: {sed: 1}")
    assert "unknown config key 'train.sed' (did you mean train.seed" in rejected(
        capsys, "experiment", "--config", tmp_path / "x.yaml", "--print-config"
    )
