"""What a user can choose: the config of a training, its presets, and how both are read.

`schema` holds the typed tree of frozen dataclasses, one per section of the config. `loading` makes a `Config` from a
preset of `presets/` or a YAML file and from overrides such as `train.epochs=30`, and writes one as a dictionary into
checkpoints and run.json. `reference` writes docs/configuration.md from the dataclasses.

    preset or file, overrides -> load_config -> Config -> config_to_dict -> run.json -> config_from_dict -> Config
"""

from dmd.config.loading import config_from_dict, config_to_dict, load_config, preset_names
from dmd.config.schema import Config, DataConfig, TrainConfig

__all__ = [
    "Config",
    "DataConfig",
    "TrainConfig",
    "config_from_dict",
    "config_to_dict",
    "load_config",
    "preset_names",
]
