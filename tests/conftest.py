"""What all tests share: the precision of matrix products, and two ways to run JAX.

No seeds, no data and no environment variables are set here. JAX's compilation cache
is off: what a test compiles is compiled by the code under test, on this machine.
"""

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture
def key_reuse():
    """Runs the test with JAX refusing a random key that is used twice."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def x64():
    """Runs the test with 64-bit floats, for oracles and finite differences.

    In all threads: what `jax.enable_x64` says, a callback's thread doesn't know.
    """
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
