"""Starts Python processes that share one cache of compiled programs.

The programs of these processes are the same in many tests, so only the first process
compiles them. With few optimizations that takes half the time.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CACHE = tempfile.TemporaryDirectory(prefix="vagram_jax_tests-")


def start(*args, path=(), num_devices=1, **settings):
    """Starts Python with so many CPU devices.

    `path` is put in front of Python's path, `settings` are environment variables.
    """
    folders = [*map(str, path), str(ROOT), str(ROOT / "tests")]
    settings = {
        "PYTHONPATH": os.pathsep.join(folders),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    } | settings
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        env=os.environ | {name: value for name, value in settings.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process):
    """Status, standard output and standard error of a process, once it has ended."""
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error
