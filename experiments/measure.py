"""Measures the time and the floating-point operations of programs.

All programs of a comparison are timed in turn, round by round, in one process. Their
times are medians over the rounds, so that ratios hold on a busy machine too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
    closed = jax.make_jaxpr(function)(*args)
    found = _products(closed.jaxpr)
    return float(sum(repeats * _flops(product) for product, repeats in found))


def products_alone(function: Callable, *args: Any) -> Callable[[], Any]:
    """Returns a program of the matrix products in a function, and of nothing else.

    Each product of the code is computed once, also where a loop repeats it. A program
    can't be faster than its products, which at their sizes don't reach the rate of a
    large product.

    Args:
      function: any function that `jax.make_jaxpr` accepts.
      *args: its arguments, or their shapes.
    """
    closed = jax.make_jaxpr(function)(*args)
    found = [each for each, _ in _products(closed.jaxpr)]
    draw = np.random.default_rng(0).standard_normal
    # Each product has matrices of its own: equal products would be computed once.
    pairs = [
        [jnp.asarray(draw(x.aval.shape), x.aval.dtype) for x in each.invars]
        for each in found
    ]
    numbers = [each.params["dimension_numbers"] for each in found]

    @jax.jit
    def program(pairs):
        return [
            jax.lax.dot_general(*pair, dimensions)
            for pair, dimensions in zip(pairs, numbers, strict=True)
        ]

    return lambda: program(pairs)


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


def _products(jaxpr: Any, repeats: int = 1) -> Iterator[tuple[Any, int]]:
    """Yields each matrix product, and how often the loops around it repeat it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation, repeats
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _products(inner, repeats * length)


def _flops(product: Any) -> float:
    (contracted, _), _ = product.params["dimension_numbers"]
    left = product.invars[0].aval.shape
    inner = math.prod(left[axis] for axis in contracted)
    return 2.0 * inner * math.prod(product.outvars[0].aval.shape)
