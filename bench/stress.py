"""What a GPU has to survive before it is timed: more programs than it can hold, two streams at once, a graph replayed.

    python -m bench.stress              # every implementation that runs on this device
    python -m bench.stress --tiny       # a rehearsal: small shapes, on any device

Each check compares outputs and all gradients with torch.nn's. A check that takes longer than --seconds ends the
process with a traceback: a kernel that waits for programs that never start must not stop the machine.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.cases.case import CELLS, Case
from bench.cases.contenders import contenders, torch_nn
from bench.cases.model import Skipped
from bench.cases.task import Task, matmul_precision
from bench.measure.duel import prepare
from bench.measure.guard import GuardError, must_agree, tolerance
from bench.measure.program import program
from fastcells.dispatch import IMPLEMENTATIONS

Check = Callable[[Case, str, torch.device], None]


def oversubscribed(case: Case, contender: str, device: torch.device) -> None:
    """A batch that needs more programs than run side by side: right all the same, or refused with a reason."""
    programs = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    prepare(replace(case, B=16 * 3 * programs + 1), contender, device)


def two_streams(case: Case, contender: str, device: torch.device) -> None:
    """Two runs at once, each of which would like the whole card."""
    runs = [_numbers(case, contender, device) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in runs] if device.type == "cuda" else []
    found: list[Sequence[Tensor]] = []
    for index, run in enumerate(runs):
        if streams:
            streams[index].wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(streams[index] if streams else None):
            found.append(run())
    if streams:
        torch.cuda.synchronize()
    expected = _theirs(case, device)
    for numbers in found:
        must_agree(numbers, expected, tolerance(case))


def replayed(case: Case, contender: str, device: torch.device) -> None:
    """A CUDA graph replayed three times gives what it gave when recorded."""
    if device.type != "cuda":
        raise Skipped("CUDA graphs need a GPU")
    run = _numbers(case, contender, device)
    run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        numbers = run()
    for _ in range(3):
        for tensor in numbers:
            tensor.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        must_agree(numbers, _theirs(case, device), tolerance(case))


def _numbers(case: Case, contender: str, device: torch.device) -> Callable[[], Sequence[Tensor]]:
    task = Task(case, device)
    return program(task, contenders()[contender](task)).numbers


def _theirs(case: Case, device: torch.device) -> Sequence[Tensor]:
    task = Task(case, device)
    return program(task, torch_nn(task)).numbers()


CHECKS: dict[str, Check] = {"oversubscribed": oversubscribed, "two streams": two_streams, "graph replayed": replayed}


def main() -> int:
    """Run every check on every implementation; exit status 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=60, help="of one check, before the process is ended")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    options = parser.parse_args()
    device = torch.device(options.device)
    hidden = (8,) if options.tiny else (64, 128, 256)
    formats = (("float32", "strict"),) if options.tiny else (("float32", "strict"), ("bfloat16", ""))
    wrong = 0
    for impl, (name, check), cell, H, (dtype, precision) in itertools.product(
        IMPLEMENTATIONS, CHECKS.items(), CELLS[:1] if options.tiny else CELLS, hidden, formats
    ):
        case = Case(cell, "forward+backward", T=3 if options.tiny else 35, B=2 if options.tiny else 32, I=H, H=H)
        case = replace(case, dtype=dtype, precision=precision)
        faulthandler.dump_traceback_later(options.seconds, exit=True, file=2)
        try:
            with matmul_precision(case):
                check(case, f"fastcells-{impl}", device)
            verdict = "right"
        except Skipped as reason:
            verdict = f"refused: {reason}"
        except GuardError as error:
            wrong += 1
            verdict = f"WRONG: {error}"
        faulthandler.cancel_dump_traceback_later()
        print(f"{name:15} {impl:12} {case}: {verdict}", flush=True)
    print(f"{wrong} checks are WRONG" if wrong else "nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
