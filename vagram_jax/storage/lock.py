"""One process per run: a lock in the run's folder.

`filelock` locks the file `.lock`; the system releases it when its process ends. Other
machines may not see that lock. So `lock.json` names the owner, and the owner updates
its modification time as a heartbeat. A lock from another machine without a heartbeat is
only broken when the user asks for it. An owner whose `lock.json` is gone stops.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

from vagram_jax.storage import disk, files

NAME = "lock.json"
"""The file that names the owner."""
HEARTBEAT_S = 10.0
STALE_AFTER_S = 60.0
_LOCK_FILE = ".lock"


class LockedError(files.ResultsError):
    """This process doesn't own the run. One line: who does, what to do."""


class Owner(NamedTuple):
    """Who holds a lock.

    Attributes:
      host: name of the machine.
      pid: process number on that machine.
      started: when the process took the lock, ISO 8601.
      age_s: seconds since the last heartbeat.
    """

    host: str
    pid: int
    started: str
    age_s: float


class Lock:
    """A lock that this process holds."""

    def __init__(self, folder: Path):
        """Writes this process into the owner file."""
        self._path = folder / NAME
        now = datetime.datetime.now(datetime.UTC)
        started = now.isoformat(timespec="seconds")
        record = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        files.write_json(self._path, record)
        self._owner = tuple(record.values())

    def check(self) -> None:
        """Checks that this process still owns the run; call it before each write.

        Raises:
          LockedError: the lock was removed, or another process has taken it.
          ResultsError: the folder can't be read.
        """
        with files.one_line(self._path):
            if disk.status(self._path) is None:
                raise LockedError(
                    f"{self._path}: removed while the run was training, so that "
                    "another process could start; continue with --resume"
                )
        current = owner(self._path.parent)
        # An owner file that can't be read now may be readable at the next check.
        if current is not None and current[:3] != self._owner:
            raise LockedError(
                f"{self._path}: lost: pid {current.pid} on {current.host} took the run "
                f"over at {current.started}; let it finish"
            )

    def _beat(self, stop: threading.Event, report: Callable[[str], None]) -> None:
        """Updates the owner file until `stop` is set or the lock is lost."""
        while not stop.wait(HEARTBEAT_S):
            try:
                self.check()
                disk.touch(self._path)
            except LockedError as error:
                report(str(error))
                return
            except OSError:
                pass  # the next heartbeat may succeed

    def _remove(self) -> None:
        """Removes the owner file, unless it is another process's by now."""
        with contextlib.suppress(OSError):
            self.check()
            disk.remove(self._path)


@contextlib.contextmanager
def hold(
    folder: Path, *, break_stale: bool = False, report: Callable[[str], None] = print
) -> Iterator[Lock]:
    """Owns a run for the duration of the `with` block.

    Args:
      folder: folder of the run; it exists.
      break_stale: take over a lock whose owner, on another machine, has no heartbeat.
      report: receives one line when a dead owner's lock is taken over, or when this
        one is lost.

    Yields:
      The lock, whose `check` raises if it was removed or taken over.

    Raises:
      LockedError: another process owns the run, or may still own it.
      ResultsError: the lock can't be written.
    """
    path = folder / NAME
    with _system_lock(folder):
        if (previous := owner(folder)) is not None:
            _check_dead(path, previous, break_stale)
            left_by = f"pid {previous.pid} on {previous.host}"
            report(f"{path}: {left_by} ended without removing it; taking it over")
        held, stop = Lock(folder), threading.Event()
        thread = threading.Thread(target=held._beat, args=(stop, report), daemon=True)
        thread.start()
        try:
            yield held
        finally:
            stop.set()
            thread.join()
            held._remove()


def remove_dead(folder: Path) -> None:
    """Removes the lock that a process left which ended without removing it, if any."""
    if owner(folder) is not None:
        with (
            contextlib.suppress(files.ResultsError),
            hold(folder, report=lambda _: None),
        ):
            pass


def owner(folder: Path) -> Owner | None:
    """Reads who holds a run's lock, dead or alive; None without a readable lock."""
    path = folder / NAME
    try:
        found = disk.status(path)
        record = files.read_json(path)
        names = record["host"], record["pid"], record["started"]
    except (OSError, KeyError, TypeError):
        return None
    is_valid = [isinstance(*pair) for pair in zip(names, (str, int, str), strict=True)]
    if found is None or not all(is_valid):
        return None
    return Owner(*names, time.time() - found.st_mtime)


def is_held(folder: Path) -> bool:
    """Whether a living process owns a run, as far as this machine can tell."""
    current = owner(folder)
    if current is None:
        return False
    if current.host == socket.gethostname() and os.access(folder, os.W_OK):
        with contextlib.suppress(files.ResultsError):
            try:
                with _system_lock(folder):
                    return False
            except LockedError:
                return True
    return current.age_s < STALE_AFTER_S


@contextlib.contextmanager
def _system_lock(folder: Path) -> Iterator[None]:
    """Locks the folder among the processes of this machine."""
    path = folder / _LOCK_FILE
    lock = filelock.FileLock(path)
    with files.one_line(folder / NAME):
        found = disk.status(path)  # raises for a link on the way
        if not disk.is_folder(folder):  # filelock would create the folder
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        # Asked once: another process may remove its lock in between.
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"{_LOCK_FILE} is not a file; remove it")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise LockedError(_held_by(folder)) from None
    own = disk.status(path)
    try:
        yield
    finally:
        # Removed while it is locked: filelock refuses a lock on a removed file. A lock
        # that was removed before may be another process's by now.
        try:
            with contextlib.suppress(OSError):
                current = disk.status(path)
                if own and current and own.st_ino == current.st_ino:
                    disk.remove(path)
        finally:
            lock.release()


def _check_dead(path: Path, previous: Owner, break_stale: bool) -> None:
    """Raises unless the previous owner of a lock has ended."""
    if previous.host == socket.gethostname():
        return  # a living process of this machine would still hold the system's lock
    if previous.age_s < STALE_AFTER_S:
        raise LockedError(_held_by(path.parent))
    if not break_stale:
        raise LockedError(
            f"{path}: stale: no heartbeat of pid {previous.pid} on {previous.host} for "
            f"{previous.age_s:.0f} s; if that process has ended, add --break_lock"
        )


def _held_by(folder: Path) -> str:
    path, current = folder / NAME, owner(folder)
    if current is None:
        return f"{path}: held by another process; wait for it or stop it"
    return (
        f"{path}: held by pid {current.pid} on {current.host} since {current.started}; "
        "wait for it, stop it, or choose another --study"
    )
