"""Checks of `run.devices` that need a process with four devices, for `test_devices`."""

import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax.run import devices

LANES = 8
CALLED_WITH = []


def host(x):
    CALLED_WITH.append(np.shape(x))
    return np.cos(x).astype(np.float32)


def lane(x, scale):
    """A small loop with random numbers, a matrix product and a call of the host."""
    key = jax.random.key(x["seed"])

    def step(carry, key):
        carry = jnp.tanh(x["matrix"] @ carry + 0.1 * jax.random.normal(key, (3,)))
        called = jax.pure_callback(
            host, jax.typeof(carry), carry, vmap_method="broadcast_all"
        )
        return scale * carry + called, carry.sum()

    return jax.lax.scan(step, jnp.ones(3), jax.random.split(key, 5))


def inputs(lanes=LANES):
    matrix = np.random.default_rng(0).normal(size=(lanes, 3, 3))
    return {"seed": np.arange(lanes, dtype=np.uint32), "matrix": np.float32(matrix)}


def over(layout, **settings):
    return devices.over_lanes(lane, layout, in_axes=(0, None), **settings)


def each_alone(tree, scale):
    """Each lane in a plain call of its own."""
    one = jax.jit(lane)
    rows = [
        one(jax.tree.map(lambda x: x[i], tree), scale) for i in range(len(tree["seed"]))
    ]
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def assert_equal(result, expected):
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def assert_close(result, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), result, expected
    )


def refusal(layout, lanes_that_fit):
    """The error for memory that holds so many lanes on each device."""
    program = over(layout)
    shapes = jax.eval_shape(lambda x: x, (inputs(), np.float32(0.5)))
    usage = program.lower(*shapes).compile().memory_analysis()
    needed = usage.argument_size_in_bytes + usage.output_size_in_bytes
    needed += usage.temp_size_in_bytes - usage.alias_size_in_bytes
    limit = lanes_that_fit * needed / (LANES // layout.mesh.size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "memory_limit", lambda: limit)
        settings = {"num_lanes": LANES, "layout": layout}
        with pytest.raises(devices.DeviceError) as caught:
            devices.check_memory(program, *shapes, **settings)
        assert "\n" not in str(caught.value)
        for enough in (float(needed), None):
            patch.setattr(devices, "memory_limit", lambda enough=enough: enough)
            devices.check_memory(program, *shapes, **settings)
    return str(caught.value)


def a_cluster_of_one_process_is_refused():
    try:
        devices.initialize()
    except ValueError as error:
        assert "--coordinator" in str(error)
        assert str(error).startswith("--distributed: ")
        assert "\n" not in str(error)
    else:
        raise AssertionError("joined a cluster")


def one_device():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), (devices.AXIS,))


def four_devices_compute_the_same_as_one():
    layout, one = devices.Layout(), devices.Layout(mesh=one_device())
    result = over(layout)(inputs(), 0.5)
    assert len(result[0].sharding.device_set) == 4
    assert_close(result, over(one)(inputs(), 0.5))
    assert_close(result, each_alone(inputs(), 0.5))
    # One lane per device isn't batched.
    few = jax.tree.map(lambda x: x[:4], inputs())
    assert_equal(over(layout)(few, 0.5), each_alone(few, 0.5))


def serial_lanes_have_the_bits_of_plain_calls():
    for mesh in (None, one_device()):
        CALLED_WITH.clear()
        result = over(devices.Layout("serial", mesh))(inputs(), 0.5)
        jax.block_until_ready(result)
        # One lane at a time, which is why the bits are the same.
        assert CALLED_WITH == [(3,)] * (5 * LANES)
        assert_equal(result, each_alone(inputs(), 0.5))


def lanes_are_split_evenly():
    layout = devices.Layout()
    assert layout.mesh.size == 4
    assert [layout.padded(n) for n in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, 12]
    assert devices.own_lanes(layout, 8) == range(8)
    assert devices.agree(-3) == -3
    assert devices.describe() == f"4 x cpu ({devices._processor()})"
    shards = devices.put(np.arange(8), layout, 8).addressable_shards
    assert [s.data.tolist() for s in shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def fetch_returns_what_was_put():
    layout = devices.Layout()
    tree = inputs() | {"empty": np.empty((LANES, 0)), "bool": np.arange(LANES) > 3}
    lanes = devices.put(tree, layout, LANES)
    for fetch in (devices.fetch_own, devices.fetch_all):
        back = fetch(lanes)
        assert_equal(back, tree)
        assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(
            lambda x: x.dtype, jax.tree.map(jnp.asarray, tree)
        )
    spread = jax.jit(jax.vmap(jax.random.key), out_shardings=layout.sharding)
    keys = spread(lanes["seed"])
    expected = jax.random.key_data(jax.vmap(jax.random.key)(jnp.arange(LANES)))
    # Fetching doesn't count as a use of a key.
    with jax.debug_key_reuse(True):
        for _ in range(2):
            assert_equal(devices.fetch_own(keys), expected)
        jax.vmap(jax.random.normal)(keys)


def a_copy_survives_the_donation_of_its_array():
    layout = devices.Layout()
    more = devices.over_lanes(lambda x: x + 1.0, layout, in_axes=(0,), donate=(0,))
    lanes = devices.put(np.zeros((LANES, 1000), np.float32), layout, LANES)
    copy = devices.fetch_own(lanes)
    result = more(lanes)
    assert lanes.is_deleted()
    result = more(result)
    assert (copy == 0).all()
    assert (np.asarray(result) == 2).all()
    without_donation = devices.over_lanes(lambda x: x + 1.0, layout, in_axes=(0,))
    without_donation(result)
    assert not result.is_deleted()


def lanes_that_fit_are_counted_on_all_devices():
    text = refusal(devices.Layout(), lanes_that_fit=1.5)
    assert f"{LANES} seeds need" in text
    assert "on each of 4 devices" in text
    assert "4 seeds fit; set --seed_chunk=4" in text


CHECKS = [
    a_cluster_of_one_process_is_refused,  # before JAX is used
    four_devices_compute_the_same_as_one,
    serial_lanes_have_the_bits_of_plain_calls,
    lanes_are_split_evenly,
    fetch_returns_what_was_put,
    a_copy_survives_the_donation_of_its_array,
    lanes_that_fit_are_counted_on_all_devices,
]


def run():
    """The traceback of each check, empty if it passed."""
    tracebacks = {}
    for check in CHECKS:
        try:
            check()
            tracebacks[check.__name__] = ""
        except Exception:
            tracebacks[check.__name__] = traceback.format_exc()
    return tracebacks
