"""Data containers, and the types of the functions that a user may provide.

Docstrings and shape comments name axes by these letters:

    S  seeds (functions are written for one seed and vmapped)
    E  ensemble members          K  value functions
    B  batch                     T  time along a rollout
    N  capacity of a buffer      obs_dim, action_dim  sizes of the task
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
from flax import struct

Metrics = dict[str, jax.Array]
"""Names to scalars or vectors, with the same names at every call.

Names that begin with `model/` become columns of `model.csv`, all others columns of
`metrics.csv`.
"""

Params = Any
"""Parameters of a network: nested dicts of arrays, which Flax doesn't type further."""


Batch = Any
"""Transitions of any origin, which the losses read.

A dict, or any object with attributes (a `Transition`, a NamedTuple, a dataclass, Brax's
`Transition`), of JAX or NumPy arrays: `obs` and `next_obs` `[B, obs_dim]`, `action`
`[B, action_dim]` and `reward` `[B]`, or each with a leading axis `[E]` for one batch
per member. The names `observation`, `next_observation` and the plurals `observations`,
`next_observations`, `actions` and `rewards` mean the same. The other fields of
`Transition` are needed only by the losses that read them.
"""


@struct.dataclass(kw_only=True)
class Transition:
    """One step of an environment, or any number of them along leading axes.

    `terminated` and `truncated` are kept apart: a terminated step has no value after
    it, while a truncated one (by a time limit, say) keeps the value of its successor.
    `next_obs` is the true successor, never the first observation of the next episode.

    Attributes:
      obs: `[..., obs_dim]`, in the units of the data.
      action: `[..., action_dim]`, each in [-1, 1].
      reward: `[...]`.
      next_obs: `[..., obs_dim]`, in the units of the data.
      terminated: `[...]` bool, the episode ended and the successor has no value; None
        if unknown, which suffices for most losses.
      truncated: `[...]` bool, the episode was cut and the successor keeps its value;
        None if unknown.
      weight: `[...]`, weight of the transition in `sample_weighted_loss`, else None.
      next_value: `[...]`, the bootstrapped value of `next_obs` for `muzero_loss`, in
        units of return, else None.
    """

    obs: jax.Array  # [..., obs_dim]
    action: jax.Array  # [..., action_dim]
    reward: jax.Array  # [...]
    next_obs: jax.Array  # [..., obs_dim]
    terminated: jax.Array = struct.field(default=None)  # [...]
    truncated: jax.Array = struct.field(default=None)  # [...]
    weight: jax.Array | None = None  # [...]
    next_value: jax.Array | None = None  # [...]


class Prediction(NamedTuple):
    """The prediction of a dynamics model, in the units of the data.

    Attributes:
      next_obs: `[..., obs_dim]`, mean of the next observation.
      reward: `[...]`, mean of the reward.
      log_var: `[..., obs_dim + 1]`, natural logarithm of the variance of each
        dimension of the successor and, last, of the reward; None for a
        deterministic model.
    """

    next_obs: jax.Array
    reward: jax.Array
    log_var: jax.Array | None = None


class ValueFn(Protocol):
    """A function of one state that returns its value, or K values."""

    def __call__(self, state: jax.Array) -> jax.Array:
        """`[obs_dim]` to a scalar or to `[K]`, in units of return."""
        ...


class PredictFn(Protocol):
    """A dynamics model; it handles normalization and ensembles itself."""

    def __call__(self, params, obs: jax.Array, action: jax.Array, /) -> Prediction:
        """`[B, obs_dim], [B, action_dim]` to a `Prediction` or an equivalent tuple.

        The result may have a leading member axis, `[E, B, ...]`.
        """
        ...


class LossFn(Protocol):
    """A model loss, which a fit minimizes in `params`."""

    def __call__(
        self, params, batch: Batch, value_fn: ValueFn, *, predict: PredictFn
    ) -> jax.Array:
        """Returns a scalar that is differentiable in `params`."""
        ...


class ActFn(Protocol):
    """A policy."""

    def __call__(self, key: jax.Array, obs: jax.Array) -> jax.Array:
        """`[..., obs_dim]` to `[..., action_dim]`, each in [-1, 1]."""
        ...


class TerminationFn(Protocol):
    """A function that returns whether a step terminated its episode."""

    def __call__(
        self, obs: jax.Array, action: jax.Array, next_obs: jax.Array
    ) -> jax.Array:
        """One step, `[obs_dim], [action_dim], [obs_dim]`, to a bool scalar.

        A step that contains NaN has terminated.
        """
        ...
