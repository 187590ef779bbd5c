"""The ring buffer: against a deque, and what its samples may hold."""

import collections

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vagram_jax import replay
from vagram_jax.types import Transition

FIELDS = ["obs", "action", "reward", "next_obs", "terminated", "truncated"]

add = jax.jit(replay.add)
draw = jax.jit(replay.sample, static_argnums=2)


def rows_of(ids):
    """Transitions whose every field tells which row and which field it is."""
    ids = np.asarray(ids)
    number = ids.astype(np.float32)  # exact, with its eighths, for small numbers
    return Transition(
        obs=np.stack([number, number + 0.125], axis=-1),
        action=number[..., None] + 0.25,
        reward=number + 0.375,
        next_obs=np.stack([number + 0.5, number + 0.625], axis=-1),
        terminated=ids % 2 == 0,
        truncated=ids % 3 == 0,
    )


def empty(capacity):
    return replay.init(obs_dim=2, action_dim=1, capacity=capacity)


def at(tree, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


def stack(trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def filled(ids, capacity):
    return add(empty(capacity), rows_of(ids), np.ones(len(ids), bool))


def ids_of(data):
    """Which rows these are, after a look that their fields belong together."""
    ids = np.asarray(data.obs[..., 0]).astype(int)
    assert_equal(data, rows_of(ids))
    return ids


def assert_equal(actual, expected):
    for name in FIELDS:
        np.testing.assert_array_equal(
            getattr(actual, name), getattr(expected, name), err_msg=name
        )


# Few shapes, for each is compiled; 7 is divided by none of the batch sizes but itself.
batches = st.lists(
    st.sampled_from([1, 3, 7]).flatmap(
        lambda size: st.lists(st.booleans(), min_size=size, max_size=size)
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batches)
def test_add_keeps_what_a_deque_keeps(masks):
    state, expected, next_id = empty(7), collections.deque(maxlen=7), 1
    for mask in masks:
        ids = np.arange(next_id, next_id + len(mask))
        state = add(state, rows_of(ids), np.array(mask))
        expected.extend(ids[mask])
        next_id += len(mask)
    assert int(state.size) == len(expected)
    oldest = int(state.insert_at) - len(expected)
    order = np.arange(oldest, oldest + len(expected)) % 7
    np.testing.assert_array_equal(ids_of(at(state.data, order)), expected)


def test_add_overwrites_the_oldest_rows_across_the_end():
    state = filled([1, 2, 3, 4], capacity=5)
    state = add(state, rows_of([5, 6, 7]), np.ones(3, bool))
    np.testing.assert_array_equal(ids_of(state.data), [6, 7, 3, 4, 5])


def test_add_of_a_batch_as_large_as_the_buffer_replaces_all():
    state = filled([1, 2], capacity=5)
    state = add(state, rows_of(np.arange(10, 15)), np.ones(5, bool))
    np.testing.assert_array_equal(np.sort(ids_of(state.data)), np.arange(10, 15))
    assert int(state.insert_at) == 2


def test_add_of_no_valid_row_changes_nothing():
    state = filled([1, 2, 3], capacity=5)
    actual = add(state, rows_of([8, 9]), np.zeros(2, bool))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)


def test_add_drops_nan_in_invalid_rows():
    nan = jax.tree.map(
        lambda x: x if x.dtype == bool else x * np.float32(np.nan),
        rows_of(np.arange(3)),
    )
    state = add(filled([1, 2], capacity=5), nan, np.zeros(3, bool))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_add_refuses_a_batch_larger_than_the_buffer(wrap):
    with pytest.raises(ValueError, match="batch of 6 rows; at most the capacity, 5"):
        wrap(replay.add)(empty(5), rows_of(np.arange(6)), np.ones(6, bool))


def test_add_keeps_the_types_and_shapes_of_the_state():
    state = empty(5)
    actual = add(state, rows_of([1, 2]), np.ones(2, bool))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def test_add_vmapped_over_seeds_equals_a_loop():
    masks = np.array([[True, False, True], [False, False, False], [True, True, True]])
    states = [filled(np.arange(size), capacity=5) for size in (1, 3, 4)]
    ids = np.arange(10, 19).reshape(3, 3)
    stacked = stack(states)
    actual = jax.jit(jax.vmap(replay.add))(stacked, rows_of(ids), masks)
    for index, state in enumerate(states):
        expected = add(state, rows_of(ids[index]), masks[index])
        leaves = jax.tree.leaves(at(actual, index))
        for x, y in zip(leaves, jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.usefixtures("key_reuse")
@pytest.mark.parametrize("size", [1, 4, 7])
def test_sample_never_gives_a_row_that_was_not_written(size):
    state = filled(np.arange(1, size + 1), capacity=7)
    # Sentinels where nothing was written; the id of no row.
    data = jax.tree.map(
        lambda old, new: np.concatenate([np.asarray(old)[:size], new[size:]]),
        state.data,
        rows_of(np.full(7, 99)),
    )
    actual = draw(jax.random.key(0), state.replace(data=data), (2000,))
    assert set(ids_of(actual)) == set(range(1, size + 1))


@pytest.mark.usefixtures("key_reuse")
@pytest.mark.parametrize("size", [4, 7])
def test_sample_is_uniform_over_the_rows_written(size):
    state = filled(np.arange(size), capacity=7)
    actual = ids_of(draw(jax.random.key(1), state, (100_000,)))
    counts = np.bincount(actual, minlength=size)
    # The key is fixed: this can't fail now and then, only for a biased sampler.
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.usefixtures("key_reuse")
def test_sample_returns_whole_rows_in_the_given_shape():
    state = filled(np.arange(7), capacity=7)
    actual = draw(jax.random.key(2), state, (3, 4))
    assert actual.next_obs.shape == (3, 4, 2)
    assert ids_of(actual).shape == (3, 4)


def test_sample_of_an_empty_buffer_gives_its_first_row():
    actual = draw(jax.random.key(3), empty(4), (5,))
    np.testing.assert_array_equal(actual.obs, np.zeros((5, 2)))


@pytest.mark.usefixtures("key_reuse")
def test_sample_vmapped_over_seeds_stays_in_each_seeds_rows():
    states = [filled(100 * i + np.arange(i + 1), capacity=7) for i in range(3)]
    stacked = stack(states)
    keys = jax.random.split(jax.random.key(4), 3)
    actual = jax.vmap(draw, in_axes=(0, 0, None))(keys, stacked, (500,))
    for index, ids in enumerate(ids_of(actual)):
        assert set(ids) == set(100 * index + np.arange(index + 1))


def test_take_returns_the_given_rows():
    data = rows_of(np.arange(7))
    np.testing.assert_array_equal(
        ids_of(jax.jit(replay.take)(data, np.array([[6, 0], [2, 2]]))), [[6, 0], [2, 2]]
    )


def test_capacity_is_the_number_of_rows():
    assert empty(5).capacity == 5
