"""Checks of batches, predictions, value functions and prepared arrays.

A shape that would broadcast is refused here, so that no loss has to check it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax.config import ConfigError
from vagram_jax.types import PredictFn, Prediction, Transition, ValueFn

# Fields that only some losses read; the others may be missing.
_OPTIONAL = ("terminated", "truncated", "weight", "next_value")


def check_batch(where: str, batch: Transition) -> None:
    """Refuses a batch whose shapes disagree or, outside of `jit`, that holds NaN.

    Args:
      where: the caller, for the message.
      batch: `[..., ]` transitions.

    Raises:
      ValueError: a field has the wrong shape, or isn't finite.
    """
    leading = batch.obs.shape[:-1]
    expected = {
        "obs": batch.obs.shape,
        "next_obs": batch.obs.shape,
        "action": (*leading, *batch.action.shape[-1:]),
        "reward": leading,
    }
    expected |= {
        name: leading for name in _OPTIONAL if getattr(batch, name) is not None
    }
    for name, shape in expected.items():
        given = jnp.shape(getattr(batch, name))
        if given != shape:
            raise ValueError(
                f"{where}: batch.{name} has shape {list(given)}; with batch.obs "
                f"{list(batch.obs.shape)} it must be {list(shape)}"
            )
    for name in expected:
        value = getattr(batch, name)
        if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value)):
            raise ValueError(
                f"{where}: batch.{name} holds NaN or infinity; it must be finite; drop "
                "those transitions"
            )


def predict_checked(
    where: str, params, batch: Transition, predict: PredictFn, *, gaussian: bool = False
) -> Prediction:
    """Predicts a batch; checks the batch before and the prediction after.

    Args:
      where: the caller, for the message.
      params: parameters of the model.
      batch: `[B, ...]` or `[E, B, ...]` transitions.
      predict: the model.
      gaussian: whether a log-variance is needed.

    Returns:
      The prediction, `[B, ...]` or `[E, B, ...]`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or a log-variance is missing.
    """
    check_batch(where, batch)
    prediction = Prediction(*predict(params, batch.obs, batch.action))
    shape, target = prediction.next_obs.shape, batch.next_obs.shape
    if shape[-len(target) :] != target or prediction.reward.shape != shape[:-1]:
        raise ValueError(
            f"{where}: predict returned next_obs {list(prediction.next_obs.shape)} and "
            f"reward {list(prediction.reward.shape)} for batch.next_obs "
            f"{list(batch.next_obs.shape)}; next_obs must have that shape and reward "
            "the same without the last axis, or both a member axis in front"
        )
    if gaussian:
        log_var(where, prediction)
    return prediction


def check_value_fn(value_fn: ValueFn, obs_dim: int, dtype=jnp.float32) -> None:
    """Refuses a value function of the wrong form, before anything runs.

    Args:
      value_fn: maps one state to a scalar or to `[K]`.
      obs_dim: size of a state.
      dtype: of a state.

    Raises:
      ValueError: it doesn't return a floating scalar or `[K]`.
    """
    value = jax.eval_shape(value_fn, jax.ShapeDtypeStruct((obs_dim,), dtype))
    given = f"value_fn: value_fn(state [{obs_dim}])"
    if not hasattr(value, "shape"):
        raise ValueError(
            f"{given} is a {type(value).__name__}; it must be an array, a scalar or [K]"
        )
    if len(value.shape) > 1:
        raise ValueError(
            f"{given} has shape {list(value.shape)}; it must be a scalar or [K]; it "
            "gets one state, without a batch axis"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{given} has dtype {value.dtype}; it must be floating, to have a gradient"
        )


def check_prepared(
    where: str, prepared: jax.Array, batch: Transition, *trailing: tuple[int, ...]
) -> None:
    """Refuses a prepared array that would broadcast.

    Args:
      where: the caller, for the message.
      prepared: one entry per row of the batch, shared by the members or one set each.
      batch: the batch.
      *trailing: the allowed shapes behind the axes of the rows.

    Raises:
      ValueError: the shape is another one.
    """
    shapes = [(*batch.reward.shape, *axes) for axes in trailing]
    # Each member may have weights of its own for a batch that all of them share.
    if prepared.shape not in shapes and prepared.shape[1:] not in shapes:
        raise ValueError(
            f"{where}: prepared has shape {list(prepared.shape)}; with batch.next_obs "
            f"{list(batch.next_obs.shape)} it must be {list(shapes[0])}"
        )


def check_no_options(where: str, prepared: jax.Array | None, **options) -> None:
    """Refuses options beside `prepared`, on which they would have no effect.

    Args:
      where: the caller, for the message.
      prepared: what a loss prepared, or None.
      **options: configs.

    Raises:
      ConfigError: one of them differs from its default.
    """
    if prepared is None:
        return
    for name, config in options.items():
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(config))
        if traced or config != type(config)():
            raise ConfigError(
                f"{where}: {name} has no effect together with prepared; pass it to the "
                "function that prepares"
            )


def log_var(where: str, prediction: Prediction) -> jax.Array:
    """Returns the log-variance of a prediction.

    Args:
      where: the caller, for the message.
      prediction: the prediction of a Gaussian model.

    Returns:
      `[..., obs_dim + 1]`.

    Raises:
      ValueError: it is missing, or has another shape.
    """
    if prediction.log_var is None:
        raise ValueError(
            f"{where}: predict returned no log-variance; it must be the third element; "
            "give the model a gaussian head"
        )
    *leading, obs_dim = prediction.next_obs.shape
    if prediction.log_var.shape != (*leading, obs_dim + 1):
        raise ValueError(
            f"{where}: predict returned log_var {list(prediction.log_var.shape)}; with "
            f"next_obs {list(prediction.next_obs.shape)} it must be "
            f"{[*leading, obs_dim + 1]}, one for each dimension and, last, one for the "
            "reward"
        )
    return prediction.log_var
