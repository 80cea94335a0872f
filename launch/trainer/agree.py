"""What the ranks of a training must have in common, compared before its first step.

Each rank prepares its part (`prepare`), then all of them compare a digest of their facts: config, data, code, versions.
Where it differs, or where some of them could not prepare, every rank raises the same error, which names host and
value. That takes two small collectives, and a third one where there is an error.

Rank 0 takes the right to write to the run directory (`data_shards.sole_writer`). The other ranks recognise the
directory by the lease that rank 0 has written there.
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
from data_shards.sole_writer import DirectoryInUse, Lease, acquire, read_token
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.data.plan import EpochPlan
from dmd.distributed.errors import StorageFailed
from dmd.model.text_base import TextBase
from dmd.training.logging.provenance import git_commit, versions

HOST_KEYS = frozenset({"data.reader", "data.workers", "data.check", "text.encoder", "text.compile"})
"""Config keys that may differ from host to host: they change speed, or name a directory. An encoder is compared by its
configuration, and all ranks get the weights of rank 0."""
CODE = "code"
RUN = "the run directory"
_VISIBLE_SECONDS = 10
"""How long a rank looks for rank 0's lease: network storage shows a new file to other hosts some seconds later."""
_MAX_NAMED = 3

Prepared = TypeVar("Prepared")


class Disagreement(ValueError):
    """The ranks were not given the same, or only some of them could prepare; raised on every rank."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The facts of one rank, or why it has none."""

    rank: int
    host: str
    facts: dict[str, str]
    rejection: str | None = None
    """Why it cannot train; None where it can."""
    storage_failed: bool = False
    """Whether that was an error of the storage."""


@dataclass(frozen=True)
class RunDirectory:
    """A run directory that rank 0 may write to."""

    path: Path
    token: str
    """Of its lease."""
    lease: Lease | None
    """The lease itself, on rank 0; None on the others."""

    def release(self) -> None:
        """End the right to write."""
        if self.lease is not None:
            self.lease.release()


def acquire_run_directory(device: torch.device, run: Path, *, group: str = "") -> RunDirectory:
    """Let rank 0 take the right to write to the run directory. A collective.

    Args:
        group: see `data_shards.sole_writer.acquire`.

    Raises:
        DirectoryInUse: another process writes there; on every rank.
        StorageFailed: the directory cannot be written; on every rank.
    """
    lease: Lease | None = None
    outcome = [("", "")]
    if dist.get_rank() == 0:
        try:
            lease = acquire(run, group=group)
            outcome = [("token", lease.token)]
        except ValueError as error:  # another writer, or something else in the lease's place
            outcome = [("held", str(error))]
        except OSError as error:
            outcome = [("storage", f"rank 0 on {socket.gethostname()} cannot write to {run}: {error.strerror}")]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, device=device)
    kind, text = outcome[0]
    if kind == "held":
        raise DirectoryInUse(text)
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
        Disagreement: a fact differs, or only some ranks could prepare.
        StorageFailed: the storage failed while a rank prepared.
    """
    if dist.get_world_size() == 1:
        return prepare()[0]
    prepared: Prepared | None = None
    facts: dict[str, str] = {}
    rejection = None
    storage_failed = False
    try:
        prepared, facts = prepare()
    except (ValueError, OSError) as error:
        rejection = str(error)
        storage_failed = isinstance(error, OSError)
    facts = {RUN: _identity(directory), **facts}
    own = Report(
        rank=dist.get_rank(), host=socket.gethostname(), facts=facts, rejection=rejection, storage_failed=storage_failed
    )
    if not _all_equal(device, own):
        _raise_difference(_gather(own))
    assert prepared is not None
    return prepared


def facts_of(
    *,
    config: Config,
    info: DatasetInfo,
    plan: EpochPlan,
    resume: str,
    precision: str,
    encoder: dict[str, Any] | None,
    base: TextBase | None = None,
) -> dict[str, str]:
    """What must be the same on every rank, by the name that an error gives it.

    Args:
        precision: of the network's products on this rank's device.
        encoder: configuration of the text encoder.
        base: its weights, where checkpoints name them.
    """
    facts = {"the data generation": info.generation, CODE: code_digest(), "--resume": resume}
    for section, values in config_to_dict(config).items():
        facts |= {f"{section}.{name}": json.dumps(value) for name, value in values.items()}
    known = {k: v for k, v in (encoder or {}).items() if k not in ("_name_or_path", "transformers_version")}
    facts |= {
        "the text encoder": _digest(json.dumps(known, sort_keys=True, default=str)),
        "the weights of the text encoder": "trained" if base is None else base.sha256[:16],
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
    rejected = [report for report in reports if report.rejection is not None]
    if rejected:
        others = f" (and {len(rejected) - 1} more ranks cannot)" if len(rejected) > 1 else ""
        first = rejected[0]
        return f"rank {first.rank} on {first.host} cannot train: {first.rejection}{others}"
    names = list(dict.fromkeys(name for report in reports for name in report.facts))
    different = [name for name in names if len({report.facts.get(name) for report in reports}) > 1]
    values = "; ".join(f"{name} is {_by_value(name, reports)}" for name in different[:_MAX_NAMED])
    more = f"; and {len(different) - _MAX_NAMED} more differ" if len(different) > _MAX_NAMED else ""
    if different == [RUN]:
        suggested_fix = "put --run on storage that all hosts share"
    else:
        suggested_fix = "give every host the same command, shards, code and packages"
    return f"the ranks were not given the same: {values}{more}; {suggested_fix}"


def _by_value(name: str, reports: list[Report]) -> str:
    """`1 on node1 (rank 0), 2 on node2 (ranks 1, 2)`."""
    places: dict[str, list[Report]] = {}
    for report in reports:
        places.setdefault(report.facts.get(name, "nothing"), []).append(report)
    texts = []
    for value, where in places.items():
        hosts = ", ".join(dict.fromkeys(report.host for report in where))
        ranks = ", ".join(str(report.rank) for report in where)
        texts.append(f"{value} on {hosts} (rank{'s' if len(where) > 1 else ''} {ranks})")
    return ", ".join(texts)


def _raise_difference(reports: list[Report]) -> None:
    rejections = {report.rejection for report in reports}
    first = next((report for report in reports if report.rejection is not None), None)
    if (
        first is not None
        and any(report.storage_failed for report in reports)
        and all(report.storage_failed or report.rejection is None for report in reports)
    ):
        raise StorageFailed(explain(reports))
    if first is not None and len(rejections) == 1:
        raise ValueError(first.rejection)
    raise Disagreement(explain(reports))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _all_equal(device: torch.device, own: Report) -> bool:
    """Whether all ranks have the same facts and all could prepare."""
    digest = hashlib.sha256(json.dumps([own.facts, own.rejection]).encode()).digest()
    mine = torch.tensor([own.rejection is not None, *digest], dtype=torch.uint8, device=device)
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
    """What this rank sees at the run directory: that of rank 0, another directory, or none."""
    end = time.monotonic() + _VISIBLE_SECONDS
    while True:
        with suppress(OSError):
            os.listdir(directory.path.parent)  # makes a network file system ask its server again
        if read_token(directory.path) == directory.token:
            return "that of rank 0"
        if time.monotonic() > end:
            return f"another one at {directory.path}" if directory.path.is_dir() else f"not there at {directory.path}"
        time.sleep(0.2)
