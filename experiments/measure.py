"""How fast programs are, as ratios that hold on a noisy machine.

All sides of a comparison are timed in turn, round by round, in one process, and the
median of the rounds is what is quoted.
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
    sides: dict[str, Callable[[], Any]], *, rounds: int = 7, at_least: float = 0.2
) -> dict[str, float]:
    """How long one call of each side takes, the median over rounds.

    Args:
      sides: names to functions that start some work and return its arrays.
      rounds: how often every side is timed, in turn.
      at_least: seconds that a side runs in each round; it is repeated to fill them.

    Returns:
      Names to seconds per call. Compiling is not counted.
    """
    repeats = {}
    for name, call in sides.items():
        jax.block_until_ready(call())
        repeats[name] = max(1, round(at_least / _timed(call, 1)))
    found = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            found[name].append(_timed(call, repeats[name]))
    return {name: statistics.median(times) for name, times in found.items()}


def matmul(size: int = 2048) -> tuple[Callable[[], jax.Array], float]:
    """The yardstick: a large square float32 matrix product.

    Args:
      size: of the matrices.

    Returns:
      A function that computes one, and its floating-point operations.
    """
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right), 2.0 * size**3


def matmul_flops(function: Callable, *args: Any) -> float:
    """Floating-point operations of all matrix products in a function.

    Nothing else is counted: what activations and optimisers cost is overhead.

    Args:
      function: what `jax.make_jaxpr` takes, without loops of unknown length.
      *args: its arguments.

    Returns:
      Multiplications and additions, counted apart.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def compiled(function: Callable, *args: Any) -> tuple[Any, float]:
    """A compiled program and the seconds that tracing and compiling took.

    Args:
      function: made by `jax.jit`.
      *args: its arguments.

    Returns:
      The program and the seconds.
    """
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
        times = equation.params.get("length", 1) if _is_scan(equation) else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * _flops(inner)
    return total


def _is_scan(equation: Any) -> bool:
    return equation.primitive.name == "scan"
