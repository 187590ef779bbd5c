"""One run, one owner: a lock in the run's folder with host, process and heartbeat.

Comes in: a folder. Goes out: the right to write in it, or a line on who has it. On one
machine the system itself gives a dead owner's lock free. A lock from another machine is
judged by its heartbeat, and broken only when the user says so.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vagram_jax.storage import files

NAME = "lock.json"
HEARTBEAT_S = 10.0
STALE_AFTER_S = 60.0


class LockedError(files.ResultsError):
    """A run that another process owns. One line: who, since when, what to do."""


class Owner(NamedTuple):
    """Who holds a lock.

    Attributes:
      host: name of the machine.
      pid: number of the process on it.
      started: when it took the lock, ISO 8601.
      age_s: seconds since its last heartbeat.
    """

    host: str
    pid: int
    started: str
    age_s: float


@contextlib.contextmanager
def hold(
    folder: Path, *, break_stale: bool = False, tell: Callable[[str], None] = print
) -> Iterator[None]:
    """Owns a run as long as the `with` block lasts.

    Args:
      folder: of the run; it exists.
      break_stale: take a lock whose owner, on another machine, shows no heartbeat.
      tell: takes a line when a dead owner's lock is taken over.

    Yields:
      Nothing.

    Raises:
      LockedError: another process owns the run, or may still own it.
      ResultsError: the lock can't be written.
    """
    path = folder / NAME
    descriptor = _take(path)
    try:
        before = owner(folder)
        if before is not None:
            _check_gone(path, before, break_stale)
            tell(f"{path}: pid {before.pid} on {before.host} left it; taking it over")
        _sign(path, descriptor)
        stop = threading.Event()
        thread = threading.Thread(target=_beat, args=(path, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def owner(folder: Path) -> Owner | None:
    """Who holds a run's lock, dead or alive.

    Args:
      folder: of the run.

    Returns:
      The owner, or None if there is no lock or nothing legible in it.
    """
    path = folder / NAME
    try:
        age = time.time() - path.stat().st_mtime
        signed = json.loads(path.read_bytes())
        return Owner(signed["host"], signed["pid"], signed["started"], age)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def is_held(folder: Path) -> bool:
    """Whether a living process owns a run, as far as can be told from here.

    Args:
      folder: of the run.

    Returns:
      True or False.
    """
    found = owner(folder)
    if found is not None and found.host != socket.gethostname():
        return found.age_s < STALE_AFTER_S
    with contextlib.suppress(OSError), open(folder / NAME, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _take(path: Path) -> int:
    """The lock file, open and locked by this process."""
    while True:
        with files.one_line(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner before may have removed the file since it was opened.
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise LockedError(_held_by(path, owner(path.parent))) from None
        except OSError as error:
            os.close(descriptor)
            raise files.ResultsError(f"{path}: {error.strerror}") from None
        os.close(descriptor)


def _check_gone(path: Path, before: Owner, break_stale: bool) -> None:
    # This machine's own dead processes hold no lock any more: the system saw to it.
    if before.host == socket.gethostname():
        return
    if before.age_s < STALE_AFTER_S:
        raise LockedError(_held_by(path, before))
    if not break_stale:
        raise LockedError(
            f"{path}: stale: pid {before.pid} on {before.host} gave no sign for "
            f"{before.age_s:.0f} s; if it is gone, add --break_lock"
        )


def _held_by(path: Path, found: Owner | None) -> str:
    if found is None:
        return f"{path}: held by another process; wait for it or stop it"
    return (
        f"{path}: held by pid {found.pid} on {found.host} since {found.started}; wait "
        "for it, stop it, or choose another --study"
    )


def _sign(path: Path, descriptor: int) -> None:
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    with files.one_line(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(text).encode() + b"\n", 0)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):  # the next beat may reach it
            os.utime(path)
