"""Ring buffers of real and of imagined transitions, as arrays in the training state.

A full buffer overwrites its oldest rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax.types import Transition


@struct.dataclass(kw_only=True)
class ReplayState:
    """A ring of transitions.

    Attributes:
      data: `[N, ...]` each; rows from `size` on were never written.
      insert_at: int32 scalar, the row of the next transition.
      size: int32 scalar, number of rows that hold transitions.
    """

    data: Transition  # [N, ...]
    insert_at: jax.Array  # []
    size: jax.Array  # []

    @property
    def capacity(self) -> int:
        """Returns N, the number of rows."""
        return self.data.reward.shape[0]


def init(*, obs_dim: int, action_dim: int, capacity: int) -> ReplayState:
    """Returns an empty buffer of `capacity` rows."""
    return ReplayState(
        data=Transition(
            obs=jnp.zeros((capacity, obs_dim)),
            action=jnp.zeros((capacity, action_dim)),
            reward=jnp.zeros(capacity),
            next_obs=jnp.zeros((capacity, obs_dim)),
            terminated=jnp.zeros(capacity, bool),
            truncated=jnp.zeros(capacity, bool),
        ),
        insert_at=jnp.int32(0),
        size=jnp.int32(0),
    )


def add(state: ReplayState, batch: Transition, valid: jax.Array) -> ReplayState:
    """Adds a batch of transitions to the buffer, in order.

    Args:
      state: the buffer.
      batch: `[B, ...]`, B at most the capacity.
      valid: `[B]` bool; other rows are left out.

    Raises:
      ValueError: the batch is larger than the buffer.
    """
    capacity, batch_size = state.capacity, batch.reward.shape[0]
    if batch_size > capacity:
        raise ValueError(
            f"replay.add: batch of {batch_size} rows; at most the capacity, "
            f"{capacity}; raise the capacity or add in parts"
        )
    rank = jnp.cumsum(valid) - 1  # index of a row among the valid ones
    # Invalid rows get an index out of bounds, and such writes are dropped.
    rows = jnp.where(valid, (state.insert_at + rank) % capacity, capacity)
    num_added = jnp.sum(valid, dtype=jnp.int32)
    return state.replace(
        data=jax.tree.map(
            lambda old, new: old.at[rows].set(new.astype(old.dtype), mode="drop"),
            state.data,
            batch,
        ),
        insert_at=(state.insert_at + num_added) % capacity,
        size=jnp.minimum(state.size + num_added, capacity),
    )


def sample(key: jax.Array, state: ReplayState, shape: tuple[int, ...]) -> Transition:
    """Samples transitions uniformly, with replacement.

    Args:
      key: random key.
      state: the buffer; from an empty one the first, unwritten row is sampled.
      shape: leading axes of the result.

    Returns:
      `[*shape, ...]` transitions.
    """
    rows = jax.random.randint(key, shape, 0, jnp.maximum(state.size, 1))
    return take(state.data, rows)


def in_order(state: ReplayState) -> Transition:
    """Returns the rows that were written, the oldest first, as NumPy arrays.

    Args:
      state: the buffer, not traced.
    """
    size = int(state.size)
    rows = (int(state.insert_at) - size + np.arange(size)) % state.capacity
    return jax.tree.map(lambda x: np.asarray(x)[rows], state.data)


def take(data: Transition, rows: jax.Array) -> Transition:
    """Returns the given rows of transitions.

    Args:
      data: `[N, ...]`.
      rows: `[...]` int, each in [0, N).
    """
    # The rows are in bounds by construction; the promise saves a pass over them.
    return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), data)
