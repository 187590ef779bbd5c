"""Checks of predictions, value functions, prepared arrays and options.

A shape that would broadcast is refused here, so that no loss has to check it.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import dynamics, user_code
from vagram_jax.config import ConfigError, check_fields
from vagram_jax.losses import batches
from vagram_jax.types import Batch, PredictFn, Prediction, Transition, ValueFn

# What JAX raises if a function asks an array that it traces for its numbers.
_NEEDS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
# The options of losses, and the classes that hold them.
_OPTIONS = {"gradients": "GradientConfig", "weights": "WeightConfig"}


def predict_checked(
    where: str, params, batch: Batch, predict: PredictFn, *, gaussian: bool = False
) -> tuple[Transition, Prediction]:
    """Converts a batch and predicts it; checks the prediction.

    Args:
      where: the caller, for messages.
      params: parameters of the model.
      batch: `[B, ...]` or `[E, B, ...]` transitions, see `Batch`.
      predict: the model.
      gaussian: whether a log-variance is needed.

    Returns:
      The transitions, and the prediction, `[B, ...]` or `[E, B, ...]`.

    Raises:
      ValueError: the batch can't be used, see `batches.to_transition`; `params` don't
        belong to `predict`; or the prediction has another form.
    """
    batch = batches.to_transition(where, batch)
    if predict is dynamics.predict:
        _check_params(where, params, batch)
    prediction = _predict(where, params, batch, predict)
    shape, target = jnp.shape(prediction.next_obs), batch.next_obs.shape
    if shape[-len(target) :] != target or jnp.shape(prediction.reward) != shape[:-1]:
        raise ValueError(
            f"{where}: predict returned next_obs {list(shape)} and reward "
            f"{list(jnp.shape(prediction.reward))} for batch.next_obs {list(target)}; "
            + _shape_hint(params, batch, predict)
        )
    if gaussian:
        log_var(where, prediction)
    return batch, prediction


def check_value_fn(value_fn: ValueFn, obs_dim: int, dtype=jnp.float32) -> None:
    """Refuses a value function of the wrong form, before anything runs.

    Args:
      value_fn: maps one state to a scalar or to `[K]`.
      obs_dim: size of a state.
      dtype: of a state.

    Raises:
      ValueError: it isn't a function, maps a batch of states, returns the state's own
        dimensions, or doesn't return a floating scalar or `[K]`.
    """
    if not callable(value_fn):
        raise ValueError(
            f"value_fn: a {type(value_fn).__name__} was given; a function of one state "
            "is accepted, which returns a scalar or [K]"
        )
    given = f"value_fn: value_fn(state [{obs_dim}])"
    value = _value_of(value_fn, given, obs_dim, dtype)
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
    larger = (obs_dim + 1,)
    has_shape_of_state = obs_dim > 1 and value.shape == (obs_dim,)
    if has_shape_of_state and _traced_shape(value_fn, larger, dtype) == larger:
        raise ValueError(
            f"{given} has the shape of the state, as if each dimension were a value "
            "function; a scalar or [K] is accepted, such as jnp.sum(...); for one "
            f"value function per dimension return jnp.eye({obs_dim}) @ state"
        )


def check_prepared(
    where: str,
    prepared: jax.Array,
    batch: Transition,
    prediction: Prediction,
    *trailing: tuple[int, ...],
) -> None:
    """Refuses a prepared array that would broadcast.

    Args:
      where: the caller, for the message.
      prepared: one entry per row of the batch, shared by the members or one set each.
      batch: the batch.
      prediction: the prediction, which has a member axis for an ensemble.
      *trailing: the allowed shapes behind the axes of the rows.

    Raises:
      ValueError: the shape is another one.
    """
    # Each member may have weights of its own for a batch that all of them share.
    leading = (batch.reward.shape, jnp.shape(prediction.reward))
    shapes = [(*rows, *axes) for rows in leading for axes in trailing]
    if jnp.shape(prepared) not in shapes:
        raise ValueError(
            f"{where}: prepared has shape {list(jnp.shape(prepared))}; with "
            f"batch.next_obs {list(batch.next_obs.shape)} it must be {list(shapes[0])}"
        )


def check_options(where: str, prepared: jax.Array | None, **options) -> None:
    """Refuses options that aren't accepted, or that do nothing beside `prepared`.

    Args:
      where: the caller, for the message.
      prepared: what a loss prepared, or None.
      **options: configs.

    Raises:
      ConfigError: one of them isn't a config, has a value out of range, or differs from
        its default beside `prepared`.
    """
    for name, config in options.items():
        if type(config).__name__ != _OPTIONS[name]:
            raise ConfigError(
                f"{where}: {name} is a {type(config).__name__}; a {_OPTIONS[name]} is "
                "accepted; pass weights that you have computed as prepared="
            )
        check_fields(config, prefix=f"{name}.")
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(config))
        if prepared is not None and (traced or config != type(config)()):
            raise ConfigError(
                f"{where}: {name} has no effect together with prepared; pass it to the "
                "function that prepares"
            )


def warn_of_zeros(where: str, batch: Transition, weights: jax.Array) -> None:
    """Warns if all weights are zero, so that the state isn't fitted at all.

    It does nothing with arrays that a transformation of JAX traces. Python's default
    filter shows the warning once for each line that calls this package.

    Args:
      where: the caller, for the message.
      batch: the batch.
      weights: `[..., obs_dim]`.
    """
    # Under `vmap` the gradient of a flat function isn't traced, but the batch is.
    arrays = (batch.next_obs, weights)
    if any(isinstance(x, jax.core.Tracer) for x in arrays) or np.any(weights):
        return
    warnings.warn(
        f"{where}: all weights are zero, so the loss fits only the reward: value_fn is "
        "flat at these states, or no row counts; train value_fn first, or add the "
        "squared error with weights=WeightConfig(mse_coef=1.0)",
        stacklevel=user_code.stacklevel(),
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


def _check_params(where: str, params, batch: Transition) -> None:
    """Refuses parameters that `dynamics.predict` can't apply to the batch."""
    if not isinstance(params, dynamics.DynamicsParams):
        raise ValueError(
            f"{where}: params is a {type(params).__name__}; without predict= what "
            "init_dynamics returned is accepted; for a model of your own pass "
            "predict=, a function (params, obs, action) -> (next_obs, reward)"
        )
    obs_dim = params.normalizer.target_mean.shape[-1] - 1
    action_dim = params.normalizer.input_mean.shape[-1] - obs_dim
    for name, dim in (("obs", obs_dim), ("action", action_dim)):
        shape = getattr(batch, name).shape
        if shape[-1] != dim:
            raise ValueError(
                f"{where}: params are for {name}_dim={dim}, and batch.{name} has shape "
                f"{list(shape)}; call init_dynamics with {name}_dim={shape[-1]}"
            )
    members = params.network["params"]["mlp"]["Dense_0"]["bias"].shape[:-1]
    if members and batch.obs.ndim == 3 and batch.obs.shape[:1] != members:
        raise ValueError(
            f"{where}: params have {members[0]} members, and batch.obs has shape "
            f"{list(batch.obs.shape)}; [B, obs_dim] is accepted, which all members "
            f"share, or [{members[0]}, B, obs_dim]; flatten sequences"
        )


def _predict(where: str, params, batch: Transition, predict) -> Prediction:
    """Calls the model; refuses anything but two or three arrays."""
    if not callable(predict):
        raise ValueError(
            f"{where}: predict is a {type(predict).__name__}; a function (params, obs, "
            "action) -> (next_obs, reward) is accepted"
        )
    try:
        result = predict(params, batch.obs, batch.action)
    except Exception as error:
        if _predicts_one(params, batch, predict):
            raise ValueError(
                f"{where}: predict raised {type(error).__name__} for obs "
                f"{list(batch.obs.shape)}; " + _shape_hint(params, batch, predict)
            ) from error
        error.add_note(f"{where}: while predict was called with a batch")
        raise
    if not isinstance(result, tuple | list) or len(result) not in (2, 3):
        form = getattr(result, "shape", None)
        size = len(result) if isinstance(result, tuple | list) else None
        kind = type(result).__name__ if size is None else f"tuple of {size}"
        kind = kind if form is None else f"single array {list(form)}"
        raise ValueError(
            f"{where}: predict returned a {kind}; (next_obs, reward) is accepted, with "
            "the log-variance as third element for a Gaussian model"
        )
    for name, value in zip(("next_obs", "reward"), result, strict=False):
        if value is None:
            raise ValueError(
                f"{where}: predict returned None as {name}; an array is accepted; a "
                "model without a reward returns the known one, or zeros, which only "
                "add a constant to the loss"
            )
    return Prediction(*result)


def _shape_hint(params, batch: Transition, predict) -> str:
    """What a prediction must look like."""
    if _predicts_one(params, batch, predict):
        return (
            "predict gets a batch, and this one takes a single sample; pass "
            "predict=jax.vmap(predict, in_axes=(None, 0, 0))"
        )
    return (
        "next_obs must have that shape and reward the same without the last axis, or "
        "both a member axis in front"
    )


def _predicts_one(params, batch: Transition, predict) -> bool:
    """Whether a model maps one sample to one prediction."""
    one = [
        jax.ShapeDtypeStruct(x.shape[-1:], x.dtype) for x in (batch.obs, batch.action)
    ]
    try:
        result = jax.eval_shape(lambda obs, act: predict(params, obs, act), *one)
        return (result[0].shape, result[1].shape) == (one[0].shape, ())
    except Exception:  # whatever a user's code raises, it isn't such a model
        return False


def _value_of(value_fn: ValueFn, given: str, obs_dim: int, dtype):
    """The abstract value of one state; a function of a batch is named as such."""
    try:
        return _traced(value_fn, (obs_dim,), dtype)
    except _NEEDS_NUMBERS as error:
        place = user_code.raised_at(error)
        raise ValueError(
            f"{given} asks an array for its numbers{f' ({place})' if place else ''}; "
            "JAX traces it to differentiate it; use jax.numpy instead of NumPy and "
            "jnp.where instead of if, and leave out float() and .item()"
        ) from error
    except Exception as error:
        rows = obs_dim + 1
        shape = _traced_shape(value_fn, (rows, obs_dim), dtype)
        if shape is not None and shape[:1] == (rows,):
            raise ValueError(
                f"{given} raised {type(error).__name__}, and a batch of states works; "
                "one state is what it gets; pass lambda state: "
                "value_fn(state[None])[0]"
            ) from error
        error.add_note(f"{given}: while it was called with one state")
        raise


def _traced_shape(value_fn: ValueFn, shape, dtype) -> tuple[int, ...] | None:
    """The shape that a function returns for another input; None if it raises."""
    try:
        return getattr(_traced(value_fn, shape, dtype), "shape", None)
    except Exception:  # whatever a user's code raises for an input of this shape
        return None


def _traced(value_fn: ValueFn, shape, dtype):
    # JAX 0.10 crashes on a function of NumPy itself, so it gets a lambda.
    return jax.eval_shape(
        lambda state: value_fn(state), jax.ShapeDtypeStruct(shape, dtype)
    )
