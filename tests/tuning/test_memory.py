"""The file of verdicts: shared by many processes, and never a reason to stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcells.tuning import memory as memories
from fastcells.tuning.machine import Machine
from fastcells.tuning.memory import MOST_MACHINES, SHIPPED, Memory, Verdict, as_text, parse

HERE = Machine("a processor; 2 threads", "torch 9")
KIND = "gru float32 dense training H=8 I<=8 T<=8 B<=4"


def verdict(chosen: str = "cpu") -> Verdict:
    return Verdict(
        chosen, "2026-11-26", 6, 3, {"torch": 50.0, "cpu": 20.5}, {"torch": 0.5, "cpu": 0.25}, {"x": "it raised"}
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "verdicts.json"


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_what_is_added_is_found_by_the_same_machine_and_versions_only(file: Path) -> None:
    assert Memory(file).add(HERE, KIND, verdict()) == verdict()
    assert Memory(file).verdicts(HERE) == {KIND: verdict()}
    assert Memory(file).verdicts(HERE._replace(versions="torch 10")) == {}
    assert Memory(file).verdicts(HERE._replace(device="a processor; 1 thread")) == {}
    assert [path.name for path in sorted(file.parent.iterdir())] == ["verdicts.json", "verdicts.lock"]


def test_the_first_of_two_verdicts_holds_unless_it_is_to_be_replaced(file: Path) -> None:
    memory = Memory(file)
    memory.add(HERE, KIND, verdict("cpu"))
    assert Memory(file).add(HERE, KIND, verdict("torch")).chosen == "cpu"
    assert memory.verdicts(HERE)[KIND].chosen == "cpu"
    assert Memory(file).add(HERE, KIND, verdict("torch"), replace=True).chosen == "torch"
    assert memory.verdicts(HERE)[KIND].chosen == "torch"


def test_only_so_many_machines_are_kept_the_last_ones(file: Path) -> None:
    memory = Memory(file)
    for i in range(MOST_MACHINES + 3):
        memory.add(Machine(f"processor {i}", ""), KIND, verdict())
    kept = [machine.device for machine in memory.everything()]
    assert kept == [f"processor {i}" for i in range(3, MOST_MACHINES + 3)]


WRITER = """
import sys
from pathlib import Path
from fastcells.tuning.machine import Machine
from fastcells.tuning.memory import Memory, Verdict
memory, me = Memory(Path(sys.argv[1])), sys.argv[2]
for i in range(20):
    memory.add(Machine("d", "v"), f"gru of {me} T<={i} B<=1", Verdict(me, "2026-11-26", 1, 1))
print(memory.add(Machine("d", "v"), "gru T<=1 B<=1", Verdict(me, "2026-11-26", 1, 1)).chosen)
"""


def test_processes_that_write_at_once_lose_nothing_and_agree(file: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), name], stdout=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    said = {process.communicate(timeout=100)[0].strip() for process in running}
    assert len(said) == 1 and said <= {"a", "b", "c"}
    assert len(Memory(file).verdicts(Machine("d", "v"))) == 61


GOOD = as_text({HERE: {KIND: verdict()}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD[:-30],
        "[]",
        '{"format": "somebody else\'s", "machines": []}',
        GOOD.replace('"machines"', '"machine"'),
        GOOD.replace('"chosen": "cpu"', '"chosen": 5'),
        GOOD.replace('"2026-11-26"', '"yesterday"'),
        GOOD.replace("20.5", '"fast"'),
        GOOD.replace('"steps": 6', '"steps": -6'),
        GOOD.replace('"batch"', '"rows"'),
        GOOD.replace("T<=8", "T<=many"),
        "\udcff\x00",
    ],
    ids=range(12),
)
def test_a_file_that_is_none_of_ours_is_left_alone_with_one_warning(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = file.read_bytes()
    memory = Memory(file)
    with pytest.warns(RuntimeWarning, match=r"verdicts\.json is damaged or not a file of verdicts.*--forget") as warned:
        assert memory.verdicts(HERE) == {}
    assert len(warned) == 1
    assert memory.add(HERE, KIND, verdict()) == verdict()
    assert memory.everything() == {}
    assert file.read_bytes() == before
    assert memory.forget() == 1 and memory.forget() == 0
    memory.add(HERE, KIND, verdict())
    assert memory.verdicts(HERE) == {KIND: verdict()}


@pytest.mark.parametrize("why", ["no folder", "not to be read", "not to be written"])
def test_a_home_without_room_for_the_file_is_no_error(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() == 0 and why != "no folder":
        pytest.skip("root may read and write everything")
    folder = tmp_path / "folder"
    folder.mkdir()
    memory = Memory(folder / "verdicts.json")
    if why == "no folder":
        folder.rmdir()
        folder.write_text("a file")
    elif why == "not to be read":
        memory.path.write_text(GOOD)
        memory.path.chmod(0)
    else:
        folder.chmod(0o500)
    assert memory.everything() == {}
    assert memory.add(HERE, KIND, verdict()) == verdict()
    assert "cannot be read" in caplog.text or "could not be kept" in caplog.text


FULL = """
import logging, resource, signal, sys
from pathlib import Path
from fastcells.tuning.machine import Machine
from fastcells.tuning.memory import Memory, Verdict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.basicConfig()
memory = Memory(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # a write past so many bytes fails, as on a full disk
print(memory.add(Machine("d", "v"), "gru T<=1 B<=1", Verdict("cpu", "2026-11-26", 1, 1)).chosen)
"""


def test_on_a_full_disk_the_old_file_stays_whole(file: Path) -> None:
    Memory(file).add(HERE, KIND, verdict())
    before = file.read_bytes()
    command = [sys.executable, "-c", FULL, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "cpu" and "could not be kept" in done.stderr
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["verdicts.json", "verdicts.lock"]


def test_text_and_back(file: Path) -> None:
    machines = {HERE: {KIND: verdict(), f"lstm {KIND}": verdict("torch")}, Machine("d", "v"): {}}
    text = as_text(machines)
    assert parse(text.encode()) == machines
    assert all(len(line) < 1000 for line in text.splitlines())


def test_the_shipped_file_is_one_of_ours_and_says_what_it_was_measured_on() -> None:
    machines = parse(SHIPPED.read_bytes())
    assert machines and all(verdicts for verdicts in machines.values())
    assert all("torch" in v.microseconds for verdicts in machines.values() for v in verdicts.values())
    assert memories.shipped(next(iter(machines)).device) is not None
    assert memories.shipped("a processor that nobody has") is None


def test_the_folder_is_the_users_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTCELLS_CACHE_DIR", str(tmp_path))
    assert Memory().path == tmp_path / "verdicts.json"
    monkeypatch.delenv("FASTCELLS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Memory().path.parent.name == "fastcells" and (os.name != "posix" or tmp_path in Memory().path.parents)


def test_the_file_is_json_that_others_can_read(file: Path) -> None:
    Memory(file).add(HERE, KIND, verdict())
    entry = json.loads(file.read_text())["machines"][0]
    assert entry["verdicts"][KIND]["microseconds"]["cpu"] == 20.5
