"""What a session costs beside its time: CPU time, peak memory, energy; of the process that writes the record.

Counters are read, nothing is started. A counter that is not there, or that fails, is left out with the reason: no
training ends over it.

    meter = CostMeter("cuda:0")
    meter.look()       # now and then: counters of energy begin anew when they are full
    meter.facts()      # {"cpu_seconds": 12.3, "peak_memory": 812345344, "no_energy": "..."}

Sources: Linux `Documentation/power/powercap/powercap.rst` (RAPL counts microjoules of a whole processor package), NVML
`nvmlDeviceGetTotalEnergyConsumption` (millijoules of a whole GPU since its driver was loaded), getrusage(2).
"""

import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

POWERCAP = Path("/sys/class/powercap")
LOOK_SECONDS = 30.0
"""Between two readings of the energy."""
LONGEST_GAP = 600.0
"""Seconds without a reading behind which a counter of RAPL, which is full after some 260 kJ, is not believed."""
_KIB = 1024


class _NoEnergy(Exception):
    """Why the energy is not known."""


class _Counter(NamedTuple):
    """A counter of energy in joules, and where it begins anew; 0: nowhere."""

    read: Callable[[], float]
    size: float


class CostMeter:
    """Costs of this process since the meter was made.

    Args:
        device: where the training runs, as torch calls it.
        powercap: where Linux shows the counters of the processors.
    """

    def __init__(self, device: str, *, powercap: Path = POWERCAP) -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda" and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(self._device)
        self._cpu_at_start = time.process_time()
        self._joules = 0.0
        self._looked_at = time.monotonic()
        self._why_not = ""
        self._counters: list[_Counter] = []
        self._last: list[float] = []
        try:
            on_gpu = self._device.type == "cuda"
            self._counters = [_gpu_counter(self._device)] if on_gpu else _processor_counters(powercap)
            self._last = [counter.read() for counter in self._counters]
        except _NoEnergy as error:
            self._why_not = str(error)

    def look(self, *, now: bool = False) -> None:
        """Add the energy since the last reading where that is some time ago, or asked for."""
        elapsed = time.monotonic() - self._looked_at
        if self._why_not or (elapsed < LOOK_SECONDS and not now):
            return
        self._looked_at += elapsed
        try:
            for number, counter in enumerate(self._counters):
                value = counter.read()
                grown = value - self._last[number]
                if counter.size and elapsed > LONGEST_GAP:
                    raise _NoEnergy(f"its counter was not read for {elapsed:.0f} s, in which it may have begun anew")
                if grown < 0 and not counter.size:
                    raise _NoEnergy("its counter began anew")
                self._joules += grown if grown >= 0 else grown + counter.size
                self._last[number] = value
        except _NoEnergy as error:
            self._why_not = str(error)

    def facts(self) -> dict[str, Any]:
        """Seconds of CPU; bytes at the peak of the process's memory, since the process began, and of what torch held of
        the device, since the meter was made; joules, or why not."""
        self.look(now=True)
        found: dict[str, Any] = {
            "cpu_seconds": round(time.process_time() - self._cpu_at_start, 3),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        }
        if self._device.type == "cuda" and torch.cuda.is_initialized():
            found["peak_device_memory"] = torch.cuda.max_memory_allocated(self._device)
        if self._why_not:
            return {**found, "no_energy": self._why_not}
        of = "the GPU" if self._device.type == "cuda" else "the processors of the host, whatever else ran on them"
        return {**found, "joules": round(self._joules, 1), "energy_of": of}


def _processor_counters(powercap: Path) -> list[_Counter]:
    """A counter for each package of this host, without those of its parts, and of the whole platform (`psys`), which
    counts the packages too."""
    zones = sorted(powercap.glob("intel-rapl:[0-9]*"))
    packages = [zone for zone in zones if zone.name.count(":") == 1 and _name(zone).startswith("package")]
    if not packages:
        raise _NoEnergy(f"{powercap} shows no counter of energy (RAPL) on this host")
    return [
        _Counter(read=partial(_joules, zone / "energy_uj"), size=_joules(zone / "max_energy_range_uj"))
        for zone in packages
    ]


def _name(zone: Path) -> str:
    """What Linux calls a zone: `package-0`, `psys`."""
    try:
        return (zone / "name").read_text()
    except OSError:
        return ""


def _joules(path: Path) -> float:
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError) as error:
        raise _NoEnergy(f"{path} cannot be read ({type(error).__name__})") from error


def _gpu_counter(device: torch.device) -> _Counter:
    try:
        import pynvml
    except ImportError as error:
        raise _NoEnergy("pynvml is not installed (pip install nvidia-ml-py)") from error
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except (pynvml.NVMLError, RuntimeError, AttributeError) as error:
        raise _NoEnergy(f"NVML does not know the GPU ({error})") from error

    def read() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except pynvml.NVMLError as error:
            raise _NoEnergy(f"NVML tells no energy of the GPU ({error})") from error

    return _Counter(read=read, size=0.0)
