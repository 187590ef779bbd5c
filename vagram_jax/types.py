"""The words that all stops of the flow share: data containers, callables and axes.

Comes in: nothing. Goes out: the containers that travel from stop to stop and the
types of the functions that a user may bring. Nothing here computes.

Axes, by the letters that docstrings and shape comments use:

    S  seeds (never written in a function: seeds are vmapped)
    E  ensemble members          K  value functions
    B  batch                     T  time along a rollout
    N  capacity of a buffer      obs_dim, action_dim  sizes of the task
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
from flax import struct

Metrics = dict[str, jax.Array]
"""Flat `"<stage>/<quantity>"` to a scalar, with the same keys at every call."""


@struct.dataclass(kw_only=True)
class Transition:
    """One step of an environment, or any number of them along leading axes.

    `terminated` and `truncated` are never merged: after a termination no value
    follows, after a truncation (a time limit, say) the value goes on. `next_obs` is
    the true successor, never the first observation of the next episode.

    Attributes:
      obs: `[..., obs_dim]`, in the units of the data.
      action: `[..., action_dim]`, each in [-1, 1].
      reward: `[...]`.
      next_obs: `[..., obs_dim]`, in the units of the data.
      terminated: `[...]` bool, the successor has no value.
      truncated: `[...]` bool, the episode was cut but its value goes on.
      weight: `[...]`, how much it counts in `sample_weighted_loss`, else None.
      next_value: `[...]`, the bootstrapped value of `next_obs` for `muzero_loss`, in
        units of return, else None.
    """

    obs: jax.Array  # [..., obs_dim]
    action: jax.Array  # [..., action_dim]
    reward: jax.Array  # [...]
    next_obs: jax.Array  # [..., obs_dim]
    terminated: jax.Array  # [...]
    truncated: jax.Array  # [...]
    weight: jax.Array | None = None  # [...]
    next_value: jax.Array | None = None  # [...]


class Prediction(NamedTuple):
    """What a dynamics model says of the next step, in the units of the data.

    Attributes:
      next_obs: `[..., obs_dim]`, the mean of the successor.
      reward: `[...]`, the mean of the reward.
      log_var: `[..., obs_dim + 1]`, natural logarithm of the variance of each
        dimension of the successor and, last, of the reward; None for a
        deterministic model.
    """

    next_obs: jax.Array
    reward: jax.Array
    log_var: jax.Array | None = None


class ValueFn(Protocol):
    """One state to its value, or to the values that K functions give it."""

    def __call__(self, state: jax.Array) -> jax.Array:
        """`[obs_dim]` to a scalar or to `[K]`, in units of return."""


class PredictFn(Protocol):
    """A dynamics model; normalising and ensembling are its own business."""

    def __call__(self, params, obs: jax.Array, action: jax.Array) -> Prediction:
        """`[B, obs_dim], [B, action_dim]` to a `Prediction`, or a plain tuple like it.

        The result may carry a leading member axis, `[E, B, ...]`.
        """


class LossFn(Protocol):
    """A model loss: what a fit minimises in `params`."""

    def __call__(
        self, params, batch: Transition, value_fn: ValueFn, *, predict: PredictFn
    ) -> jax.Array:
        """A scalar, differentiable in `params`."""


class ActFn(Protocol):
    """A policy: which action to take in each state."""

    def __call__(self, key: jax.Array, obs: jax.Array) -> jax.Array:
        """`[..., obs_dim]` to `[..., action_dim]`, each in [-1, 1]."""


class TerminationFn(Protocol):
    """Whether a step ended the episode for good, as the environment would judge it."""

    def __call__(
        self, obs: jax.Array, action: jax.Array, next_obs: jax.Array
    ) -> jax.Array:
        """One step, `[obs_dim], [action_dim], [obs_dim]`, to a bool scalar.

        A step with NaN in it has terminated.
        """
