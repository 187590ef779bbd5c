"""Counts of operations, against counts by hand; times, with a clock of the test."""

import functools
import time
import types

import jax
import jax.numpy as jnp
import pytest

from experiments import measure

A, B, C, D = 2, 3, 5, 7
LEFT, RIGHT = jnp.ones((A, B)), jnp.ones((B, C))
# Each entry of the product takes B multiplications and B additions.
PRODUCT = 2 * A * B * C


def count(function, *args):
    flops = measure.matmul_flops(function, *args)
    assert isinstance(flops, float)
    return flops


def _tanh_sum(a, b):
    return jnp.sum(jnp.tanh(a @ b))


# --- matmul_flops ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "flops"),
    [
        (jnp.matmul, (LEFT, RIGHT), PRODUCT),
        (jnp.dot, (jnp.ones(B), jnp.ones(B)), 2 * B),
        (jnp.dot, (LEFT, jnp.ones(B)), 2 * A * B),
        (lambda a, b: a @ b @ jnp.ones((C, D)), (LEFT, RIGHT), PRODUCT + 2 * A * C * D),
        (lambda a: jnp.sum(jnp.tanh(a) * a + a), (LEFT,), 0),
        (
            lambda x, y: jnp.tensordot(x, y, 2),
            (jnp.ones((A, B, C)), jnp.ones((B, C, D))),
            2 * A * B * C * D,
        ),
        # One product forward, and one for the gradient by each factor.
        (jax.grad(_tanh_sum, argnums=(0, 1)), (LEFT, RIGHT), 3 * PRODUCT),
        (jax.grad(_tanh_sum), (LEFT, RIGHT), 2 * PRODUCT),
        (jax.jit(jnp.matmul), (LEFT, RIGHT), PRODUCT),
        (jax.checkpoint(jnp.matmul), (LEFT, RIGHT), PRODUCT),
    ],
    ids=(
        *("product", "vectors", "matrix and vector", "two products", "no product"),
        *("two axes", "gradients", "gradient", "jit", "checkpoint"),
    ),
)
def test_matmul_flops_counts_only_matrix_products(function, args, flops):
    assert count(function, *args) == flops
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args]
    assert count(function, *shapes) == flops


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_matmul_flops_under_vmap_multiplies_by_the_batch_size(axes):
    args = [
        x if axis is None else jnp.broadcast_to(x, (D, *x.shape))
        for x, axis in zip((LEFT, RIGHT), axes, strict=True)
    ]
    assert count(jax.vmap(jnp.matmul, in_axes=axes), *args) == D * PRODUCT


def test_matmul_flops_under_nested_vmap():
    left = jnp.broadcast_to(LEFT, (D, 4, A, B))
    matmul = jax.vmap(jax.vmap(jnp.matmul, (0, None)), (0, None))
    assert count(matmul, left, RIGHT) == 4 * D * PRODUCT


def test_matmul_flops_of_a_scan_multiplies_by_its_length():
    square = jnp.ones((B, B))

    def power(x):
        return jax.lax.scan(lambda x, _: (x @ square, None), x, length=D)[0]

    assert count(power, LEFT) == D * 2 * A * B * B


def test_matmul_flops_of_a_scan_in_a_scan():
    def inner(x, _):
        return jax.lax.scan(lambda x, _: (x @ jnp.ones((B, B)), None), x, length=3)

    def outer(x):
        return jax.lax.scan(lambda x, _: (inner(x, None)[0], None), x, length=4)[0]

    assert count(outer, LEFT) == 12 * 2 * A * B * B


def test_products_alone_computes_each_product_of_a_function_once():
    def step(x, _):
        return jnp.tanh(x @ jnp.ones((B, B))) + 1.0, None

    def function(x):
        return jax.lax.scan(step, x, length=D)[0] @ jnp.ones((B, C))

    call = measure.products_alone(function, LEFT)
    assert [product.shape for product in call()] == [(A, B), (A, C)]


def test_products_alone_has_the_products_of_a_gradient():
    gradient = jax.grad(_tanh_sum, argnums=(0, 1))
    call = measure.products_alone(gradient, LEFT, RIGHT)
    shapes = sorted(sorted(product.shape) for product in call())
    assert shapes == [[A, B], [A, C], [B, C]]


def test_products_alone_computes_equal_products_apart():
    call = measure.products_alone(lambda a, b: (a @ b, a @ b + 1.0), LEFT, RIGHT)
    first, second = call()
    assert not jnp.allclose(first, second)


def test_matmul_returns_a_product_and_its_operations():
    call, flops = measure.matmul(8)
    assert call().shape == (8, 8)
    assert flops == count(jnp.matmul, jnp.ones((8, 8)), jnp.ones((8, 8)))


# --- seconds --------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that `measure` reads and that only `clock.sleep` moves."""
    now = types.SimpleNamespace(seconds=0.0)
    now.perf_counter = lambda: now.seconds

    def sleep(seconds):
        now.seconds += seconds

    now.sleep = sleep
    monkeypatch.setattr(measure, "time", now)
    return now


def test_seconds_returns_the_time_of_one_call(clock):
    calls = {
        "short": functools.partial(clock.sleep, 0.25),
        "long": functools.partial(clock.sleep, 4.0),
    }
    assert measure.seconds(calls, at_least=1.0) == {"short": 0.25, "long": 4.0}


def test_seconds_leaves_out_the_first_call(clock):
    calls = []

    def compiles_first():
        calls.append(None)
        clock.sleep(100.0 if len(calls) == 1 else 0.5)

    assert measure.seconds({"side": compiles_first}) == {"side": 0.5}


def test_seconds_repeats_a_call_for_the_given_time(clock):
    calls = []

    def call():
        calls.append(None)
        clock.sleep(0.125)

    measure.seconds({"side": call}, rounds=3, at_least=1.0)
    # One to compile, one to measure its time, then eight in each round.
    assert len(calls) == 2 + 3 * 8


def test_seconds_times_the_calls_in_turn(clock):
    order = []

    def side(name):
        def call():
            order.append(name)
            clock.sleep(1.0)

        return call

    measure.seconds({name: side(name) for name in "ab"}, rounds=3, at_least=1.0)
    assert "".join(order[-6:]) == "ababab"


def test_seconds_is_the_median_of_the_rounds(clock):
    # One to compile, one to measure its time, and five rounds, two of them disturbed.
    durations = iter([9.0, 1.0, 1.0, 50.0, 2.0, 3.0, 70.0])
    times = measure.seconds(
        {"side": lambda: clock.sleep(next(durations))}, rounds=5, at_least=1.0
    )
    assert times == {"side": 3.0}


def test_seconds_waits_until_the_work_is_done(clock, monkeypatch):
    # The call only starts the work; the time is spent in waiting for it.
    monkeypatch.setattr(
        measure.jax, "block_until_ready", lambda arrays: clock.sleep(arrays)
    )
    assert measure.seconds({"side": lambda: 2.0}, at_least=1.0) == {"side": 2.0}


def test_seconds_of_a_real_sleep_is_at_least_its_time():
    times = measure.seconds({"side": lambda: time.sleep(0.01)}, rounds=3, at_least=0.01)
    assert times["side"] >= 0.01


# --- compiled -------------------------------------------------------------------------


def test_compiled_returns_a_program_that_computes_the_function():
    program, took = measure.compiled(jax.jit(jnp.matmul), LEFT, RIGHT)
    assert took > 0.0
    assert jnp.array_equal(program(LEFT, RIGHT), LEFT @ RIGHT)
