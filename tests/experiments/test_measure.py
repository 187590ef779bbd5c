"""The yardsticks of the benchmarks: operations against counts by hand, a clock."""

import functools
import time
import types

import jax
import jax.numpy as jnp
import pytest

from experiments import measure

A, B, C, D = 2, 3, 5, 7
LEFT, RIGHT = jnp.ones((A, B)), jnp.ones((B, C))
# Each of the entries of a product takes B multiplications and as many additions.
PRODUCT = 2 * A * B * C


def count(function, *args):
    found = measure.matmul_flops(function, *args)
    assert isinstance(found, float)
    return found


# --- matmul_flops ---------------------------------------------------------------------


def test_matmul_flops_of_one_product():
    assert count(jnp.matmul, LEFT, RIGHT) == PRODUCT


def test_matmul_flops_of_vectors():
    assert count(jnp.dot, jnp.ones(B), jnp.ones(B)) == 2 * B
    assert count(jnp.dot, LEFT, jnp.ones(B)) == 2 * A * B


def test_matmul_flops_counts_every_product():
    assert count(lambda a, b: a @ b @ jnp.ones((C, D)), LEFT, RIGHT) == (
        PRODUCT + 2 * A * C * D
    )


def test_matmul_flops_counts_nothing_else():
    assert count(lambda a: jnp.sum(jnp.tanh(a) * a + a), LEFT) == 0


def test_matmul_flops_of_a_contraction_over_two_axes():
    x = jnp.ones((A, B, C))
    y = jnp.ones((B, C, D))
    assert count(lambda x, y: jnp.tensordot(x, y, 2), x, y) == 2 * A * B * C * D


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_matmul_flops_under_vmap_is_as_often_as_there_are_rows(axes):
    args = [
        x if axis is None else jnp.broadcast_to(x, (D, *x.shape))
        for x, axis in zip((LEFT, RIGHT), axes, strict=True)
    ]
    assert count(jax.vmap(jnp.matmul, in_axes=axes), *args) == D * PRODUCT


def test_matmul_flops_under_nested_vmap():
    left = jnp.broadcast_to(LEFT, (D, 4, A, B))
    matmul = jax.vmap(jax.vmap(jnp.matmul, (0, None)), (0, None))
    assert count(matmul, left, RIGHT) == 4 * D * PRODUCT


def test_matmul_flops_of_a_scan_is_as_often_as_it_is_long():
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


def test_matmul_flops_of_a_gradient_is_three_products():
    # One forward, and one each for the gradients by the two factors.
    gradient = jax.grad(lambda a, b: jnp.sum(jnp.tanh(a @ b)), argnums=(0, 1))
    assert count(gradient, LEFT, RIGHT) == 3 * PRODUCT


def test_matmul_flops_of_a_gradient_by_one_factor_is_two_products():
    gradient = jax.grad(lambda a, b: jnp.sum(jnp.tanh(a @ b)))
    assert count(gradient, LEFT, RIGHT) == 2 * PRODUCT


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_matmul_flops_looks_into_wrapped_functions(wrap):
    assert count(wrap(jnp.matmul), LEFT, RIGHT) == PRODUCT


def test_matmul_flops_takes_shapes_in_place_of_arrays():
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (LEFT, RIGHT)]
    assert count(jnp.matmul, *shapes) == PRODUCT


def test_matmul_has_the_operations_that_it_says():
    call, flops = measure.matmul(8)
    assert call().shape == (8, 8)
    assert flops == count(jnp.matmul, jnp.ones((8, 8)), jnp.ones((8, 8)))


# --- seconds --------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock.sleep` moves, as the one that is read."""
    now = types.SimpleNamespace(seconds=0.0)
    now.perf_counter = lambda: now.seconds

    def sleep(seconds):
        now.seconds += seconds

    now.sleep = sleep
    monkeypatch.setattr(measure, "time", now)
    return now


def test_seconds_of_one_call_of_each_side(clock):
    sides = {
        "short": functools.partial(clock.sleep, 0.25),
        "long": functools.partial(clock.sleep, 4.0),
    }
    assert measure.seconds(sides, at_least=1.0) == {"short": 0.25, "long": 4.0}


def test_seconds_leaves_out_the_first_call(clock):
    calls = []

    def compiles_first():
        calls.append(None)
        clock.sleep(100.0 if len(calls) == 1 else 0.5)

    assert measure.seconds({"side": compiles_first}) == {"side": 0.5}


def test_seconds_repeats_a_side_to_fill_the_time(clock):
    calls = []

    def call():
        calls.append(None)
        clock.sleep(0.125)

    measure.seconds({"side": call}, rounds=3, at_least=1.0)
    # One to compile, one to see how long it takes, then eight a round.
    assert len(calls) == 2 + 3 * 8


def test_seconds_times_the_sides_in_turn(clock):
    order = []

    def side(name):
        def call():
            order.append(name)
            clock.sleep(1.0)

        return call

    measure.seconds({name: side(name) for name in "ab"}, rounds=3, at_least=1.0)
    assert "".join(order[-6:]) == "ababab"


def test_seconds_is_the_median_of_the_rounds(clock):
    # To compile, to see how long it takes, and five rounds with a burst of noise.
    times = iter([9.0, 1.0, 1.0, 50.0, 2.0, 3.0, 70.0])
    found = measure.seconds(
        {"side": lambda: clock.sleep(next(times))}, rounds=5, at_least=1.0
    )
    assert found == {"side": 3.0}


def test_seconds_waits_for_what_was_started(clock, monkeypatch):
    # Work that is only started takes no time; waiting for it does.
    monkeypatch.setattr(
        measure.jax, "block_until_ready", lambda arrays: clock.sleep(arrays)
    )
    assert measure.seconds({"side": lambda: 2.0}, at_least=1.0) == {"side": 2.0}


def test_seconds_of_a_true_sleep_is_no_less_than_it():
    found = measure.seconds({"side": lambda: time.sleep(0.01)}, rounds=3, at_least=0.01)
    assert found["side"] >= 0.01


# --- compiled -------------------------------------------------------------------------


def test_compiled_gives_a_program_that_computes_the_function():
    program, took = measure.compiled(jax.jit(jnp.matmul), LEFT, RIGHT)
    assert took > 0.0
    assert jnp.array_equal(program(LEFT, RIGHT), LEFT @ RIGHT)
