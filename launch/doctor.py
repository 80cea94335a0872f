"""`dmd doctor`: what to know before a long run. Each line is a fact, or a check that says ok or BAD."""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from data_shards.cores import usable_cores
from data_shards.durable import sync_directory, write_file
from dmd.kernels.backend import choose_execution, default_device
from dmd.kernels.common.cards import Card, card_of
from dmd.training.logging.provenance import versions
from launch.devices import num_gpus
from launch.network.interfaces import GLOO_INTERFACE, NCCL_INTERFACE, interface_to
from launch.starting.hosts import read_hosts

ALL_REDUCE = """
import os, sys, datetime, torch, torch.distributed as dist
backend, where, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
if backend == "nccl":
    torch.cuda.set_device(rank)
limit = datetime.timedelta(seconds=60)
dist.init_process_group(backend, init_method=f"file://{where}", rank=rank, world_size=2, timeout=limit)
value = torch.full((1000,), float(rank + 1), device="cuda" if backend == "nccl" else "cpu")
dist.all_reduce(value)
assert value.eq(3).all(), value
if rank == 0:
    print(backend)
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Finding:
    """One line: `ok` None for a fact that is neither good nor bad."""

    what: str
    text: str
    ok: bool | None = None


def diagnose(run: Path, hosts: Path | None, port: int) -> int:
    """Print what is found; 1 if a check fails.

    Args:
        run: where runs are to be written.
        hosts: a hostfile; None: this host alone.
        port: on the first host.
    """
    address = socket.gethostname() if hosts is None else read_hosts(hosts).first
    failed = 0
    for checks in (devices(), network(address, port), tools(), collectives(), storage(run)):
        for finding in checks:
            mark = {None: "    ", True: "ok  ", False: "BAD "}[finding.ok]
            print(f"{mark}{finding.what:<12} {finding.text}", flush=True)
            failed += finding.ok is False
    print("no check failed" if not failed else f"{failed} checks failed")
    return 1 if failed else 0


def devices() -> Iterator[Finding]:
    """Host, cores, memory, GPUs."""
    cores = usable_cores()
    memory = psutil.virtual_memory().total / 2**30
    yield Finding("host", f"{socket.gethostname()}, {platform.platform()}, {cores} cores, {memory:.0f} GiB")
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        card, properties = card_of(device), torch.cuda.get_device_properties(device)
        shared = getattr(properties, "shared_memory_per_block_optin", None)
        shared_text = "" if shared is None else f", {shared / 1024:.0f} KiB of shared memory per block"
        yield Finding("device", f"{device} {card}, {properties.total_memory / 2**30:.0f} GiB{shared_text}")
        if default_device().type == "cuda":
            yield how_it_trains(device)
    if not torch.cuda.is_available():
        yield Finding("device", f"cpu (torch {torch.__version__} sees no GPU)")
    if default_device().type == "cpu":
        yield how_it_trains(default_device())


def how_it_trains(device: torch.device, card: Card | None = None) -> Finding:
    """How a training with the default config runs on a device (of this card; None: the driver is asked)."""
    execution = choose_execution(device, card=card)
    return Finding("training", f"on {device}: kernels {execution.kernels}, precision {execution.precision}")


def network(address: str, port: int) -> Iterator[Finding]:
    """Interfaces, which one collectives take towards rank 0's host, and its port."""
    for name, addresses in psutil.net_if_addrs().items():
        numbers = [entry.address for entry in addresses if entry.family in (socket.AF_INET, socket.AF_INET6)]
        up = "up" if psutil.net_if_stats()[name].isup else "down"
        yield Finding("interface", f"{name} ({up}): {', '.join(numbers) or 'no address'}")
    try:
        name, own = interface_to(address)
    except ValueError as error:
        yield Finding("interface", str(error), ok=False)
        return
    chosen = {variable: os.environ[variable] for variable in (GLOO_INTERFACE, NCCL_INTERFACE) if variable in os.environ}
    reason = ", ".join(f"{key}={value}" for key, value in chosen.items()) or "the way to rank 0's host"
    taken = next(iter(chosen.values()), name)
    yield Finding("collectives", f"take {taken} ({reason}; this host is {own} towards {address})", ok=True)
    if own in ("127.0.0.1", "127.0.1.1", "::1"):
        yield Finding("collectives", f"{address} is a loopback here: good for one host; --hosts looks further")
    with socket.socket() as probe:
        busy = probe.connect_ex(("127.0.0.1", port)) == 0
    busy_text = "is taken on this host; give --port if it is to hold rank 0" if busy else "is free on this host"
    yield Finding("port", f"{port} {busy_text}", ok=not busy)


def tools() -> Iterator[Finding]:
    """Compiler (DeepSpeed and Triton build with it), remote shells, versions."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        needed = default_device().type == "cuda"
        yield Finding("compiler", "none; install g++: Triton's kernels need it", ok=False if needed else None)
    else:
        output = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
        yield Finding("compiler", f"{compiler}: {output[0] if output else 'says no version'}", ok=True)
    yield cuda_compiler(shutil.which("nvcc"), torch.version.cuda)
    if dist.is_nccl_available():
        yield Finding("nccl", ".".join(map(str, torch.cuda.nccl.version())))
    remote = [name for name in ("ssh", "pdsh") if shutil.which(name)]
    missing = sorted({"ssh", "pdsh"} - set(remote))
    advice = (
        f"without {', '.join(missing)}: use --host-rank on every host" if missing else "--hosts can start all hosts"
    )
    yield Finding("remote", advice)
    yield Finding("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))


def cuda_compiler(nvcc: str | None, cuda: str | None) -> Finding:
    """Whether an nvcc (its path) is of torch's CUDA version; nothing but DeepSpeed's FusedAdam asks for one."""
    purpose = "; train.adam=deepspeed alone needs it"
    if nvcc is None:
        return Finding("nvcc", f"none{purpose}")
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", output)
    own = "of an unknown version" if release is None else release[1]
    if cuda is None:
        return Finding("nvcc", f"{own} at {nvcc}, torch is built without CUDA{purpose}")
    match = "as torch is" if own == cuda else f"but torch is of CUDA {cuda}"
    return Finding("nvcc", f"{own} at {nvcc}, {match}{purpose}")


def collectives() -> Iterator[Finding]:
    """Two ranks of this machine add their numbers."""
    backend = "nccl" if num_gpus() > 1 else "gloo"
    environment = {**os.environ, GLOO_INTERFACE: "lo", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="dmd-doctor-") as folder:
        command = [sys.executable, "-c", ALL_REDUCE, backend, f"{folder}/store"]
        ranks = [
            subprocess.Popen(
                [*command, str(rank)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for rank in range(2)
        ]
        outputs = [rank.communicate() for rank in ranks]
    if any(rank.returncode for rank in ranks):
        errors = " / ".join(error.strip().splitlines()[-1] for _, error in outputs if error.strip())
        yield Finding("all-reduce", f"fails between two ranks of this host: {errors}", ok=False)
    else:
        yield Finding("all-reduce", f"two ranks of this host, {outputs[0][0].strip()}", ok=True)


def storage(run: Path) -> Iterator[Finding]:
    """Whether a directory can be written, renamed as a whole and made durable; how much room it has."""
    existing = next(path for path in (run.absolute(), *run.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free / 2**30
    try:
        with tempfile.TemporaryDirectory(prefix=".dmd-doctor-", dir=existing) as name:
            folder = Path(name)
            _try_rename(folder)
    except OSError as error:
        yield Finding("storage", f"{existing} cannot hold a run: {error}", ok=False)
        return
    yield Finding("storage", f"{existing} is writable, renames are whole; {free:.1f} GiB free", ok=free > 1)


def _try_rename(folder: Path) -> None:
    """Do what a checkpoint needs: new files, fsync, a directory that is renamed. Raises OSError."""
    staged, visible = folder / ".staged", folder / "visible"
    staged.mkdir()
    content = uuid.uuid4().bytes
    write_file(staged / "file", [content])
    sync_directory(staged)
    os.rename(staged, visible)
    sync_directory(folder)
    if staged.exists() or (visible / "file").read_bytes() != content:
        raise OSError("a renamed directory does not hold what was written")
