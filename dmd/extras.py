"""Libraries that come with an extra of the installation: `pip install 'dmd-cluster[train]'`."""

from importlib.util import find_spec

EXTRA_OF = {
    "av": "extract",
    "bitsandbytes": "quantize",
    "deepspeed": "train",
    "h5py": "csd",
    "mediapipe": "extract",
    "mlflow": "track",
    "opensmile": "extract",
    "optuna": "optuna",
    "peft": "train",
    "ray": "ray",
    "s3fs": "remote",
    "tensorboard": "train",
    "wandb": "track",
    "webdataset": "train",
}
"""Library -> the extra of setup.cfg that installs it."""


def missing_library(error: ModuleNotFoundError) -> str:
    """What a user is told about a library that is not installed; "" where it is none of an extra."""
    library = (error.name or "").partition(".")[0]
    return _advice(library) if library in EXTRA_OF and find_spec(library) is None else ""


def require(library: str, *, extra: str | None = None) -> None:
    """Raise ValueError unless a library of an extra is installed; it is not imported.

    Args:
        extra: which one to install, of several that have it; None: that of `EXTRA_OF`.
    """
    if find_spec(library) is None:
        raise ValueError(_advice(library, extra))


def _advice(library: str, extra: str | None = None) -> str:
    return f"this needs {library}, which is not installed: pip install 'dmd-cluster[{extra or EXTRA_OF[library]}]'"
