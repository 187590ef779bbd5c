"""The buffers: real transitions and imagined ones, as arrays in the training state.

Comes in: transitions from the environment or from the model. Goes out: random
batches. A full buffer forgets its oldest rows first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax.types import Transition


@struct.dataclass(kw_only=True)
class ReplayState:
    """A ring of transitions.

    Attributes:
      data: `[N, ...]` each; rows from `size` on were never written.
      insert_at: int32 scalar, the row that the next transition goes to.
      size: int32 scalar, how many rows hold transitions.
    """

    data: Transition  # [N, ...]
    insert_at: jax.Array  # []
    size: jax.Array  # []

    @property
    def capacity(self) -> int:
        """N, the number of rows."""
        return self.data.reward.shape[0]


def init(*, obs_dim: int, action_dim: int, capacity: int) -> ReplayState:
    """An empty buffer.

    Args:
      obs_dim: size of an observation.
      action_dim: size of an action.
      capacity: N, the most transitions that it holds.

    Returns:
      The buffer, with zeros in its rows.
    """
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
    """The buffer with a batch of transitions added, in order.

    Args:
      state: the buffer.
      batch: `[B, ...]`, B at most the capacity.
      valid: `[B]` bool; rows that are False are left out.

    Returns:
      The new buffer.

    Raises:
      ValueError: the batch is larger than the buffer.
    """
    capacity, batch_size = state.capacity, batch.reward.shape[0]
    if batch_size > capacity:
        raise ValueError(
            f"replay.add: batch of {batch_size} rows; at most the capacity, "
            f"{capacity}; raise the capacity or add in parts"
        )
    rank = jnp.cumsum(valid) - 1  # the how-manieth valid row this is
    # Writes out of bounds are dropped, which is what invalid rows want.
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
    """Uniformly random transitions, with replacement.

    Args:
      key: used once.
      state: the buffer. An empty one gives its first, unwritten row.
      shape: the leading axes of the result.

    Returns:
      `[*shape, ...]` transitions.
    """
    rows = jax.random.randint(key, shape, 0, jnp.maximum(state.size, 1))
    return take(state.data, rows)


def take(data: Transition, rows: jax.Array) -> Transition:
    """The named rows of transitions.

    Args:
      data: `[N, ...]`.
      rows: `[...]` int, each in [0, N).

    Returns:
      `[..., ...]` transitions.
    """
    # The rows are in bounds by construction; saying so saves a pass over them.
    return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), data)
