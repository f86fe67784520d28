"""The clock of a device, and what else a trial has to ask it: all that is CUDA's own is in one class here."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

CYCLES = 2000  # of a GPU, in a microsecond: as many as the fastest has
REPEATS = 3


class Clock(ABC):
    """Times what runs on one device."""

    @abstractmethod
    def microseconds(self, run: Callable[[], object], calls: int) -> float:
        """Of one call, over so many, until the device has done all of them."""

    def device_microseconds(self, run: Callable[[], object], host: float) -> float | None:
        """Of one call on the device alone, which does not wait for the host; None where they are one.

        host: microseconds that the host takes for a call, about.
        """
        return None

    @abstractmethod
    def wait(self) -> None:
        """Until the device has done what it was given. An error of an earlier launch is raised here."""

    @abstractmethod
    def capturing(self) -> bool:
        """Whether a CUDA graph records what is launched, instead of running it."""

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes that can still be had."""


class CpuClock(Clock):
    """Of the processor."""

    def microseconds(self, run: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) * 1e6 / calls

    def wait(self) -> None:
        pass

    def capturing(self) -> bool:
        return False

    def free_memory(self) -> int:
        try:
            with open("/proc/meminfo", encoding="ascii") as file:
                known = dict(line.split(":", 1) for line in file)
            return int(known["MemAvailable"].split()[0]) << 10
        except (OSError, KeyError, ValueError):
            return 4 << 30  # a guess, where the system does not say


class CudaClock(Clock):
    """Of a GPU: events on its current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def microseconds(self, run: Callable[[], object], calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.device)
        start.record(stream)
        for _ in range(calls):
            run()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / calls

    def device_microseconds(self, run: Callable[[], object], host: float) -> float | None:
        samples = []
        for _ in range(REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self.device)
            torch.cuda._sleep(int(CYCLES * (2 * host + 200)))  # until then the host has launched everything
            start.record(stream)
            run()
            end.record(stream)
            end.synchronize()
            samples.append(float(start.elapsed_time(end)) * 1e3)
        return statistics.median(samples)

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def free_memory(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0])


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()
