"""A trained model as one directory that anyone can load: `dmd export RUN DIR`, `dmd.save(run, DIR)`, `dmd.load(DIR)`.

    DIR/model.safetensors   weights of the network, its text encoder (of LoRA: the adapters) and its objective
    DIR/model.json          config, data shapes, text encoder, origin (`ModelCard`)
    DIR/README.md           the same for people and for the Hugging Face hub; nothing reads it back
    DIR/program.pt2         the same as a `torch.export` program, where PyTorch can make one

The program takes (text, audio, vision) with any number of samples and gives predictions [B, heads], on the scale
[-3, 3] of the shards (`label_scale` and `label_offset` of model.json lead back), or logits [B, heads, outputs], and of
DMD the edges of both GD-Units [B, 6]; `torch.export.load("DIR/program.pt2").module()` runs it without this package.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from data_shards.durable import read_entry, sync_directory, write_file
from data_shards.sole_writer import LEASE_FILE, sole_writer
from dmd.checkpoint.select import Step
from dmd.checkpoint.writer import tensor_bytes, weights_digest
from dmd.config.schema import TextConfig
from dmd.documents import EXPORTED
from dmd.errors import first_line
from dmd.evaluation.trained_run import read_again, read_run
from dmd.inference.readme import README, readme
from dmd.inference.training_facts import TRAINING, TrainingFacts, facts_from, facts_to_dict, read_facts
from dmd.kernels.backend import default_device
from dmd.model.lora import merge_lora
from dmd.system.trained_model import InferenceModules, ModelCard, TrainedModel

WEIGHTS, CARD, PROGRAM = "model.safetensors", EXPORTED, "program.pt2"
FILES = (WEIGHTS, CARD, README, PROGRAM)
"""Of an export; an older one has no README."""
SHA256 = "sha256"
"""Key of `ModelCard.source`: digest of the file of weights that the card belongs to; an older export has none."""
PUSHED_README = "pushed_readme"
"""Key of `ModelCard.source` on the hub: sha256 of the README that was pushed."""
FORMAT = 1
"""Version of this layout, part of model.json."""
PROGRAM_TOLERANCE = 1e-4
"""Largest difference of a prediction between the program and the model that is accepted."""
STAGED = ".new"
"""Directory in an export that holds what is being written."""
CPU = torch.device("cpu")


class DamagedExport(ValueError):
    """A file of an export is missing, or not what was written."""


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    *,
    step: Step | None = None,
    text_encoder: str | None = None,
) -> TrainedModel:
    """A trained model that predicts, without DeepSpeed and Ray: of an export, or of a checkpoint of a run.

    Args:
        path: directory that `dmd export` or a training wrote.
        device: where it runs; None: the GPU where there is one.
        step: which checkpoint of a run: its step, "best" or "last"; or the mean of several: "average:5", of the newest
            five that it keeps, or "soup". None: the best, or what an export holds.
        text_encoder: where the text encoder's own weights are, of a model that names them; None: where it says.

    Raises:
        ValueError: neither of the two, damaged, a step that is not there (the message has those that are), or a text
            encoder that is not here or has other weights.
    """
    card, weights = read_model(path, step, text_encoder=text_encoder)
    place = default_device() if device is None else torch.device(device)
    return TrainedModel(card, weights, place, text_encoder=text_encoder)


def read_model(
    path: str | Path, step: Step | None = None, *, text_encoder: str | None = None
) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card and weights of an export, or of a checkpoint of a run directory.

    Args:
        text_encoder: see `dmd.evaluation.trained_run.read_run`.

    Raises:
        ValueError: neither of the two, damaged, a step that is not there, or a step of an export.
    """
    path = Path(path)
    if is_export(path):
        card, weights = _read_export(path)
        if step is not None:
            raise ValueError(
                f"{path} is an export, which holds one checkpoint (step {card.source.get('step', 'unknown')}), but "
                f"{step!r} was asked for; leave it out (--step, --best, --last, --average, --soup), or name the run"
            )
        return card, weights
    if path.is_dir():
        return read_run(path, step, text_encoder=text_encoder)
    raise ValueError(f"there is no directory {path}; give a run, or what `dmd export` wrote")


def is_export(path: Path) -> bool:
    """Whether a directory is one that `dmd export` wrote."""
    return (path / CARD).is_file()


def export(
    model: TrainedModel | str | Path,
    out: Path,
    *,
    step: Step | None = None,
    program: bool = True,
    text_encoder: str | None = None,
    merge: bool = False,
    license: str | None = None,
    name: str | None = None,
) -> str | None:
    """Write a model as an export; returns why there is no program, None if there is one.

    An export that is there is replaced when the new one is whole, so that the storage needs room for both.

    Args:
        model: one in memory, which stays as it is; a run; or another export.
        step: which checkpoint of a run; None: the best.
        program: whether to make a `torch.export` program.
        text_encoder: see `TrainedModel`; what is found there is named in the export.
        merge: add LoRA's adapters to the weights of the text encoder, so that the export needs no base.
        license: what the README says, such as `mit`; None: nothing.
        name: what the README calls the model; None: as `out`.

    Raises:
        ValueError: no such checkpoint, nothing to merge, `out` holds files that are no export, or another process
            writes there.
    """
    check_out(out)
    return write_export(
        read_to_write(model, step, text_encoder),
        out,
        program=program,
        text_encoder=text_encoder,
        merge=merge,
        license=license,
        name=name,
    )


@dataclass(frozen=True, kw_only=True)
class ToWrite:
    """A model that was read, or is in memory, and is to be exported."""

    card: ModelCard
    weights: Mapping[str, Tensor]
    is_run: bool
    """Whether they were read from the run that the card names."""


def read_to_write(model: TrainedModel | str | Path, step: Step | None, text_encoder: str | None) -> ToWrite:
    """What `export` is to write; arguments and errors are those of `export`."""
    if not isinstance(model, TrainedModel):
        card, weights = read_model(model, step, text_encoder=text_encoder)
        return ToWrite(card=card, weights=weights, is_run=not is_export(Path(model)))
    if step is not None:
        raise ValueError(f"a model in memory has one set of weights, but step {step!r} was asked for; give the run")
    held = {name: tensor.detach() for name, tensor in model.modules.state_dict().items()}
    return ToWrite(card=model.card, weights=held, is_run=False)


def write_export(
    given: ToWrite,
    out: Path,
    *,
    program: bool,
    text_encoder: str | None,
    merge: bool,
    license: str | None,
    name: str | None,
) -> str | None:
    """Write a model that was read; arguments, return value and errors are those of `export`."""
    card, weights = given.card, given.weights
    facts = _facts(given)
    copy = TrainedModel(card, weights, CPU, text_encoder=text_encoder)
    card = copy.card
    if merge:
        card, weights = merged(copy)
    with sole_writer(out), _staged(out) as folder:
        # the library's own function makes a file that nobody else may read
        written = write_file(folder / WEIGHTS, tensor_bytes(dict(weights)))
        text = readme(card, facts, name=name or out.absolute().name, license=license)
        write_file(folder / README, [text.encode()])
        source = {key: value for key, value in card.source.items() if key not in (SHA256, TRAINING, PUSHED_README)}
        source |= {SHA256: written.sha256} | ({} if facts is None else {TRAINING: facts_to_dict(facts)})
        content = {"format": FORMAT, **asdict(replace(card, source=source))}
        write_file(folder / CARD, [card_text(content).encode()])
        return save_program(copy, folder / PROGRAM) if program else "not asked for"


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """An empty directory below `out` for what is to replace its content; gone when the block has ended."""
    folder = out / STAGED
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A directory whose files replace those of an export when the block has ended; where it raises, none does."""
    with staging_folder(out) as folder:
        yield folder
        (out / CARD).unlink(missing_ok=True)  # without it this is no export, after a kill
        for file in (PROGRAM, WEIGHTS, README, CARD):
            if (folder / file).exists():
                os.replace(folder / file, out / file)
            else:
                (out / file).unlink(missing_ok=True)
        sync_directory(out)


def card_text(content: dict[str, Any]) -> str:
    """The text of model.json, or of ensemble.json."""
    return json.dumps(content, indent=1) + "\n"


def check_out(out: Path) -> None:
    """Raise ValueError where a directory to export to holds other things than an export."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    is_lone_text = README in names and not names & {WEIGHTS, CARD}
    if is_lone_text or not names <= {*FILES, LEASE_FILE, STAGED}:
        raise ValueError(f"{out} holds other files than an export; give a new directory")


def _facts(given: ToWrite) -> TrainingFacts | None:
    """What is known of the training of these very weights; None: nothing."""
    card = given.card
    if TRAINING in card.source:
        is_same = card.source.get(SHA256) == weights_digest(given.weights)
        return facts_from(card.source[TRAINING], "the model") if is_same else None
    return read_facts(card) if given.is_run or _is_of_run(card, given.weights) else None


def _is_of_run(card: ModelCard, weights: Mapping[str, Tensor]) -> bool:
    """Whether the run that a model in memory names is here and holds these weights."""
    try:
        saved = read_again(card)
    except (KeyError, TypeError, ValueError, OSError):
        return False
    return saved.keys() == weights.keys() and all(saved[name].equal(weights[name].cpu()) for name in saved)


def merged(model: TrainedModel) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card and weights of a model whose adapters become part of its text encoder; the model's own are merged too.

    Raises:
        ValueError: a model without adapters.
    """
    card, encoder = model.card, model.modules.network.text_encoder
    if encoder is None or model.config.text.lora is None:
        raise ValueError("--merge, but the model has no adapters (text.lora_rank); export it without")
    if model.config.text.quantize != "none":
        raise ValueError("--merge, but adapters cannot be added to quantised weights (text.quantize); export without")
    merge_lora(encoder.network)
    of_encoder = f"{model.config.model.name}.text_encoder.network."
    own = {name: tensor for name, tensor in model.modules.state_dict().items() if not name.startswith(of_encoder)}
    whole = {f"{of_encoder}{name}": tensor for name, tensor in encoder.network.state_dict().items()}
    without = {name: value for name, value in asdict(TextConfig()).items() if name.startswith("lora_")}
    config = {**card.config, "text": card.config["text"] | without}
    return replace(card, config=config, text_base=None), own | whole


def save_program(model: TrainedModel, path: Path) -> str | None:
    """Write a model as a `torch.export` program; returns the reason where PyTorch cannot, None on success."""
    samples = example(model.card, 3)
    batch = torch.export.Dim("samples", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(
                model.modules, tuple(samples.values()), strict=False, dynamic_shapes=({0: batch},) * 3
            )
            other = example(model.card, 5)
            difference = _difference(program.module(), model.modules, other)
    except RuntimeError as error:
        return first_line(error, 200)
    if not difference <= PROGRAM_TOLERANCE:
        return f"its predictions differ from the model's by {difference:.1e}"
    torch.export.save(program, path)
    return None


def example(card: ModelCard, count: int) -> dict[str, Tensor]:
    """Synthetic samples of the shapes that a model reads, {modality: [count, ...]}."""
    generator = torch.Generator().manual_seed(count)
    samples = {m: torch.randn(count, *card.shape(m), generator=generator) for m in ("text", "audio", "vision")}
    if card.data["text_kind"] == "tokens":
        samples["text"] = torch.ones(count, *card.shape("text"), dtype=torch.int64)
        samples["text"][:, 2] = 0
    return samples


def _difference(program: torch.nn.Module, modules: InferenceModules, samples: dict[str, Tensor]) -> float:
    got, want = program(*samples.values()), modules(*samples.values())
    return max(float((g - w).abs().max()) for g, w in zip(got, want, strict=True))


def read_card(path: Path) -> ModelCard:
    """The card of an export, without its weights.

    Raises:
        ValueError: none, a damaged one, or one of another format.
    """
    with _named(path):
        content: dict[str, Any] = json.loads((path / CARD).read_bytes())
        version = content.pop("format")
        if version != FORMAT:
            raise ValueError(f"{path} has export format {version}, this program reads {FORMAT}; export the run again")
        return ModelCard(**content)


def _read_export(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    card = read_card(path)
    with _named(path):
        expected = card.source.get(SHA256)
        if expected is not None and read_entry(path / WEIGHTS).sha256 != expected:
            raise DamagedExport(
                f"{path} is no whole export ({WEIGHTS} is not what was written: its sha256 differs from that in "
                f"{CARD}); copy or download it again, or export the run again"
            )
        return card, safetensors.torch.load_file(path / WEIGHTS)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what a damaged file of an export raises in the block into a ValueError that names the export."""
    try:
        yield
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DamagedExport(f"{path} is no whole export ({reason}); export the run again") from error
