"""Training states as named arrays: every bit is restored, other states are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from storage_cases import one_line

from vagram_jax.run import devices, state_arrays
from vagram_jax.storage import checkpoint
from vagram_jax.storage.checkpoint import CheckpointError


def states_of(lanes):
    """States with random keys, nested fields and an empty array."""
    keys = jax.random.split(jax.random.key(0), lanes)
    return {
        "keys": keys,
        "more": jax.vmap(lambda key: jax.random.split(key, 2))(keys),
        "tree": (jnp.arange(lanes), {"x": jnp.ones((lanes, 2)) / 3}),
        "empty": jnp.empty((lanes, 0)),
    }


def shapes(states):
    return jax.eval_shape(lambda x: x, states)


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.fixture(scope="module")
def states():
    return states_of(3)


def test_states_survive_packing_saving_and_unpacking(states, tmp_path):
    packed = state_arrays.pack(states)
    assert all(isinstance(array, np.ndarray) for array in packed.values())
    checkpoint.save(checkpoint.Piece(tmp_path, range(3), packed), 7)
    loaded = checkpoint.load(tmp_path, 7, range(3))
    restored = state_arrays.unpack(loaded, shapes(states), devices.Layout())
    assert shapes(restored) == shapes(states)
    assert bits(state_arrays.pack(restored)) == bits(packed)
    # The keys are usable: they draw the same numbers.
    draw = jax.vmap(jax.random.normal)
    np.testing.assert_array_equal(draw(restored["keys"]), draw(states["keys"]))


def test_named_gives_the_names_of_pack_and_none_to_none(states):
    assert [*state_arrays.named(states)] == [*state_arrays.pack(states)]
    part = states | {"more": None, "tree": (None, states["tree"][1])}
    assert [*state_arrays.named(part)] == ["['empty']", "['keys']", "['tree'][1]['x']"]


def test_arrange_takes_a_part_of_the_state_and_any_number_of_lanes(states):
    packed = state_arrays.pack(states)
    part = {"keys": None, "more": None, "empty": None}
    part["tree"] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), states["tree"]
    )
    arrays = {name: packed[name] for name in state_arrays.named(part)}
    arranged = state_arrays.arrange(arrays, part)
    np.testing.assert_array_equal(arranged["tree"][0], [0, 1, 2])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(arranged))
    assert arranged["keys"] is None
    with pytest.raises(CheckpointError, match="3 arrays differ"):
        state_arrays.arrange(packed, part)


def test_pack_copies_and_uses_no_key(key_reuse):
    states = states_of(2)
    packed = state_arrays.pack(states)
    before = bits(packed)
    increment = jax.jit(
        lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0
    )
    increment(states["tree"])
    assert bits(packed) == before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 4), np.float32)}, r"\['x'\] is .*4.*has .*3"),
        ({"x": np.zeros((2, 3), np.int32)}, r"\['x'\] is .*int32.*float32"),
        ({"z": np.zeros((2, 3), np.float32)}, r"\['x'\] is missing"),
        (
            {"x": np.zeros((2, 3), np.float32), "z": np.zeros(2)},
            r"\['z'\] is .*float64.*this run has none",
        ),
        ({}, r"\['x'\] is missing"),
    ],
)
def test_unpack_refuses_other_states(arrays, message):
    packed = {f"['{name}']": array for name, array in arrays.items()}
    expected = {"x": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    with pytest.raises(CheckpointError, match=message) as caught:
        state_arrays.unpack(packed, expected, devices.Layout())
    one_line(caught)
