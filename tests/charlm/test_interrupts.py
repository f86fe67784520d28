"""What happens from outside: kills, Ctrl-C, a full disk, a folder or a terminal that is gone. Nothing is lost."""

from __future__ import annotations

import errno
import gc
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastcells.charlm import RunFolder, load
from fastcells.charlm.cli import main
from fastcells.charlm.training import Training

TEXT = "the quick brown fox jumps over the lazy dog and the dog looks at the fox " * 8
SMALL = ["--hidden", "16", "--batch", "4", "--steps", "9", "--length", "5", "--device", "cpu", "--epochs", "3"]
STEPS = 48


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


def whole_losses(corpus: Path, tmp_path: Path) -> list[float]:
    assert main(["train", str(corpus), "--out", str(tmp_path / "whole"), *SMALL]) == 0
    return [row["loss"] for row in RunFolder(tmp_path / "whole").metrics()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).metrics()]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--kills 3 --each 3", "--signal SIGINT --kills 2 --each 2 --times 2"])
def test_killed_runs_go_on(arguments: str) -> None:
    """A handful; `make kill` has more."""
    command = [sys.executable, "-m", "tests.support.killed_runs", "--seed", "3", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "no run lost, losses and weights identical" in done.stdout


def test_damaged_files_are_refused_in_a_line() -> None:
    """Some; `make fuzz` has more. Seed 199 has a header at which numpy raises a TokenError."""
    command = [sys.executable, "-m", "tests.support.fuzzed_files", "--seed", "150", "--count", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something before a step of any training."""
    original = Training._step

    def acting(self: Training, *args: object) -> int:
        if self.place.step == step:
            action()
        return original(self, *args)

    monkeypatch.setattr(Training, "_step", acting)


class FullDisk:
    """`fsync` and appended lines fail as on a full disk, while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        fsync = os.fsync

        def failing(descriptor: int) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr("fastcells.charlm.files.os.fsync", failing)

    def fill(self) -> None:
        self.full = True

    def free(self) -> None:
        self.full = False


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_once_ends_after_the_step_and_twice_at_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for times, step, saved in ((1, 21, 21), (2, 20, 0)):
        run = tmp_path / f"run-{times}"
        with monkeypatch.context() as patch:
            at_step(patch, 20, lambda times=times: [interrupt() for _ in range(times)])
            assert main(["train", str(corpus), "--out", str(run), *SMALL]) == 130
        captured = capfd.readouterr()
        assert "stopping after this step, and saving; once more to stop at once" in captured.err
        if times == 1:
            assert f"interrupted after step {step} of {STEPS}" in captured.err and "saved in" in captured.out
        else:
            assert f"stopped at once; {run} holds the checkpoint of the start" in captured.err
        assert RunFolder(run).checkpoint()[1]["place"]["step"] == saved
        load(run)


SAVE_ALWAYS = ["--save-every", "0"]


def test_a_full_disk_in_the_middle(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = whole_losses(corpus, tmp_path)
    disk = FullDisk(monkeypatch)
    at_step(monkeypatch, 10, disk.fill)
    at_step(monkeypatch, 20, disk.free)
    run = tmp_path / "run"
    assert main(["train", str(corpus), "--out", str(run), *SMALL, *SAVE_ALWAYS]) == 0
    error = capsys.readouterr().err
    assert (
        f"{run}/checkpoint.safetensors cannot be written: No space left on device; kept is the checkpoint of step 10"
        in error
    )
    assert "Training goes on, and saving is tried again in" in error
    assert f"saved in {run} again, at step 21" in error
    assert error.count("cannot be written") == 1, "an error that stays the same is said once"
    assert losses(run) == expected
    load(run)


def test_a_full_disk_at_the_start(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FullDisk(monkeypatch).fill()
    assert main(["train", str(corpus), "--out", str(tmp_path / "new" / "run"), *SMALL]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system's temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_disk_that_stays_full(
    corpus: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    failing = __import__("fastcells.charlm.files", fromlist=["new_file"]).new_file

    def full(path: Path) -> object:
        if path.parent == run and full.now:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return failing(path)

    full.now = False
    monkeypatch.setattr("fastcells.charlm.files.new_file", full)
    at_step(monkeypatch, 10, lambda: setattr(full, "now", True))
    assert main(["train", str(corpus), "--out", str(run), *SMALL]) == 1
    captured = capsys.readouterr()
    assert f"{run}/checkpoint.safetensors cannot be written: No space left on device" in captured.err
    (folder,) = temporary.iterdir()
    assert f"saved in {folder}" in captured.out
    load(folder)


def test_a_folder_that_vanishes(
    corpus: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    at_step(monkeypatch, 10, lambda: shutil.rmtree(run))
    assert main(["train", str(corpus), "--out", str(run), *SMALL, *SAVE_ALWAYS]) == 1
    captured = capsys.readouterr()
    assert "cannot be written: No such file or directory" in captured.err
    (folder,) = temporary.iterdir()
    assert f"saved in {folder}" in captured.out
    load(folder)
    assert not run.exists()


def test_a_folder_that_comes_back(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a network drive does: what could not be written in between is there in the end."""
    expected = whole_losses(corpus, tmp_path)
    run, away = tmp_path / "run", tmp_path / "away"
    at_step(monkeypatch, 10, lambda: run.rename(away))
    at_step(monkeypatch, 35, lambda: away.rename(run))
    assert main(["train", str(corpus), "--out", str(run), *SMALL, *SAVE_ALWAYS]) == 0
    assert losses(run) == expected
    assert "epoch    3/3" not in (run / "log.txt").read_text().split("cannot be written")[0]
    load(run)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    gc.collect()  # ids are mapped from a file there
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave not a byte."""
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            return


@pytest.mark.parametrize("when", ["start", "middle", "end"])
def test_a_full_tmpfs(
    when: str,
    corpus: Path,
    tmp_path: Path,
    tmpfs: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = whole_losses(corpus, tmp_path)
    run = tmpfs / "run"
    if when == "start":
        fill(tmpfs)
        assert main(["train", str(corpus), "--out", str(run), *SMALL, *SAVE_ALWAYS]) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert not run.exists()
        return
    with monkeypatch.context() as patch:
        at_step(patch, 17, lambda: fill(tmpfs))
        if when == "middle":
            at_step(patch, 40, lambda: (tmpfs / "filler").unlink())
        status = main(["train", str(corpus), "--out", str(run), *SMALL, *SAVE_ALWAYS])
    captured = capsys.readouterr()
    assert "checkpoint.safetensors cannot be written: No space left on device; kept is the checkpoint" in captured.err
    if when == "middle":
        assert status == 0
        assert losses(run) == expected
        load(run)
    else:
        assert status == 1
        (folder,) = temporary.iterdir()
        load(folder)
        (tmpfs / "filler").unlink()  # and the last checkpoint before is whole
        assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0
        assert losses(run) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_says_so(name: str, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "fastcells", "train", str(corpus), "--out", str(run), *SMALL]
    command[command.index("--epochs") + 1] = "1000000"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(RunFolder(run).metrics()) > 2)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this step, and saving" in err and "interrupted after step" in err
    assert f"saved in {run}" in out and f"go on with: fastcells train --resume {run}" in out
    assert main(["generate", str(run), "--prefix", "the"]) == 0


def wait_for(condition: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_lost_terminal_does_not_end_the_training(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process, terminal = pty.fork()
    if process == 0:
        arguments = ["train", str(corpus), "--out", str(run), *SMALL[:-1], "150"]
        os.execv(sys.executable, [sys.executable, "-m", "fastcells", *arguments])
    wait_for(lambda: len(RunFolder(run).metrics()) > 2)
    assert len(RunFolder(run).metrics()) < 150
    os.close(terminal)  # SIGHUP comes, and what is written fails
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(RunFolder(run).metrics()) == 150
    assert "saved in" in (run / "log.txt").read_text()
