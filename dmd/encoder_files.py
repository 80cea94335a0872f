"""Whether the directory of a text encoder holds whole weights: looked at before a rank starts.

A clone without git-lfs holds pointers, a download that was interrupted the beginning of a file. Of safetensors the
header and its sizes are compared with the file; pickled weights are read as far as torch's `weights_only` goes.
"""

import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data_shards.file_kinds import TORCH_KINDS, check_file_kind
from dmd.errors import first_line

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
ADAPTER = "adapter_config.json"


def check_encoder_files(name: str) -> None:
    """Reject a local encoder directory whose weights are not there or not whole; hub names are left to the hub.

    Raises:
        ValueError: what is wrong with which file.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"text encoder {name!r} is a PEFT adapter ({ADAPTER}), which names another model; merge the two and give "
            "the merged model: text.encoder=PATH"
        )
    for path in _weights(folder):
        try:
            _check_weights(path)
        except ValueError as error:
            raise ValueError(f"text encoder {name!r}: {error}") from error


def _weights(folder: Path) -> list[Path]:
    """The files that transformers takes, in the order in which it looks for them."""
    for plain in (SAFE, PICKLED):
        if (folder / plain).exists():
            return [folder / plain]
        if (folder / f"{plain}{INDEX_SUFFIX}").exists():
            return _parts(folder / f"{plain}{INDEX_SUFFIX}")
    raise ValueError(f"text encoder {str(folder)!r} holds no weights ({SAFE}); give the directory of a whole model")


def _parts(index: Path) -> list[Path]:
    """The files that an index of weights names, each right beside it."""
    check_file_kind(index, "an index of weights", allowed=("a JSON file",))
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        outside = sorted(name for name in names if Path(name).name != name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weights; download the model again") from error
    if outside or not names:
        raise ValueError(f"{index} names no file beside it ({outside[:1]}); download the model again")
    return [index.with_name(name) for name in sorted(names)]


def _check_weights(path: Path) -> None:
    """Raise ValueError unless the file is whole and holds tensors alone."""
    safe = path.suffix == ".safetensors"
    known = ("a safetensors file",) if safe else (*TORCH_KINDS, "a pickle")
    check_file_kind(path, "the weights of a text encoder", allowed=known)
    try:
        if safe:
            with safe_open(path, framework="pt"):
                pass
        else:
            torch.load(path, map_location="meta", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is not whole ({error}); download it again") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = first_line(error, 200)
        raise ValueError(
            f"{path} is not whole, or holds more than tensors ({reason}); nothing in it was run; download it again, or "
            "give the model as safetensors"
        ) from error
