"""What ran, and how much memory it took: from torch's profiler, the operating system and the CUDA allocator."""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd.profiler import profile

MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Megabytes (2**20 bytes) above what was there before, at the worst moment of a call.

    allocated: by torch's allocator; exact, but blind to what a library takes for itself (oneDNN, C code).
    resident: pages that the operating system handed out, scratch of libraries and heap included, and pages that
    were asked for and never touched excluded. None where it cannot be known.
    """

    allocated: float
    resident: float | None


def operators(run: Callable[[], object]) -> set[str]:
    """The torch operators that `run` calls on the way, "aten::gru" among them."""
    with _silent(), profile() as recorded:
        run()
    return {event.name for event in recorded.function_events}


def kernels(run: Callable[[], object], device: torch.device) -> list[str]:
    """The GPU kernels that `run` launches, most time first; on a CPU the operators, for a rehearsal."""
    activity = torch.profiler.ProfilerActivity
    on_cpu = device.type == "cpu"
    activities = [activity.CPU] if on_cpu else [activity.CPU, activity.CUDA]
    with _silent(), torch.profiler.profile(activities=activities) as recorded:
        run()
        if not on_cpu:
            torch.cuda.synchronize()
    if on_cpu:
        return [e.key for e in sorted(recorded.key_averages(), key=lambda e: -e.self_cpu_time_total)]
    on_gpu = [e for e in recorded.key_averages() if e.device_type == torch.profiler.DeviceType.CUDA]
    return [e.key for e in sorted(on_gpu, key=lambda e: -e.self_device_time_total)]


def peak_memory(run: Callable[[], object], device: torch.device, repeat: int = 3) -> Memory:
    """Of one call; there must have been others before. repeat: how often to look at what the system hands out."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return Memory((torch.cuda.max_memory_allocated() - before) / MIB, None)
    return Memory(_allocated(run), _resident(run, repeat))


def _allocated(run: Callable[[], object]) -> float:
    with _silent(), profile(profile_memory=True) as recorded:
        result = run()
        del result
    assert recorded.kineto_results is not None
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / MIB


def _resident(run: Callable[[], object], repeat: int) -> float | None:
    """The growth of the largest resident set, which Linux lets a process reset; the median."""
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:  # not glibc
        return None
    grown = []
    for _ in range(repeat):
        trim(0)  # or pages kept from before would be used again, unseen
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            return None
        before = status("VmRSS")
        run()
        grown.append(status("VmHWM") - before)
    return max(0, statistics.median_low(grown)) / 1024


def status(key: str) -> int:
    """What Linux says of this process, "VmRSS" or the like, in kilobytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what torch's profiler writes to standard error, from C++, at every start and stop."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
