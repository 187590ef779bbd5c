"""What all losses start from: a model's answer to a batch, checked, and its errors.

Comes in: parameters, a batch, a model. Goes out: predictions and `[..., B]` errors. A
shape that would broadcast is refused here, so that no loss has to.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax.types import PredictFn, Prediction, Transition


def check_batch(where: str, batch: Transition) -> None:
    """Refuses a batch whose shapes disagree or, outside of `jit`, that holds NaN.

    Args:
      where: who asks, for the message.
      batch: `[..., ]` transitions.

    Raises:
      ValueError: what is wrong, by the field's name.
    """
    leading = batch.obs.shape[:-1]
    expected = {
        "next_obs": batch.obs.shape,
        "action": (*leading, *batch.action.shape[-1:]),
        "reward": leading,
        "terminated": leading,
        "truncated": leading,
    }
    expected |= {
        name: leading
        for name in ("weight", "next_value")
        if getattr(batch, name) is not None
    }
    for name, shape in expected.items():
        given = jnp.shape(getattr(batch, name))
        if given != shape:
            raise ValueError(
                f"{where}: batch.{name} has shape {list(given)}; with batch.obs "
                f"{list(batch.obs.shape)} it must be {list(shape)}"
            )
    for name in expected.keys() | {"obs"}:
        value = getattr(batch, name)
        if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value)):
            raise ValueError(
                f"{where}: batch.{name} holds NaN or infinity; it must be finite; drop "
                "those transitions"
            )


def predicted(
    where: str, params, batch: Transition, predict: PredictFn, *, gaussian: bool = False
) -> Prediction:
    """The model's answer for a batch, both checked.

    Args:
      where: who asks, for the message.
      params: what `predict` takes.
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
            f"{list(batch.next_obs.shape)}; the same shape, without the last axis for "
            "the reward, or these behind a member axis"
        )
    if gaussian:
        _check_log_var(where, prediction)
    return prediction


def check_weights(weights: jax.Array, batch: Transition, *last: tuple) -> None:
    """Refuses weights that would broadcast.

    Args:
      weights: of the rows of a batch, shared by the members or one set for each.
      batch: the batch.
      *last: the shapes that are accepted behind the axes of the rows.

    Raises:
      ValueError: any other shape.
    """
    shapes = [(*batch.reward.shape, *axes) for axes in last]
    # Per-member weights may stand beside a shared batch.
    if weights.shape not in shapes and weights.shape[1:] not in shapes:
        raise ValueError(
            f"weights: shape {list(weights.shape)} for batch.next_obs "
            f"{list(batch.next_obs.shape)}; {list(shapes[0])} is accepted"
        )


def squared(prediction: Prediction, batch: Transition, weights: jax.Array) -> jax.Array:
    """Weighted squared errors of states plus that of the reward.

    Args:
      prediction: the model's answer.
      batch: what it should have been.
      weights: `[B, obs_dim]`; a column more weights the reward.

    Returns:
      `[..., B]`.

    Raises:
      ValueError: weights of another shape.
    """
    obs_dim = batch.next_obs.shape[-1]
    check_weights(weights, batch, (obs_dim,), (obs_dim + 1,))
    square = jnp.square(prediction.next_obs - batch.next_obs)
    error = reward(prediction, batch)
    if weights.shape[-1] == obs_dim + 1:
        error = weights[..., -1] * error
    return jnp.sum(weights[..., :obs_dim] * square, axis=-1) + error


def reward(prediction: Prediction, batch: Transition) -> jax.Array:
    """The squared error of the reward.

    Args:
      prediction: the model's answer.
      batch: what it should have been.

    Returns:
      `[..., B]`.
    """
    return jnp.square(prediction.reward - batch.reward)


def nll(prediction: Prediction, batch: Transition) -> jax.Array:
    """The negative log-likelihood of each dimension and, last, of the reward, in nats.

    Args:
      prediction: the answer of a Gaussian model.
      batch: what happened.

    Returns:
      `[..., B, obs_dim + 1]`.
    """
    error = jnp.concatenate(
        [
            prediction.next_obs - batch.next_obs,
            (prediction.reward - batch.reward)[..., None],
        ],
        axis=-1,
    )
    log_var = prediction.log_var
    return 0.5 * (
        jnp.square(error) * jnp.exp(-log_var) + log_var + jnp.log(2.0 * jnp.pi)
    )


def _check_log_var(where: str, prediction: Prediction) -> None:
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
