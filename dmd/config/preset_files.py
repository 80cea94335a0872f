"""The presets that are shipped: YAML files of `presets/`, one a data set or purpose. Needs no torch."""

from importlib.resources import files

_PRESETS = files("dmd.config").joinpath("presets")


def preset_names() -> list[str]:
    """Names that `load_config` knows."""
    return sorted(p.name.removesuffix(".yaml") for p in _PRESETS.iterdir() if p.name.endswith(".yaml"))


def preset_comment(name: str) -> str:
    """The first line of a preset: what it is for and where its values come from."""
    return preset_text(name).partition("\n")[0].removeprefix("#").strip()


def preset_text(name: str) -> str:
    """The file of a preset that there is."""
    return _PRESETS.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
