"""One owner per run: living, killed, silent and far away."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vagram_jax.storage import files, lock

ROOT = Path(__file__).parents[2]
HOLDER = """
import pathlib, sys
from vagram_jax import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""
TAKER = """
import pathlib, sys
from vagram_jax import lock
try:
    with lock.hold(pathlib.Path(sys.argv[1])):
        print("held")
except lock.LockedError as error:
    print(error)
"""


def python(program, folder):
    """Starts a program of its own on a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@contextlib.contextmanager
def holder(folder):
    """Another process that holds a folder's lock."""
    with python(HOLDER, folder) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def killed(folder):
    """Leaves the lock of a process that was killed; gives its number."""
    with holder(folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return process.pid


def sign(folder, *, host="far-away", age_s=0.0):
    """Leaves a lock as a process on another machine would have."""
    text = {"host": host, "pid": 12345, "started": "2031-05-06T07:08:09+00:00"}
    path = folder / lock.NAME
    path.write_text(json.dumps(text))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def take(folder, **settings):
    """Takes the lock and gives it back; gives what was told."""
    told = []
    with lock.hold(folder, tell=told.append, **settings):
        found = lock.owner(folder)
        assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
        assert lock.is_held(folder)
    assert not list(folder.iterdir())
    return told


def test_a_second_process_is_refused_and_told_who_is_first(tmp_path):
    with holder(tmp_path) as process:
        found = lock.owner(tmp_path)
        with pytest.raises(lock.LockedError) as caught, lock.hold(tmp_path):
            pass
        text = str(caught.value)
        assert f"pid {process.pid} on {socket.gethostname()} since 20" in text
        assert found.started in text
        assert "\n" not in text
        assert python(TAKER, tmp_path).communicate()[0] == text + "\n"
        # Asking has not harmed the first one's lock.
        assert lock.owner(tmp_path)[:3] == found[:3]
        assert lock.is_held(tmp_path)
        process.communicate("\n")
    assert process.returncode == 0
    assert take(tmp_path) == []


def test_a_lock_names_its_owner_while_it_is_held(tmp_path):
    with holder(tmp_path) as process:
        found = lock.owner(tmp_path)
        assert (found.host, found.pid) == (socket.gethostname(), process.pid)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found.started)
        assert -1 < found.age_s < lock.HEARTBEAT_S
        assert lock.is_held(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    pid = killed(tmp_path)
    assert lock.owner(tmp_path).pid == pid
    assert not lock.is_held(tmp_path)
    (line,) = take(tmp_path)
    assert f"pid {pid} on {socket.gethostname()} left it" in line


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path):
    # Its last heartbeat may be a moment ago; the system knows better.
    for age_s in (0.0, 1e6):
        sign(tmp_path, host=socket.gethostname(), age_s=age_s)
        assert not lock.is_held(tmp_path)
        assert len(take(tmp_path)) == 1


@pytest.mark.parametrize("break_stale", [False, True])
def test_a_lock_of_another_machine_with_a_heartbeat_is_refused(tmp_path, break_stale):
    path = sign(tmp_path, age_s=lock.STALE_AFTER_S - 20)
    before = path.read_bytes()
    assert lock.is_held(tmp_path)
    wanted = "held by pid 12345 on far-away since 2031-05-06T07:08:09"
    with pytest.raises(lock.LockedError, match=wanted):
        take(tmp_path, break_stale=break_stale)
    assert path.read_bytes() == before
    assert lock.owner(tmp_path).age_s > lock.STALE_AFTER_S - 21


def test_a_silent_lock_of_another_machine_is_broken_only_on_demand(tmp_path):
    path = sign(tmp_path, age_s=lock.STALE_AFTER_S + 20)
    before = path.read_bytes()
    assert not lock.is_held(tmp_path)
    assert lock.owner(tmp_path).host == "far-away"
    wanted = r"stale: pid 12345 on far-away gave no sign for 8\d s.*--break_lock"
    with pytest.raises(lock.LockedError, match=wanted):
        take(tmp_path)
    assert path.read_bytes() == before
    (line,) = take(tmp_path, break_stale=True)
    assert "pid 12345 on far-away left it" in line


def test_a_clock_that_is_ahead_makes_no_lock_stale(tmp_path):
    sign(tmp_path, age_s=-3600.0)
    assert lock.is_held(tmp_path)
    with pytest.raises(lock.LockedError, match="held by pid 12345"):
        take(tmp_path, break_stale=True)


def test_the_heartbeat_keeps_a_lock_young_and_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    path, threads = tmp_path / lock.NAME, threading.active_count()
    with lock.hold(tmp_path):
        os.utime(path, (0, 0))
        until = time.monotonic() + 20
        while lock.owner(tmp_path).age_s > 10:
            assert time.monotonic() < until
            time.sleep(0.01)
        # A beat that fails, here on a missing file, is not the last one.
        text = path.read_bytes()
        path.unlink()
        time.sleep(0.1)
        path.write_bytes(text)
        os.utime(path, (0, 0))
        while lock.owner(tmp_path).age_s > 10:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert not path.exists()
    assert threading.active_count() == threads


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_lock_is_gone_after_an_exception(tmp_path, fault):
    with pytest.raises(fault), lock.hold(tmp_path):
        assert (tmp_path / lock.NAME).exists()
        raise fault
    assert not list(tmp_path.iterdir())
    assert not lock.is_held(tmp_path)
    assert take(tmp_path) == []


def test_a_lock_leaves_no_open_file(tmp_path):
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
            with pytest.raises(lock.LockedError), lock.hold(tmp_path):
                pass
            assert lock.is_held(tmp_path)
    assert open_files() == before


def test_one_process_holds_a_lock_once(tmp_path):
    with lock.hold(tmp_path):
        with pytest.raises(lock.LockedError, match=f"pid {os.getpid()} "):
            take(tmp_path)
        assert lock.is_held(tmp_path)


def test_runs_beside_each_other_have_locks_of_their_own(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with lock.hold(tmp_path / "one"), lock.hold(tmp_path / "two"):
        assert lock.is_held(tmp_path / "one")
        assert lock.is_held(tmp_path / "two")
        assert not lock.is_held(tmp_path)


def test_without_a_lock_there_is_no_owner(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert lock.owner(folder) is None
        assert not lock.is_held(folder)


ILLEGIBLE = [b"", b"{", b"\xff\xfe\x00", b"[]", b"7", b'"text"', b'{"host": "here"}']
ILLEGIBLE += [b"[" * 100_000]


@pytest.mark.parametrize("text", ILLEGIBLE, ids=lambda text: repr(text[:10]))
def test_an_illegible_lock_that_nobody_holds_is_taken(tmp_path, text):
    (tmp_path / lock.NAME).write_bytes(text)
    assert lock.owner(tmp_path) is None
    assert not lock.is_held(tmp_path)
    assert take(tmp_path) == []


def test_an_illegible_lock_that_somebody_holds_is_refused(tmp_path):
    with holder(tmp_path):
        (tmp_path / lock.NAME).write_bytes(b"{")
        assert lock.is_held(tmp_path)
        with pytest.raises(lock.LockedError, match="held by another process"):
            take(tmp_path)


def test_a_lock_in_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(files.ResultsError) as caught, lock.hold(tmp_path / "missing"):
        pass
    assert str(tmp_path / "missing") in str(caught.value)
    assert "No such file" in str(caught.value)
    assert not isinstance(caught.value, lock.LockedError)


def test_a_lock_in_a_read_only_folder_is_one_line(tmp_path, monkeypatch):
    if os.geteuid() == 0:  # whom no permission stops

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(lock.os, "open", refuse)
    tmp_path.chmod(0o500)
    with pytest.raises(files.ResultsError, match=r"lock\.json: Permission denied"):
        take(tmp_path)


@pytest.mark.parametrize("call", ["fcntl.flock", "os.pwrite"])
def test_a_lock_that_the_system_refuses_is_one_line(tmp_path, monkeypatch, call):
    def refuse(*_):
        raise OSError(99, "Not today")

    with monkeypatch.context() as patch:
        patch.setattr(f"vagram_jax.storage.lock.{call}", refuse)
        with pytest.raises(files.ResultsError, match=r"lock\.json: Not today"):
            take(tmp_path)
    # What it leaves is in nobody's way.
    assert take(tmp_path) == []


def test_a_file_that_its_owner_removed_in_between_is_not_taken(tmp_path, monkeypatch):
    """Opened, then unlinked by its owner: a lock on it would lock nothing."""
    path, opened = tmp_path / lock.NAME, []
    system_open = os.open

    def late_open(place, *args):
        descriptor = system_open(place, *args)
        if place == path and len(opened) < 2:
            opened.append(descriptor)
            path.unlink()
            # The second time another process has a new file there already.
            if len(opened) == 2:
                sign(tmp_path)
        return descriptor

    monkeypatch.setattr(lock.os, "open", late_open)
    with pytest.raises(lock.LockedError, match="far-away"):
        take(tmp_path)
    path.unlink()
    with lock.hold(tmp_path):
        # The lock is on the file that others will find.
        assert python(TAKER, tmp_path).communicate()[0].startswith(str(path))
    assert len(opened) == 2


def test_of_many_processes_one_at_a_time_holds_the_lock(tmp_path):
    """Each adds one to a number without care; a lock that leaks would lose some."""
    program = """
import pathlib, sys, time
from vagram_jax import lock
folder = pathlib.Path(sys.argv[1])
number = folder / "number"
done = 0
while done < 20:
    try:
        with lock.hold(folder):
            before = int(number.read_text())
            time.sleep(0.001)
            number.write_text(str(before + 1))
        done += 1
    except lock.LockedError:
        time.sleep(0.0005)
"""
    (tmp_path / "number").write_text("0")
    processes = [python(program, tmp_path) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    assert (tmp_path / "number").read_text() == "60"
    assert not lock.is_held(tmp_path)
