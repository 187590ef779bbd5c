"""Compiles with XLA's fusion emitters, which `conftest` turns off to save time.

Without them two programs may round the same arithmetic differently. Tests that compare
the bits of two programs compile them here, as users do.
"""

import os

import jax

OFF = "--xla_cpu_use_fusion_emitters=false"


def jit(function, **options):
    """`jax.jit` with the emitters."""
    if OFF in os.environ.get("XLA_FLAGS", ""):
        options["compiler_options"] = {"xla_cpu_use_fusion_emitters": True}
    return jax.jit(function, **options)
