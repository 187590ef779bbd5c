"""One owner per run: living, killed, silent, and on another machine."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import lock_worker
import pytest
from storage_cases import one_line

from vagram_jax.storage import files, lock

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()


class Worker:
    """Another process, which answers commands."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests/lock_worker.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.pid = self.process.pid

    def send(self, command, folder):
        """Sends a command without waiting for the answer."""
        self.process.stdin.write(f"{command} {folder}\n")
        self.process.stdin.flush()

    def ask(self, command, folder):
        """Sends a command and returns the answer."""
        self.send(command, folder)
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def workers():
    """Three other processes; one test kills the last."""
    started = [Worker() for _ in range(3)]
    yield started
    for worker in started:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture
def holder(workers, tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    assert workers[0].ask("hold", tmp_path) == "done"
    yield workers[0]
    assert workers[0].ask("release", tmp_path) == "done"


def sign(folder, *, host="far-away", age_s=0.0):
    """Writes the owner file of a process on another machine."""
    record = {"host": host, "pid": 12345, "started": "2031-05-06T07:08:09+00:00"}
    path = folder / lock.NAME
    path.write_text(json.dumps(record))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def take(folder, **options):
    """Takes and releases the lock; returns the reported lines."""
    lines = []
    with lock.hold(folder, report=lines.append, **options) as held:
        held.check()
        current = lock.owner(folder)
        assert (current.host, current.pid) == (HOST, os.getpid())
        assert lock.is_held(folder)
    assert not list(folder.iterdir())
    assert not lock.is_held(folder)
    return lines


def test_hold_refuses_a_second_process_and_names_the_first(workers, holder, tmp_path):
    current = lock.owner(tmp_path)
    assert (current.host, current.pid) == (HOST, holder.pid)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", current.started)
    assert -1 < current.age_s < lock.HEARTBEAT_S
    with pytest.raises(lock.LockedError) as caught, lock.hold(tmp_path):
        pass
    text = one_line(caught)
    assert f"held by pid {holder.pid} on {HOST} since {current.started}" in text
    assert caught.value.status == 5
    assert workers[1].ask("hold", tmp_path) == text
    # The refused processes have not changed the lock.
    assert lock.owner(tmp_path)[:3] == current[:3]
    assert lock.is_held(tmp_path)


def test_hold_takes_over_the_lock_of_a_killed_process(workers, tmp_path):
    worker = workers[2]
    assert worker.ask("hold", tmp_path) == "done"
    worker.process.kill()
    worker.process.wait()
    assert lock.owner(tmp_path).pid == worker.pid
    assert not lock.is_held(tmp_path)
    (line,) = take(tmp_path)
    assert f"pid {worker.pid} on {HOST} ended without removing it; taking it" in line


def test_hold_gives_the_lock_to_one_process_at_a_time(workers, tmp_path):
    (tmp_path / "number").write_text("0")
    for worker in workers[:2]:
        worker.send("count", tmp_path)
    lock_worker.count(tmp_path)
    assert [w.process.stdout.readline() for w in workers[:2]] == ["done\n"] * 2
    assert (tmp_path / "number").read_text() == "45"
    assert not lock.is_held(tmp_path)


@pytest.mark.parametrize("age_s", [0.0, 1e6])
def test_hold_ignores_the_heartbeat_of_a_dead_process_of_this_machine(tmp_path, age_s):
    sign(tmp_path, host=HOST, age_s=age_s)
    assert not lock.is_held(tmp_path)
    assert len(take(tmp_path)) == 1


@pytest.mark.parametrize("age_s", [lock.STALE_AFTER_S - 20, -3600.0])  # a fast clock
@pytest.mark.parametrize("break_stale", [False, True])
def test_hold_refuses_a_lock_of_another_machine_with_a_heartbeat(
    tmp_path, break_stale, age_s
):
    path = sign(tmp_path, age_s=age_s)
    before = path.read_bytes()
    assert lock.is_held(tmp_path)
    message = "held by pid 12345 on far-away since 2031-05-06T07:08:09"
    with pytest.raises(lock.LockedError, match=message):
        take(tmp_path, break_stale=break_stale)
    assert path.read_bytes() == before
    assert lock.owner(tmp_path).age_s > age_s - 1


def test_hold_breaks_a_lock_without_a_heartbeat_only_on_demand(tmp_path):
    path = sign(tmp_path, age_s=lock.STALE_AFTER_S + 20)
    before = path.read_bytes()
    assert not lock.is_held(tmp_path)
    message = r"stale: no heartbeat of pid 12345 on far-away for 8\d s.*--break_lock"
    with pytest.raises(lock.LockedError, match=message):
        take(tmp_path)
    assert path.read_bytes() == before
    (line,) = take(tmp_path, break_stale=True)
    assert "pid 12345 on far-away ended" in line


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_heartbeat_keeps_a_lock_young_and_survives_a_failed_beat(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    path, threads = tmp_path / lock.NAME, threading.active_count()
    with lock.hold(tmp_path):
        os.utime(path, (0, 0))
        wait_until(lambda: lock.owner(tmp_path).age_s < 10)
        text = path.read_bytes()
        path.write_bytes(b"{")  # as on a network drive that is slow
        time.sleep(0.05)
        path.write_bytes(text)
        os.utime(path, (0, 0))
        wait_until(lambda: lock.owner(tmp_path).age_s < 10)
    assert not list(tmp_path.iterdir())
    assert threading.active_count() == threads


def test_a_lock_that_another_machine_broke_is_reported_and_left_to_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    lines = []
    with lock.hold(tmp_path, report=lines.append) as held:
        path = sign(tmp_path)
        wait_until(lambda: lines)
        with pytest.raises(lock.LockedError, match="lost: pid 12345 on far-away"):
            held.check()
    assert len(lines) == 1
    assert lock.owner(tmp_path).host == "far-away"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_that_was_removed_is_noticed_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    lines = []
    with lock.hold(tmp_path, report=lines.append) as held:
        held.check()
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(lock.LockedError, match=r"lock\.json: removed.*--resume"):
            held.check()
        wait_until(lambda: lines)
        # The files of another process, which may start now, are left to it.
        sign(tmp_path)
        (tmp_path / ".lock").touch()
    assert {path.name for path in tmp_path.iterdir()} == {lock.NAME, ".lock"}


@pytest.mark.parametrize("name", [lock.NAME, ".lock"])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_that_is_no_file_is_refused_or_replaced(tmp_path, name, kind):
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    path = folder / name
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    try:
        take(folder)  # a rename replaces a link and a FIFO
    except files.ResultsError as error:
        assert "\n" not in str(error)
        assert name == ".lock" or kind == "folder"
    assert victim.read_text() == "precious"
    assert lock.owner(folder) is None


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_hold_releases_the_lock_after_an_exception(tmp_path, fault):
    with pytest.raises(fault), lock.hold(tmp_path):
        assert (tmp_path / lock.NAME).exists()
        raise fault
    assert not list(tmp_path.iterdir())
    assert take(tmp_path) == []


def test_hold_leaves_no_open_file_and_is_not_reentrant(tmp_path):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    take(tmp_path)
    sign(tmp_path)
    with pytest.raises(lock.LockedError):
        take(tmp_path)
    (tmp_path / lock.NAME).unlink()
    with lock.hold(tmp_path):
        for _ in range(3):
            with pytest.raises(lock.LockedError, match=f"pid {os.getpid()} "):
                take(tmp_path)
            assert lock.is_held(tmp_path)
    assert open_files() == before


def test_each_folder_has_its_own_lock(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with lock.hold(tmp_path / "one"), lock.hold(tmp_path / "two"):
        assert lock.is_held(tmp_path / "one")
        assert lock.is_held(tmp_path / "two")
        for folder in (tmp_path, tmp_path / "missing"):
            assert lock.owner(folder) is None
            assert not lock.is_held(folder)


def test_is_held_reads_the_heartbeat_in_a_folder_that_it_cannot_write(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(lock.os, "access", lambda *_: False)
    sign(tmp_path, host=HOST)
    assert lock.is_held(tmp_path)
    sign(tmp_path, host=HOST, age_s=lock.STALE_AFTER_S + 1)
    assert not lock.is_held(tmp_path)


UNREADABLE = [b"", b"{", b"\xff\xfe\x00", b"[]", b"7", b'"text"', b'{"host": "here"}']
UNREADABLE += [b"[" * 100_000]


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: repr(text[:10]))
def test_hold_takes_an_unreadable_lock_that_nobody_holds(tmp_path, text):
    (tmp_path / lock.NAME).write_bytes(text)
    assert lock.owner(tmp_path) is None
    assert not lock.is_held(tmp_path)
    assert take(tmp_path) == []


def test_hold_refuses_an_unreadable_lock_that_another_process_holds(holder, tmp_path):
    (tmp_path / lock.NAME).write_bytes(b"{")
    with pytest.raises(lock.LockedError, match="held by another process"):
        take(tmp_path)


def test_hold_in_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(files.ResultsError, match="No such file") as caught:
        take(tmp_path / "missing")
    assert str(tmp_path / "missing") in one_line(caught)
    assert not isinstance(caught.value, lock.LockedError)


@pytest.mark.parametrize(
    ("owner", "name"), [(filelock.FileLock, "acquire"), (files.os, "replace")]
)
def test_hold_reports_what_the_system_refuses_in_one_line(
    tmp_path, monkeypatch, owner, name
):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with pytest.raises(files.ResultsError, match=r"lock\.json: Permission denied"):
            take(tmp_path)
    assert take(tmp_path) == []
