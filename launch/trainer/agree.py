"""What the ranks of a training must have in common, compared before its first step.

Each rank prepares its part (`prepare`), then all of them compare one digest of what they were given and of what they
are. Where it differs, or where some of them could not prepare, every rank raises the same error, which names host and
value. That costs two small collectives, and a third one where there is something to tell.

Rank 0 takes the right to write to the run directory (`data_shards.sole_writer`); its identity is the lease that rank 0
leaves there for the others to find.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_shards.format.schema import DatasetInfo
from data_shards.sole_writer import Held, Lease, acquire, read_token
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.data.plan import EpochPlan
from dmd.distributed.errors import StorageFailed
from dmd.training.logging.provenance import git_commit, versions

HOST_KEYS = frozenset({"data.workers", "data.check", "text.encoder", "text.compile"})
"""Config keys that may differ from host to host: they change speed, or name a place (an encoder that is in it is
compared by its configuration, and rank 0's weights go to all ranks)."""
CODE = "code"
RUN = "the run directory"
_SIGHT_SECONDS = 10
"""How long a rank looks for rank 0's lease: network storage shows a new name to other hosts some seconds later."""
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


@dataclass(frozen=True)
class RunDirectory:
    """A run directory that rank 0 may write to."""

    path: Path
    token: str
    """Of the lease there."""
    lease: Lease | None
    """The lease itself; on rank 0."""

    def leave(self) -> None:
        """Give the right to write back."""
        if self.lease is not None:
            self.lease.release()


def take_run_directory(device: torch.device, run: Path, *, group: str = "") -> RunDirectory:
    """Let rank 0 take the right to write to the run directory. A collective.

    Args:
        group: see `data_shards.sole_writer.acquire`.

    Raises:
        Held: another process writes there; on every rank.
        StorageFailed: the directory cannot be written; on every rank.
    """
    lease: Lease | None = None
    told = [("", "")]
    if dist.get_rank() == 0:
        try:
            lease = acquire(run, group=group)
            told = [("token", lease.token)]
        except ValueError as error:  # also something else in the lease's place
            told = [("held", str(error))]
        except OSError as error:
            told = [("storage", f"rank 0 on {socket.gethostname()} cannot write to {run}: {error.strerror}")]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(told, device=device)
    kind, text = told[0]
    if kind == "held":
        raise Held(text)
    if kind == "storage":
        raise StorageFailed(text)
    return RunDirectory(run, text, lease)


def agree(
    device: torch.device, directory: RunDirectory, prepare: Callable[[], tuple[Prepared, dict[str, str]]]
) -> Prepared:
    """Prepare this rank's part of a training, and make sure that all ranks have the same one. A collective.

    Args:
        prepare: returns what it has prepared and the facts about it (`facts_of`), by name.

    Raises:
        ValueError: what `prepare` raises, where it does on every rank alike.
        Disagreement: a fact differs, or only some ranks were refused.
        StorageFailed: the storage failed while a rank prepared.
    """
    if dist.get_world_size() == 1:
        return prepare()[0]
    prepared: Prepared | None = None
    facts, refusal, storage = dict[str, str](), None, False
    try:
        prepared, facts = prepare()
    except (ValueError, OSError) as error:
        refusal, storage = str(error), isinstance(error, OSError)
    facts = {RUN: _identity(directory), **facts}
    own = Report(rank=dist.get_rank(), host=socket.gethostname(), facts=facts, refusal=refusal, storage=storage)
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
    root = Path(__file__).parents[2]
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
    if (
        first is not None
        and any(report.storage for report in reports)
        and all(report.storage or report.refusal is None for report in reports)
    ):
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


def _identity(directory: RunDirectory) -> str:
    """What this rank sees of the run directory: rank 0's lease, or another directory, or none."""
    end = time.monotonic() + _SIGHT_SECONDS
    while True:
        with suppress(OSError):
            os.listdir(directory.path.parent)  # makes a network file system ask its server anew
        if read_token(directory.path) == directory.token:
            return "that of rank 0"
        if time.monotonic() > end:
            return f"another one at {directory.path}" if directory.path.is_dir() else f"not there at {directory.path}"
        time.sleep(0.2)
