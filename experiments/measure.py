"""Measures the time and the floating-point operations of programs.

All programs of a comparison are timed in turn, round by round, in one process. Their
times are medians over the rounds, so that ratios hold on a busy machine too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def seconds(
    calls: dict[str, Callable[[], Any]], *, rounds: int = 7, at_least: float = 0.2
) -> dict[str, float]:
    """Returns the median time of one call, in s, without compilation.

    Args:
      calls: names to functions that start some work and return its arrays.
      rounds: number of rounds; each times every function.
      at_least: time that a function is repeated for in each round, in s.
    """
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        repeats[name] = max(1, round(at_least / _timed(call, 1)))
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_timed(call, repeats[name]))
    return {name: statistics.median(measured) for name, measured in times.items()}


def matmul(size: int = 2048) -> tuple[Callable[[], jax.Array], float]:
    """Returns a float32 product of `[size, size]` matrices, and its operations."""
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right), 2.0 * size**3


def matmul_flops(function: Callable, *args: Any) -> float:
    """Returns the floating-point operations of all matrix products in a function.

    Multiplications and additions count separately. Other operations, such as those of
    activations and optimizers, don't count.

    Args:
      function: any function that `jax.make_jaxpr` accepts, without `while` loops.
      *args: its arguments, or their shapes.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def compiled(function: Callable, *args: Any) -> tuple[Any, float]:
    """Compiles a jitted function; returns the program and the time in s."""
    began = time.perf_counter()
    program = function.lower(*args).compile()
    return program, time.perf_counter() - began


def _timed(call: Callable[[], Any], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        arrays = call()
    jax.block_until_ready(arrays)
    return (time.perf_counter() - began) / repeats


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        repeats = equation.params.get("length", 1) if _is_scan(equation) else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += repeats * _flops(inner)
    return total


def _is_scan(equation: Any) -> bool:
    return equation.primitive.name == "scan"
