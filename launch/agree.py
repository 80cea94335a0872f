"""What the ranks of a training must have in common, compared before its first step.

Each rank prepares its part (`prepare`), then all of them compare one digest of what they were given and of what they
are. Where it differs, or where some of them could not prepare, every rank raises the same error, which names host and
value. That costs two small collectives, and a third one where there is something to tell.

The run directory's identity is a file that rank 0 leaves in it for the others to find.
"""

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_shards.schema import DatasetInfo
from dmd.config import Config
from dmd.data.plan import EpochPlan
from dmd.presets import config_to_dict
from dmd.training.agreement import StorageFailed
from dmd.training.provenance import git_commit, versions

HOST_KEYS = frozenset({"data.workers", "data.check", "text.encoder", "text.compile"})
"""Config keys that may differ from host to host: they change speed, or name a place (an encoder that is in it is
compared by its configuration, and rank 0's weights go to all ranks)."""
CODE = "code"
RUN = "the run directory"
_SIGHT_SECONDS = 10
"""How long a rank looks for rank 0's file: network storage shows a new name to other hosts some seconds later."""
_SHOWN = 3

Prepared = TypeVar("Prepared")


class Disagreement(ValueError):
    """The ranks were not given the same, or one of them was refused what the others got; raised on every rank."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one rank has to say."""

    rank: int
    host: str
    facts: dict[str, str]
    refusal: str | None = None
    """Why it cannot train; None where it can."""
    storage: bool = False
    """Whether that was the storage."""


def agree(device: torch.device, run: Path, prepare: Callable[[], tuple[Prepared, dict[str, str]]]) -> Prepared:
    """Prepare this rank's part of a training, and make sure that all ranks have the same one. A collective.

    Args:
        prepare: returns what it has prepared and the facts about it (`facts_of`), by name.

    Raises:
        ValueError: what `prepare` raises, where it does on every rank alike.
        Disagreement: a fact differs, or only some ranks were refused.
        StorageFailed: the run directory cannot be written, or the storage failed while a rank prepared.
    """
    if dist.get_world_size() == 1:
        return prepare()[0]
    with _mark(device, run) as name:
        prepared: Prepared | None = None
        facts, refusal, storage = dict[str, str](), None, False
        try:
            prepared, facts = prepare()
        except (ValueError, OSError) as error:
            refusal, storage = str(error), isinstance(error, OSError)
        facts = {RUN: _identity(run, name), **facts}
        own = Report(
            rank=dist.get_rank(), host=socket.gethostname(), facts=facts, refusal=refusal, storage=storage
        )  # fmt: skip
        if not _all_alike(device, own):
            _raise_difference(_gather(own))
    assert prepared is not None
    return prepared


def facts_of(
    *, config: Config, info: DatasetInfo, plan: EpochPlan, resume: str, precision: str, encoder: dict[str, Any] | None
) -> dict[str, str]:
    """What must be the same on every rank, by the name that an error gives it.

    Args:
        precision: of the network's products on this rank's device.
        encoder: configuration of the text encoder.
    """
    facts = {"the data generation": info.generation, CODE: code_digest(), "--resume": resume}
    for section, values in config_to_dict(config).items():
        facts |= {f"{section}.{name}": json.dumps(value) for name, value in values.items()}
    known = {k: v for k, v in (encoder or {}).items() if k not in ("_name_or_path", "transformers_version")}
    facts |= {
        "the text encoder": _digest(json.dumps(known, sort_keys=True, default=str)),
        "the epoch plan": f"{plan.num_samples} samples in {plan.num_steps} steps on {plan.num_ranks} ranks",
        "the precision on its device": precision,
    }
    facts |= {f"the version of {name}": version for name, version in versions().items()}
    return {name: fact for name, fact in facts.items() if name not in HOST_KEYS}


@cache
def code_digest() -> str:
    """A digest of this program's source files, as they are on this host."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(file for floor in ("data_shards", "dmd", "launch") for file in (root / floor).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def explain(reports: list[Report]) -> str:
    """What differs between the ranks, in one line."""
    refused = [report for report in reports if report.refusal is not None]
    if refused:
        others = f" (and {len(refused) - 1} more ranks cannot)" if len(refused) > 1 else ""
        first = refused[0]
        return f"rank {first.rank} on {first.host} cannot train: {first.refusal}{others}"
    names = list(dict.fromkeys(name for report in reports for name in report.facts))
    different = [name for name in names if len({report.facts.get(name) for report in reports}) > 1]
    told = "; ".join(f"{name} is {_by_value(name, reports)}" for name in different[:_SHOWN])
    more = f"; and {len(different) - _SHOWN} more differ" if len(different) > _SHOWN else ""
    if different == [RUN]:
        way = "put --run on storage that all hosts share"
    else:
        way = "give every host the same command, shards, code and packages"
    return f"the ranks were not given the same: {told}{more}; {way}"


def _by_value(name: str, reports: list[Report]) -> str:
    """`1 on node1 (rank 0), 2 on node2 (ranks 1, 2)`."""
    places: dict[str, list[Report]] = {}
    for report in reports:
        places.setdefault(report.facts.get(name, "nothing"), []).append(report)
    told = []
    for value, where in places.items():
        hosts = ", ".join(dict.fromkeys(report.host for report in where))
        ranks = ", ".join(str(report.rank) for report in where)
        told.append(f"{value} on {hosts} (rank{'s' if len(where) > 1 else ''} {ranks})")
    return ", ".join(told)


def _raise_difference(reports: list[Report]) -> None:
    refusals = {report.refusal for report in reports}
    first = next((report for report in reports if report.refusal is not None), None)
    if first is not None and any(report.storage for report in reports) and all(
        report.storage or report.refusal is None for report in reports
    ):  # fmt: skip
        raise StorageFailed(explain(reports))
    if first is not None and len(refusals) == 1:
        raise ValueError(first.refusal)
    raise Disagreement(explain(reports))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _all_alike(device: torch.device, own: Report) -> bool:
    """Whether all ranks have the same facts and none was refused."""
    digest = hashlib.sha256(json.dumps([own.facts, own.refusal]).encode()).digest()
    mine = torch.tensor([own.refusal is not None, *digest], dtype=torch.uint8, device=device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    return not mine[0] and all(torch.equal(mine, other) for other in every)


def _gather(own: Report) -> list[Report]:
    facts = dict(own.facts)
    if CODE in facts:
        facts[CODE] += f" (commit {git_commit() or 'unknown'})"
    reports: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, Report(**{**vars(own), "facts": facts}))
    return reports


@contextmanager
def _mark(device: torch.device, run: Path) -> Iterator[str]:
    """A file of rank 0's in the run directory while the block runs; yields its name. A collective.

    Raises:
        StorageFailed: rank 0 cannot write there; on every rank.
    """
    leads = dist.get_rank() == 0
    made: list[Path] = []
    told: list[str | None] = [f".ranks-{uuid.uuid4().hex}", None]
    if leads:
        try:
            made = _make_directory(run)
            (run / str(told[0])).touch(exist_ok=False)
        except OSError as error:
            told[1] = f"rank 0 on {socket.gethostname()} cannot write to {run}: {error.strerror}"
    dist.broadcast_object_list(told, device=device)
    name, failure = str(told[0]), told[1]
    if failure is not None:
        raise StorageFailed(failure)
    try:
        yield name
    except BaseException:
        if leads:
            _remove(run / name)
            for directory in made:
                with suppress(OSError):
                    directory.rmdir()
        raise
    if leads:
        _remove(run / name)


def _make_directory(run: Path) -> list[Path]:
    """Make the run directory; returns what was made for it, the innermost first."""
    made = [path for path in (run, *run.parents) if not path.exists()]
    run.mkdir(parents=True, exist_ok=True)
    return made


def _remove(mark: Path) -> None:
    with suppress(OSError):
        mark.unlink()


def _identity(run: Path, name: str) -> str:
    """What this rank sees of the run directory: rank 0's file, or another directory, or none."""
    end = time.monotonic() + _SIGHT_SECONDS
    while True:
        with suppress(OSError):
            os.listdir(run.parent)  # makes a network file system ask its server anew
            if name in os.listdir(run):
                return "that of rank 0"
        if time.monotonic() > end:
            return f"another one at {run}" if run.is_dir() else f"not there at {run}"
        time.sleep(0.2)
