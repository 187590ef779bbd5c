"""The system calls that read and change files below a results folder.

No call follows a link: a results folder may come from somebody else, with links that
lead out of it. The folders of a path are opened one after the other, and the call acts
on a name in the last one. So callers first resolve the path that the user named.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_MAX_BYTES = 2**31
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
# A folder on the way to a file need not be readable.
_PATH_ONLY = getattr(os, "O_PATH", 0)
_FOLDER = _NO_LINK | _PATH_ONLY | getattr(os, "O_DIRECTORY", 0)
# Without O_NONBLOCK, opening a FIFO would wait for its other end.
_FILE = _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_HAS_DESCRIPTORS = os.open in os.supports_dir_fd  # of folders; Windows has none
_MODES = {
    "rb": os.O_RDONLY,
    "ab": os.O_RDWR | os.O_APPEND | os.O_CREAT,
    "xb": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}


@contextlib.contextmanager
def open_file(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """Opens a regular file.

    Args:
      path: the file.
      mode: "rb" reads, "ab" reads and appends, "xb" creates a new file.

    Yields:
      The open file.

    Raises:
      OSError: it can't be opened, or is a link, a folder or a device; or it shall be
        changed and has a second name (a hard link).
    """
    with _parent(path) as (name, parent):
        descriptor = os.open(name, _FILE | _MODES[mode], 0o666, dir_fd=parent)
    # What is appended reaches the disk with each write.
    options = {"ab": ("a+b", 0), "xb": ("w+b", -1)}.get(mode, (mode, -1))
    with open(descriptor, *options) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file; remove it")
        if mode == "ab" and status.st_nlink > 1:
            raise OSError(errno.EMLINK, "has a second name (a hard link); copy it")
        yield file


def read(path: Path, *, limit: int = _MAX_BYTES) -> bytes:
    """Reads a regular file.

    Raises:
      OSError: as `open_file`, or the file has more than `limit` bytes.
    """
    with open_file(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"has more than {limit} bytes")
        return file.read()


def write(file: IO[bytes], data: bytes) -> None:
    """Writes all bytes and waits until they are on the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file.fileno(), rest) :]
    os.fsync(file.fileno())


def truncate(file: IO[bytes], size: int) -> None:
    """Cuts a file to a size."""
    os.ftruncate(file.fileno(), size)


def status(path: Path) -> os.stat_result | None:
    """The status of a file, a folder or a link itself; None if it is missing."""
    try:
        with _parent(path) as (name, parent):
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_file(path: Path) -> bool:
    """Whether a regular file exists, reached without a link."""
    return _has_kind(path, stat.S_ISREG)


def is_folder(path: Path) -> bool:
    """Whether a folder exists, reached without a link."""
    return _has_kind(path, stat.S_ISDIR)


def names(folder: Path) -> list[str]:
    """The sorted names in a folder; none if it is missing or a link."""
    if not is_folder(folder):
        return []
    with _parent(folder) as (name, parent):
        if parent is None:
            return sorted(os.listdir(name))
        descriptor = os.open(name, _FOLDER & ~_PATH_ONLY, dir_fd=parent)
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder and those that it lies in, unless they exist."""
    for folder in (*reversed(path.parents), path):
        if not os.path.lexists(folder):
            exists = contextlib.suppress(FileExistsError)  # another process was faster
            with _parent(folder) as (name, parent), exists:
                os.mkdir(name, dir_fd=parent)
    if not is_folder(path):
        _refuse_links(path)
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder; remove it")


def rename(path: Path, name: str) -> None:
    """Renames a file or a folder in its folder and waits until the disk has the name.

    It replaces an existing file or an empty folder.
    """
    with _parent(path) as (old, parent):
        new = str(path.with_name(name)) if parent is None else name
        os.replace(old, new, src_dir_fd=parent, dst_dir_fd=parent)
    sync(path.parent)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with its content, unless it is missing."""
    with contextlib.suppress(FileNotFoundError), _parent(path) as (name, parent):
        if is_folder(path):
            shutil.rmtree(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)


def remove_empty(folder: Path) -> None:
    """Removes a folder if it is empty."""
    with contextlib.suppress(OSError), _parent(folder) as (name, parent):
        os.rmdir(name, dir_fd=parent)


def touch(path: Path) -> None:
    """Sets the modification time of a file to now."""
    with open_file(path, "rb") as file:
        os.utime(file.fileno() if os.utime in os.supports_fd else path)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
      OSError: the file can't be synced.
    """
    if not is_folder(path):
        with open_file(path, "rb") as file:
            os.fsync(file.fileno())
        return
    # A rename is durable only when its folder is; some systems can't sync a folder.
    with contextlib.suppress(OSError), _parent(path) as (name, parent):
        descriptor = os.open(name, os.O_RDONLY | _NO_LINK, dir_fd=parent)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _parent(path: Path) -> Iterator[tuple[str, int | None]]:
    """Opens the folder of a path without following links.

    Yields:
      The name and the descriptor of its folder; on systems that have no descriptors of
      folders, the path and None.
    """
    *folders, name = path.parts or (".",)
    if not _HAS_DESCRIPTORS:
        _refuse_links(path.parent)
        yield str(path), None
        return
    if path.is_absolute():
        top, *folders = folders or [name]
    else:
        top = "."
    descriptor = os.open(top, _FOLDER & ~_NO_LINK)
    try:
        for folder in folders:
            inner = os.open(folder, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield name, descriptor
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            _refuse_links(path)
        raise
    finally:
        os.close(descriptor)


def _refuse_links(path: Path) -> None:
    for each in (path, *path.parents):
        if each.is_symlink():
            raise OSError(errno.ELOOP, f"{each.name} is a link, which isn't followed")


def _has_kind(path: Path, is_kind) -> bool:
    try:
        found = status(path)
    except OSError:
        return False
    return found is not None and is_kind(found.st_mode)
