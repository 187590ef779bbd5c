"""The folder in which compiled programs are kept for later commands.

JAX executes what it reads from the folder, so it is used only if no other user can
write to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import tempfile
from pathlib import Path

import jax

# Reading a program that compiles faster than this from the cache saves no time.
_MIN_SECONDS = 0.3
# JAX removes the programs that were not used for the longest time beyond this size.
_MAX_BYTES = 1_000_000_000

# A folder for this process alone, removed at exit.
_own_folder: tempfile.TemporaryDirectory | None = None


def use(*, keep: bool = True) -> None:
    """Lets JAX read and write compiled programs on disk. Call it before compiling.

    A `jax_compilation_cache_dir` that the user has set stays in place, and
    `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off.

    Args:
      keep: use the folder `vagram_jax` in the user's cache folder (`XDG_CACHE_HOME`, by
        default `~/.cache`), of at most 1 GB. Otherwise, or if another user could write
        to that folder, a temporary one is used, which still serves all runs of one
        command: those that differ only in the loss have most programs in common.
    """
    is_enabled = jax.config.jax_enable_compilation_cache
    if not is_enabled or jax.config.jax_compilation_cache_dir:
        return
    with contextlib.suppress(OSError):  # without a cache training is only slower
        folder = (_kept_folder() if keep else None) or _temporary_folder()
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)


def _kept_folder() -> str | None:
    """Makes the folder of this user and CPU; None if it isn't private or can't be."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of XDG_CACHE_HOME says to ignore a relative path.
    parent = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    private = parent / "vagram_jax"
    folder = private / f"compiled-{_cpu()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        private.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        is_private = all(map(_is_private, (private, folder)))
        return str(folder) if is_private and os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # a home that can't be written, or none at all
        return None


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    is_mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    is_closed = os.name != "posix" or not stat.S_IMODE(found.st_mode) & 0o022
    return stat.S_ISDIR(found.st_mode) and is_mine and is_closed


def _temporary_folder() -> str:
    global _own_folder
    if _own_folder is None:
        _own_folder = tempfile.TemporaryDirectory(prefix="vagram_jax-")
    return _own_folder.name


def _cpu() -> str:
    """A name for this kind of CPU: a program for another one may not run here."""
    text = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):  # only Linux has the file
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text += "".join(sorted({x for x in lines if x.startswith(("flags", "model"))}))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
