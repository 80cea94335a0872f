"""Presets, overrides and their mistakes."""

import re

import pytest
import yaml

from dmd.config.loading import all_keys, config_from_dict, config_to_dict, load_config, parse_yaml, preset_names


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
    config = load_config(str(path), ["model.dim=15", "train.learning_rate=5e-5", "train.max_steps=null"])
    assert (config.model.dim, config.model.heads, config.train.seed) == (15, 3, 5)
    assert config.train.learning_rate == 5e-5
    assert config.train.max_steps is None


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.lr=1", "unknown config key 'train.lr', did you mean 'train.learning_rate'"),
        (
            "learning_rate=1",
            "'learning_rate', did you mean 'text.learning_rate' or 'train.learning_rate'",
        ),
        (
            "lr=1",
            "unknown config key 'lr', did you mean 'text.learning_rate' or 'text.lora_rank' or 'train.learning_rate'",
        ),
        ("model.dims=3", "unknown config key 'model.dims', did you mean 'model.dim'"),
        ("dim", "'dim' is not of the form section.key=value"),
        ("model=3", "unknown config key 'model'"),
        ("train.clip=foo", "train.clip is 'foo'; input should be 'none', 'value' or 'norm'"),
        ("model.heads=7", "model.heads is 7; it must divide model.dim, which is 50"),
        ("model.dim=abc", "model.dim is 'abc'"),
        ("train.seed=1.5", "train.seed is 1.5"),
        ("train.learning_rate=0", "train.learning_rate is 0"),
        ("model.text_dropout=1", "model.text_dropout is 1"),
        ("train.keep_checkpoints=1", "train.keep_checkpoints is 1; it must be at least 2"),
        ("objective.gamma=-1", "objective.gamma is -1"),
        ("train.plateau_factor=1", "train.plateau_factor is 1"),
        ("train.max_steps=0", "train.max_steps is 0"),
        ("data.window=0", "data.window is 0"),
        ("text.learning_rate=-1", "text.learning_rate is -1"),
        ("train.seed=[", "no valid YAML"),
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
        ("trian: {}", "unknown config key 'trian'"),
        ("train: 3", "config section 'train' is 3"),
    ],
)
def test_a_bad_preset_file(content, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(str(path))


def test_unknown_presets():
    with pytest.raises(ValueError, match="unknown preset 'mosi', did you mean 'mosi-aligned'"):
        load_config("mosi")
    with pytest.raises(ValueError, match=r"'gone.yaml' cannot be read"):
        load_config("gone.yaml")


def test_the_keys_are_those_of_a_written_config():
    written = config_to_dict(load_config(None))
    assert all_keys() == [f"{section}.{name}" for section, values in written.items() for name in values]


def test_off_is_a_word_and_a_switch(tmp_path):
    config = load_config(None, ["train.cuda_graph=off", "text.frozen=on", "data.check=off"])
    assert (config.train.cuda_graph, config.text.frozen, config.data.check) == ("off", True, False)
    preset = tmp_path / "own.yaml"
    preset.write_text("train: {cuda_graph: off}\ntext: {frozen: yes}\ndata: {check: false}\n")
    config = load_config(str(preset))
    assert (config.train.cuda_graph, config.text.frozen, config.data.check) == ("off", True, False)


def test_yaml_makes_plain_values_only():
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")
