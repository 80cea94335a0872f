"""What a user can choose: the config of a training, its presets, and how both are read.

`schema` holds the typed tree of frozen dataclasses, one per section of the config. `loading` makes a `Config` from a
preset of `presets/`, a file and overrides such as `train.epochs=30`, and writes one as a dictionary into checkpoints
and run.json. `options` gives these to a command line, `explain` says what a key means, `reference` writes
docs/configuration.md from the dataclasses.

    preset, file, overrides -> load_config -> Config -> config_to_dict -> run.json -> config_from_dict -> Config

The names below load torch where they are used; `options` and `preset_files` do without, so that `--help` is quick.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmd.config.loading import config_from_dict, config_to_dict, load_config
    from dmd.config.preset_files import preset_names
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


def __getattr__(name: str) -> Any:
    """The names above, each from its module."""
    if name not in __all__:
        raise AttributeError(f"module 'dmd.config' has no attribute {name!r}")
    from dmd.config import loading, preset_files, schema

    return next(getattr(module, name) for module in (schema, loading, preset_files) if hasattr(module, name))
