"""Training states as named arrays: every bit is restored, other states are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from storage_cases import one_line

from vagram_jax.run import devices, states
from vagram_jax.storage import checkpoint
from vagram_jax.storage.checkpoint import CheckpointError


def state_of(lanes):
    """A state with random keys, nested fields and an empty array."""
    keys = jax.random.split(jax.random.key(0), lanes)
    return {
        "keys": keys,
        "more": jax.vmap(lambda key: jax.random.split(key, 2))(keys),
        "tree": (jnp.arange(lanes), {"x": jnp.ones((lanes, 2)) / 3}),
        "empty": jnp.empty((lanes, 0)),
    }


def shapes(tree):
    return jax.eval_shape(lambda x: x, tree)


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.fixture(scope="module")
def state():
    """A state of three lanes, which no test changes."""
    return state_of(3)


def test_a_state_survives_packing_saving_and_unpacking(state, tmp_path):
    packed = states.pack(state)
    assert all(isinstance(array, np.ndarray) for array in packed.values())
    checkpoint.save(checkpoint.Piece(tmp_path, range(3), packed), 7)
    loaded = checkpoint.load(tmp_path, 7, range(3))
    restored = states.unpack(loaded, shapes(state), devices.Layout())
    assert shapes(restored) == shapes(state)
    assert bits(states.pack(restored)) == bits(packed)
    # The keys are usable: they draw the same numbers.
    draw = jax.vmap(jax.random.normal)
    np.testing.assert_array_equal(draw(restored["keys"]), draw(state["keys"]))


def test_named_returns_the_names_of_pack_and_skips_none(state):
    assert [*states.named(state)] == [*states.pack(state)]
    part = state | {"more": None, "tree": (None, state["tree"][1])}
    assert [*states.named(part)] == ["['empty']", "['keys']", "['tree'][1]['x']"]


def test_arrange_takes_a_part_of_the_state_and_any_number_of_lanes(state):
    packed = states.pack(state)
    part = {"keys": None, "more": None, "empty": None}
    part["tree"] = shapes(state_of(1))["tree"]
    arrays = {name: packed[name] for name in states.named(part)}
    arranged = states.arrange(arrays, part)
    np.testing.assert_array_equal(arranged["tree"][0], [0, 1, 2])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(arranged))
    assert arranged["keys"] is None
    with pytest.raises(CheckpointError, match="3 arrays differ"):
        states.arrange(packed, part)


def test_pack_copies_and_uses_no_key(key_reuse):
    state = state_of(2)
    packed = states.pack(state)
    before = bits(packed)
    donate = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    donate(state["tree"])
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
        states.unpack(packed, expected, devices.Layout())
    one_line(caught)
