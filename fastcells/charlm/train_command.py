"""`fastcells train`: a text in, a run folder out; or a run folder in, and the run goes on."""

from __future__ import annotations

import argparse
import contextlib
import shlex

import torch

from fastcells.charlm.allocator import keep_freed_memory
from fastcells.charlm.epoch import Diverged
from fastcells.charlm.extras import board, need
from fastcells.charlm.job import Job, prepare
from fastcells.charlm.progress import Progress, Sample
from fastcells.charlm.stop import StopRequest
from fastcells.charlm.threads import Threads
from fastcells.charlm.world import joined


def train_command(options: argparse.Namespace) -> int:
    """Train, and return the exit status."""
    keep_freed_memory()
    if options.plot:
        need("--plot", "matplotlib", "fastcells[plot]")
    if options.tensorboard:
        need("--tensorboard", "tensorboard", "tensorboard")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(joined())
        job = prepare(options, stack, world)
        threads = Threads(options.threads)
        stop = StopRequest()
        stack.enter_context(stop.listening())
        return _train(job, options, stop, threads)


def _train(job: Job, options: argparse.Namespace, stop: StopRequest, threads: Threads) -> int:
    times = {"save_every": options.save_every * 60, "report_every": options.report_every * 60}
    sample = Sample(job.vocabulary, job.prefixes, options.length, options.unknown)
    writer = board(job.run.path / "tensorboard") if options.tensorboard else None
    progress = Progress(job.run, job.training, sample, threads, writer=writer, **times)
    _introduce(job, progress, threads, options.summary)
    status, world = 0, job.training.world

    def asked() -> bool:
        return world.any(stop.asked, job.training.device)

    try:
        if not job.training.run(progress.step, progress.epoch, asked, progress.evaluation):
            status = 130
            progress.warn(f"interrupted after step {job.training.place.step} of {job.training.total}")
        path = progress.finish()
    except Diverged as error:
        status = 3
        progress.error(str(error))
        path = progress.finish(checkpoint=False)
    except KeyboardInterrupt:
        kept = "the start" if progress.saver.kept_step is None else f"step {progress.saver.kept_step}"
        progress.error(f"stopped at once; {job.run.path} holds the checkpoint of {kept}")
        return 130
    except RuntimeError as error:  # out of memory, a compiler that is missing: not the user's text, and all is kept
        status = 1
        lost = f"a process was lost, and step {progress.saver.kept_step or 0} is kept: go on with --resume. "
        progress.error((lost if world.size > 1 else "") + str(error).splitlines()[0])
        path = progress.finish(checkpoint=False)
    finally:
        progress.close()
    if options.plot and job.training.place.epoch and path == job.run.path:
        from fastcells.charlm import picture

        picture.draw(job.run)
    if path != job.run.path:
        return status or 1
    folder = shlex.quote(str(path))
    if status == 0:
        prefix = shlex.quote(job.prefixes[0])
        progress.say(f"try: fastcells generate {folder} --prefix={prefix} --temperature 0.8")
    elif status == 130:
        progress.say(f"go on with: fastcells train --resume {folder}")
    return status


def _introduce(job: Job, progress: Progress, threads: Threads, summarized: bool) -> None:
    training, model = job.training, job.training.model
    parts = [len(training.ids), len(training.validation), len(training.test)]
    words = f", of which {parts[1]:,} for validation and {parts[2]:,} for the test" if sum(parts[1:]) else ""
    if training.world.size > 1:
        progress.say(f"{training.world.size} processes, each with {training.config.batch // training.world.size} rows")
    progress.say(f"corpus {job.name}: {sum(parts):,} characters{words}, {len(job.vocabulary):,} distinct")
    parameters = sum(p.numel() for p in model.parameters())
    progress.say(f"model {model.layer}, {parameters:,} parameters; runs on {job.runs_on}")
    if summarized:
        for name, p in model.named_parameters():
            progress.say(f"  {name:24} {' x '.join(map(str, p.shape)):>14} {p.numel():>12,}")
    if training.device.type == "cpu":
        number, most = torch.get_num_threads(), threads.most
        words = ": others keep the rest busy; --threads sets it" if threads.follows and number < most else ""
        progress.say(f"threads {number} of {most}{words}")
    if training.done():
        progress.say(f"all {training.config.epochs} epochs are done, or patience is at its end: --epochs, --patience")
    elif training.place.step:
        progress.say(f"goes on after step {training.place.step:,} of {training.total:,}")
