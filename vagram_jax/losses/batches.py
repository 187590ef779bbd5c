"""Conversion of a user's batch to the `Transition` that the losses read.

A batch is a dict, or any object with attributes: a `Transition`, a NamedTuple, a
dataclass, Brax's `Transition`. Its arrays are JAX's or NumPy's. Fields that a loss
doesn't read are neither needed nor looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax.types import Batch, Transition

# The fields that every loss reads, and their names in Brax, Minari and D4RL.
_NAMES = {
    "obs": ("obs", "observation", "observations"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "next_obs": ("next_obs", "next_observation", "next_observations"),
}
# The fields that only some losses read, by `field`.
_OPTIONAL = ("terminated", "truncated", "weight", "next_value")
_FLAGS = ("terminated", "truncated")


def to_transition(
    where: str, batch: Batch, mask: jax.Array | None = None
) -> Transition:
    """Returns a batch as a `Transition` of floating JAX arrays.

    Whole numbers become floating ones. Lists are refused, since they may hold numbers,
    arrays or transitions. Under `jit` the conversion costs nothing.

    Args:
      where: the caller, for messages.
      batch: `[B, ...]` or `[E, B, ...]` transitions, see `Batch`.
      mask: `[B]` or `[E, B]` bool, the rows that count; None means all.

    Returns:
      The transitions, of which those fields are unchecked that only some losses read:
      `field` returns them.

    Raises:
      ValueError: a field is missing, isn't an array, has the wrong shape or no rows,
        or, outside of `jit`, isn't finite in a row that counts.
    """
    given = {name: _find(where, batch, name) for name in _NAMES}
    _check_shapes(where, given)
    check_mask(where, mask, given["reward"].shape)
    for name, value in given.items():
        _check_finite(where, name, value, mask)
    arrays = {name: _floating(value) for name, value in given.items()}
    return Transition(**arrays, **{name: _get(batch, name) for name in _OPTIONAL})


def field(where: str, batch: Transition, name: str, missing: str) -> jax.Array:
    """Returns a field that only some losses read.

    Args:
      where: the caller, for messages.
      batch: from `to_transition`.
      name: of the field.
      missing: what to do if the field is missing, for the message.

    Returns:
      `[...]`, bool for `terminated` and `truncated`.

    Raises:
      ValueError: the field is missing, isn't an array, has the wrong shape or, outside
        of `jit`, isn't finite.
    """
    value = getattr(batch, name)
    if value is None:
        raise ValueError(f"{where}: batch.{name} is missing; {missing}")
    _check_array(where, name, value)
    _check_shape(where, name, value.shape, batch.reward.shape, batch.obs.shape)
    _check_finite(where, name, value, None)
    if name in _FLAGS:
        return value if value.dtype == bool else jnp.asarray(value) != 0
    return _floating(value)


def check_mask(where: str, mask: jax.Array | None, leading: tuple[int, ...]) -> None:
    """Refuses a mask of rows that isn't bool or that would broadcast.

    Args:
      where: the caller, for the message.
      mask: the rows that count; None means all.
      leading: shape that the mask must have.

    Raises:
      ValueError: its shape or dtype is another one.
    """
    if mask is None or (jnp.shape(mask) == leading and mask.dtype == bool):
        return
    dtype = getattr(mask, "dtype", type(mask).__name__)
    raise ValueError(
        f"{where}: where has shape {list(jnp.shape(mask))} and dtype {dtype}; it must "
        f"be {list(leading)} and bool, one entry for each row"
    )


def _find(where: str, batch: Batch, name: str) -> Any:
    """A field by its name here or in another library, as an array."""
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        raise ValueError(
            f"{where}: batch is a {type(batch).__name__}; a dict, NamedTuple or "
            f"dataclass of the arrays {', '.join(_NAMES)} is accepted; name its "
            "arrays, or stack its transitions by jax.tree.map(lambda *x: jnp.stack(x), "
            "*batch)"
        )
    for known in _NAMES[name]:
        value = _get(batch, known)
        if value is not None:
            _check_array(where, name, value)
            return value
    has = batch if isinstance(batch, Mapping) else getattr(batch, "__dict__", ())
    has = getattr(batch, "_fields", has)
    raise ValueError(
        f"{where}: batch has no {name}; a dict, NamedTuple or dataclass of the arrays "
        f"{', '.join(_NAMES)} is accepted; this {type(batch).__name__} has: "
        f"{', '.join(map(str, has)) or 'no fields'}"
    )


def _get(batch: Batch, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)


def _check_array(where: str, name: str, value: Any) -> None:
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise ValueError(
            f"{where}: batch.{name} is a {type(value).__name__}; a JAX or NumPy array "
            "is accepted; convert it with jnp.asarray"
        )
    if value.dtype != bool and not jnp.issubdtype(value.dtype, jnp.number):
        raise ValueError(
            f"{where}: batch.{name} has dtype {value.dtype}; numbers are accepted"
        )


def _check_shapes(where: str, given: dict[str, Any]) -> None:
    """Refuses shapes that disagree with that of `obs`, and a batch without rows."""
    obs = given["obs"].shape
    if len(obs) not in (2, 3):
        raise ValueError(
            f"{where}: batch.obs has shape {list(obs)}; [B, obs_dim] is accepted, or "
            "[E, B, obs_dim] with one batch per member; use obs[None] for a single "
            "transition, obs[:, None] for a single dimension, and flatten images"
        )
    if 0 in obs:
        raise ValueError(
            f"{where}: batch.obs has shape {list(obs)}; at least one row and one "
            "dimension are accepted; leave empty batches out"
        )
    action = given["action"].shape
    if len(action) != len(obs) or action[:-1] != obs[:-1]:
        raise ValueError(
            f"{where}: batch.action has shape {list(action)}; with batch.obs "
            f"{list(obs)} it must be [{', '.join(map(str, obs[:-1]))}, action_dim]; "
            "use action[..., None] for a single dimension, and one-hot vectors for "
            "discrete actions"
        )
    _check_shape(where, "reward", given["reward"].shape, obs[:-1], obs)
    _check_shape(where, "next_obs", given["next_obs"].shape, obs, obs)


def _check_shape(where: str, name: str, given, expected, obs) -> None:
    if given == expected:
        return
    hint = f"; use {name}[..., 0]" if given == (*expected, 1) else ""
    raise ValueError(
        f"{where}: batch.{name} has shape {list(given)}; with batch.obs {list(obs)} it "
        f"must be {list(expected)}{hint}"
    )


def _check_finite(where: str, name: str, value, mask) -> None:
    """Refuses NaN and infinity in rows that count, unless values are traced."""
    if isinstance(value, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    counted = value if mask is None else np.asarray(value)[np.asarray(mask)]
    if not np.all(np.isfinite(counted)):
        raise ValueError(
            f"{where}: batch.{name} holds NaN or infinity; it must be finite; drop "
            "those transitions"
        )


def _floating(value) -> jax.Array:
    if jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.asarray(value)
    return jnp.asarray(value, jnp.result_type(float))
