"""An ensemble as one directory: `dmd export RUN RUN DIR`, `dmd.save([run, run], DIR)`; `model_files` reads it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from data_shards.durable import sync_directory, write_file
from data_shards.places import PlaceLike
from data_shards.sole_writer import LEASE_FILE, sole_writer
from dmd.checkpoint.select import Step
from dmd.documents import finite
from dmd.evaluation.ensemble import Validated
from dmd.inference.calibrated_files import is_none, validated
from dmd.inference.ensemble import Calibration, Ensemble, check_encoder, encoder_for
from dmd.inference.ensemble_readme import ensemble_readme
from dmd.inference.export import (
    STAGED,
    ToWrite,
    card_text,
    is_export,
    read_to_write,
    staging_folder,
    write_export,
)
from dmd.inference.model_files import ENSEMBLE, MEMBER, EnsembleDocument, read_document, read_files
from dmd.inference.readme import README


def export_ensemble(
    models: Sequence[str | Path] | Ensemble,
    out: Path,
    *,
    step: Step | None = None,
    program: bool = True,
    text_encoder: str | None = None,
    merge: bool = False,
    license: str | None = None,
    name: str | None = None,
    calibration: PlaceLike | None = None,
) -> str | None:
    """Write an ensemble; returns why members have no program, None where all have one.

    Args:
        models: runs and exports; or an ensemble in memory, or the directory of one, whose calibration is kept.
        calibration: shards whose validation split calibrates it; None: those of the trainings; `none`: it is not
            calibrated. An ensemble in memory has its own.

    The others are those of `dmd.inference.export.export`, for each member.

    Raises:
        ValueError: as `export`, `read_files` and `with_calibration`.
    """
    check_ensemble_out(out)
    found: Validated | None = None
    known: Calibration | None = None
    metrics: dict[str, dict[str, float | None]] = {}
    if isinstance(models, Ensemble):
        if step is not None or calibration is not None:
            raise ValueError("an ensemble in memory has its checkpoints and its calibration; leave both out")
        members = [read_to_write(member, None, None) for member in models.members]
        known = models.calibration
    else:
        paths = [Path(path) for path in models]
        files = read_files(paths, step, text_encoder=text_encoder)
        check_encoder(files.cards, text_encoder)
        members = [
            ToWrite(card=card, weights=weights, is_run=not is_export(place))
            for (card, weights), place in zip(files.members, files.places, strict=True)
        ]
        if is_none(calibration):
            known = None
        elif files.calibration is not None and calibration is None:
            known, metrics = files.calibration, read_document(paths[0]).metrics
        else:
            found = validated(files, paths, data=calibration, text_encoder=text_encoder)
    cards = [member.card for member in members]
    if found is not None:
        known, metrics = found.calibration, finite(found.metrics)
    names = [f"member-{number:02d}" for number in range(1, len(members) + 1)]
    document = EnsembleDocument(members=tuple(names), calibration=known, metrics=metrics, source={})
    reasons = []
    with sole_writer(out), _staged(out) as folder:
        for member, directory in zip(members, names, strict=True):
            reasons.append(
                write_export(
                    member,
                    folder / directory,
                    program=program,
                    text_encoder=encoder_for(member.card, text_encoder),
                    merge=merge,
                    license=license,
                    name=f"{name or out.absolute().name}, {directory}",
                )
            )
            (folder / directory / LEASE_FILE).unlink(missing_ok=True)
        text = ensemble_readme(cards, document, name=name or out.absolute().name, license=license)
        write_file(folder / README, [text.encode()])
        write_file(folder / ENSEMBLE, [card_text(asdict(document)).encode()])
    return next((reason for reason in reasons if reason is not None), None)


def check_ensemble_out(out: Path) -> None:
    """Raise ValueError where a directory to export to holds other things than an exported ensemble."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    others = names - {ENSEMBLE, README, LEASE_FILE, STAGED}
    is_lone_text = README in names and ENSEMBLE not in names and not others
    if is_lone_text or not all(map(MEMBER.fullmatch, others)):
        raise ValueError(f"{out} holds other files than an exported ensemble; give a new directory")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A directory whose content replaces that of an exported ensemble when the block has ended, without an error."""
    with staging_folder(out) as folder:
        yield folder
        (out / ENSEMBLE).unlink(missing_ok=True)  # without it this is no ensemble, after a kill
        for path in [path for path in out.iterdir() if MEMBER.fullmatch(path.name)]:
            shutil.rmtree(path)
        (out / README).unlink(missing_ok=True)
        for name in sorted(path.name for path in folder.iterdir() if path.name != ENSEMBLE):
            os.replace(folder / name, out / name)
        sync_directory(out)
        os.replace(folder / ENSEMBLE, out / ENSEMBLE)
        sync_directory(out)
