"""Settings and fixtures that all tests share.

The workers of pytest-xdist and the processes that tests start share one cache of
compiled programs. It is a new folder, removed at the end, so that what a test runs was
compiled on this machine by the code under test.
"""

import gc
import os
import shutil
import tempfile

import jax
import pytest

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_configure(config):
    """Makes the cache in the first process; the others inherit its environment."""
    if _FOLDER not in os.environ:
        folder = tempfile.mkdtemp(prefix="vagram_jax-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ[_FOLDER] = folder
        os.environ[_MIN_SECONDS] = "0.1"
    jax.config.update("jax_compilation_cache_dir", os.environ[_FOLDER])
    jax.config.update(_MIN_SECONDS.lower(), float(os.environ[_MIN_SECONDS]))


@pytest.fixture(autouse=True, scope="module")
def _free_programs():
    """Frees compiled programs after each module: a worker would need many gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def no_compilation_cache(monkeypatch):
    """Lets processes that the test starts run without the cache of the tests."""
    monkeypatch.delenv(_FOLDER)
    monkeypatch.delenv(_MIN_SECONDS)


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
