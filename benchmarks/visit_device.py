"""What a machine is: card, driver, versions, commit, what is missing, two measured rates. A CSV of fact and value.

python -m benchmarks.visit_device --out device.csv
"""

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.tables import Table, commit

QUERY = "name,driver_version,memory.total,memory.used,compute_cap,clocks.sm,clocks.mem,power.limit,temperature.gpu"
TOOLS = ("nvcc", "ninja", "g++", "compute-sanitizer", "ncu")
NEEDED = (
    "deepspeed",
    "pydantic",
    "webdataset",
    "ray",
    "triton",
    "pyarrow",
    "transformers",
    "tensorboard",
    "pytest",
    "xdist",
    "pytest_timeout",
    "hypothesis",
    "sklearn",
    "matplotlib",
    "moto",
)


def said(*command: str) -> str:
    """The output of a program; why not, if there is none."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"none ({error})"
    return (result.stdout or result.stderr).strip()


def facts(device: str) -> Iterator[tuple[str, object]]:
    """(fact, value), cheap ones first."""
    yield "commit", commit()
    yield "python", platform.python_version()
    yield "system", platform.platform()
    yield "cores", len(os.sched_getaffinity(0))
    yield "torch", torch.__version__
    yield "cuda of torch", torch.version.cuda
    for name in NEEDED:
        yield f"package {name}", "there" if importlib.util.find_spec(name) else "missing"
    for name in TOOLS:
        yield f"program {name}", shutil.which(name) or "missing"
    values = said("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    names = QUERY.split(",")
    for name, value in zip(names, values.split(", ") if values.count(",") else [values], strict=False):
        yield f"nvidia-smi {name}", value
    if device == "cpu":
        return
    import triton

    yield "triton", triton.__version__
    card = torch.cuda.get_device_properties(0)
    for name in (
        "name",
        "major",
        "minor",
        "multi_processor_count",
        "total_memory",
        "shared_memory_per_block_optin",
        "L2_cache_size",
        "regs_per_multiprocessor",
        "max_threads_per_multi_processor",
    ):
        yield name, getattr(card, name, "not reported")
    yield "cudnn", torch.backends.cudnn.version()
    yield "nccl", ".".join(map(str, torch.cuda.nccl.version()))
    yield "cuda_home", __import__("torch.utils.cpp_extension", fromlist=["CUDA_HOME"]).CUDA_HOME
    from benchmarks.rates import rates

    bandwidth, rate = rates(torch.device("cuda"))
    yield "copy, GB/s read and written", round(bandwidth / 1e9)
    yield "bf16 product of 8192, TFLOP/s", round(rate / 1e12)


def main() -> None:
    """Write the facts as they are found; the last line says which machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = Table(options.out, ["fact", "value"])
    found = {}
    for name, value in facts(options.device):
        found[name] = value
        table.add({"fact": name, "value": value})
        print(f"{name}: {value}", flush=True)
    missing = [name.split()[1] for name, value in found.items() if value == "missing"]
    card, driver = (found.get(f"nvidia-smi {name}", "none") for name in ("name", "driver_version"))
    print(f"{card}, driver {driver}, torch {torch.__version__}; missing: {' '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    main()
