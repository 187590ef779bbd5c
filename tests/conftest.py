"""Settings and fixtures that all tests share.

Programs compile with few optimizations and without XLA's fusion emitters, which takes a
third of the time; `JAX_DISABLE_MOST_OPTIMIZATIONS=0` compiles them as users do.
Compiled programs are kept in pytest's cache folder, where the workers of pytest-xdist,
the processes that tests start and the next run of the tests find them: a second run
takes about a third of the time. `pytest --cache-clear` removes them.
"""

import contextlib
import ctypes
import gc
import hashlib
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import emitters
import jax
import pytest

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_MOST_MEMORY = 1.5e9
_FEW_OPTIMIZATIONS = "JAX_DISABLE_MOST_OPTIMIZATIONS"
_FLAGS = "XLA_FLAGS"
_NO_EMITTERS = emitters.OFF

jax.config.update("jax_default_matmul_precision", "highest")


def _cpu():
    """Returns a name for this kind of CPU: programs of another one may not run here."""
    text = platform.machine()
    with contextlib.suppress(OSError):  # only Linux has the file
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text += "".join(sorted({x for x in lines if x.startswith(("flags", "model"))}))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _has_emitters(cache):
    """Returns whether XLA knows the flag: it ends a process that has an unknown one."""
    name = f"vagram/{_NO_EMITTERS[2:]}-{jax.__version__}"
    known = cache.get(name, None) if cache else None
    if known is None:
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        settings = os.environ | {_FLAGS: _NO_EMITTERS, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=settings, capture_output=True, check=False)
        known = done.returncode == 0
        if cache:
            cache.set(name, known)
    return known


def pytest_configure(config):
    """Sets up JAX in the first process; the others inherit its environment."""
    cache = getattr(config, "cache", None)
    if _FEW_OPTIMIZATIONS not in os.environ:
        os.environ[_FEW_OPTIMIZATIONS] = "1"
        jax.config.update(_FEW_OPTIMIZATIONS.lower(), True)
        if _has_emitters(cache):
            os.environ[_FLAGS] = f"{os.environ.get(_FLAGS, '')} {_NO_EMITTERS}".strip()
    if cache is not None and _FOLDER not in os.environ:
        os.environ[_FOLDER] = str(cache.mkdir(f"compiled-{_cpu()}"))
        os.environ[_MIN_SECONDS] = "0"
        jax.config.update("jax_compilation_cache_dir", os.environ[_FOLDER])
        jax.config.update(_MIN_SECONDS.lower(), 0.0)


def pytest_collection_modifyitems(items):
    """Runs the folders with the longest files first: no worker ends with one."""
    root = Path(__file__).parent
    longest = ("run", "cli", "envs")
    items.sort(key=lambda item: item.path.relative_to(root).parts[0] not in longest)


def _memory():
    """Returns the memory of this process, in bytes; infinity where it isn't known."""
    with contextlib.suppress(OSError):  # only Linux has the file
        num_pages = int(Path("/proc/self/statm").read_text().split()[1])
        return num_pages * os.sysconf("SC_PAGE_SIZE")
    return math.inf


@pytest.fixture(autouse=True, scope="module")
def _free_programs():
    """Frees compiled programs after a module once they need much memory.

    Until then the next modules use them: to compile a single operation takes 20 ms.
    """
    yield
    if _memory() > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # only glibc has it
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def key_reuse():
    """Runs the test with JAX refusing a random key that is used twice."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def x64():
    """Runs the test with 64-bit floats, for oracles and finite differences.

    In all threads: `jax.enable_x64` doesn't reach the thread of a callback.
    """
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
