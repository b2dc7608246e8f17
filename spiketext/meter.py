"""Floor 0: joules that were measured, where a meter exists: the processor's RAPL counters and NVIDIA's.

Linux shows the processor's counters in /sys/class/powercap (readable by root on most machines); a graphics card's come
through nvidia-ml-py, the extra `meter`. A model of the power that a machine ought to draw is no meter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
NONE = "not measurable here"


def measure(work: Callable[[], Any]) -> dict[str, Any]:
    """Run `work` once: {"seconds", "meters": {name: joules of the whole machine part}} or "meters": NONE.

    The joules are those of whole packages and cards, whatever else runs on them. A counter that wrapped is mended.
    """
    meters = _processor() | _cards()
    before = {name: read() for name, (read, _) in meters.items()}
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    joules = {}
    for name, (read, wraps_at) in meters.items():
        spent = read() - before[name]
        joules[name] = spent if spent >= 0 else spent + wraps_at
    return {"seconds": seconds, "meters": joules or NONE}


def _processor() -> dict[str, tuple[Callable[[], float], float]]:
    """Counters of packages: {name: (joules so far, joules at which it starts again)}."""
    found: dict[str, tuple[Callable[[], float], float]] = {}
    for folder in sorted(POWERCAP.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue  # a part of a package, which is in the package's counter
        try:
            wraps_at = int((folder / "max_energy_range_uj").read_text()) / 1e6
            int((folder / "energy_uj").read_text())
        except OSError:
            continue
        counter = folder / "energy_uj"
        found[f"processor {folder.name[11:]}"] = (lambda counter=counter: int(counter.read_text()) / 1e6, wraps_at)  # type: ignore[misc]
    return found


def _cards() -> dict[str, tuple[Callable[[], float], float]]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return {}
    found: dict[str, tuple[Callable[[], float], float]] = {}
    for number in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            continue  # older than Volta
        read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        found[f"card {number}"] = (lambda handle=handle, read=read: read(handle) / 1e3, float("inf"))  # type: ignore[misc]
    return found
