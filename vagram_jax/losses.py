"""The model losses, one signature, and their registry.

Comes in: a model's parameters, a batch, a value function. Goes out: a scalar. With the
model's error `e = (s_hat - s', r_hat - r)` every squared-error loss here is

    mean over the batch of  sum_d w_d e_d^2  +  (r_hat - r)^2

and they differ in the weights `w` (`weights.py`). A loss of your own: decorate it with
`register`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import dynamics
from vagram_jax import weights as value_weights
from vagram_jax.config import ConfigError
from vagram_jax.types import LossFn, PredictFn, Prediction, Transition, ValueFn


class ModelLoss(NamedTuple):
    """A registered loss.

    Attributes:
      name: what a config calls it.
      fn: the loss. If `prepare` is given it takes `weights=` as well.
      prepare: `(batch, value_fn, *, where, config)` to weights with leading axis
        `[B]`: the part that does not depend on the model. None if there is none.
      gaussian: whether it needs a model that predicts a variance.
    """

    name: str
    fn: LossFn
    prepare: Callable[..., jax.Array] | None
    gaussian: bool


LOSSES: dict[str, ModelLoss] = {}


def register(
    name: str,
    *,
    prepare: Callable[..., jax.Array] | None = None,
    gaussian: bool = False,
) -> Callable[[LossFn], LossFn]:
    """A decorator that gives a loss a name that configs can use.

    Args:
      name: the name, not yet taken.
      prepare: computes once per fit what the loss takes as `weights=`.
      gaussian: the loss needs a model that predicts a variance.

    Returns:
      The decorator; it leaves the function as it is.

    Raises:
      ValueError: the name is taken by another function.
    """

    def decorator(fn: LossFn) -> LossFn:
        taken = LOSSES.get(name)
        # The same definition may run again: a notebook cell, a reloaded module.
        if taken and _where_from(taken.fn) != _where_from(fn):
            raise ValueError(f"register: name={name!r} is taken; choose another name")
        LOSSES[name] = ModelLoss(name, fn, prepare, gaussian)
        return fn

    return decorator


def get(name: str, *, also: tuple[str, ...] = ()) -> ModelLoss:
    """The loss of that name.

    Args:
      name: a registered name.
      also: other names that the caller takes, for the message.

    Returns:
      The loss and what a fit must know of it.

    Raises:
      ConfigError: no such name; the message lists the known ones.
    """
    if name not in LOSSES:
        known = [*sorted(LOSSES), *also]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"config: loss={name!r}; known: {', '.join(known)}{hint}")
    return LOSSES[name]


@register("vagram", prepare=value_weights.from_gradients)
def vagram_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """VaGraM: each dimension counts as much as the value depends on it.

        L = (1/B) sum_b [ sum_d w_bd (s_hat_bd - s'_bd)^2 + (r_hat_b - r_b)^2 ]
        w_bd = (1/K) sum_k (dV_k(s'_b) / ds'_d)^2

    The bounded objective of Voelcker et al. 2022 (arXiv 2204.01464), without the factor
    obs_dim of its Cauchy-Schwarz bound, as in the authors' released loss: it would
    only change the balance with the reward (`WeightConfig.scale_by_dim` puts it back).
    For an ensemble the mean over members. Differentiate it as it is:
    `jax.grad(vagram_loss)(params, batch, value_fn)`. To hand `value_fn` through `jit`
    or `vmap` as an argument, make it a `jax.tree_util.Partial`, or close over it.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, obs_dim]` from `value_gradient_weights` for this batch, if at hand;
        `value_fn` is then not used.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn` or weights.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = _predict("vagram_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.value_gradient_weights(value_fn, batch.next_obs)
    return jnp.mean(_squared_errors(prediction, batch, weights))


@register("mse")
def mse_loss(
    params,
    batch: Transition,
    value_fn: ValueFn = None,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """Squared error of the next state, summed over dimensions, and of the reward.

    The likelihood of a Gaussian with fixed unit variance, up to a constant and a half.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree or `batch` holds NaN.
    """
    del value_fn
    prediction = _predict("mse_loss", params, batch, predict)
    return jnp.mean(_squared_errors(prediction, batch, jnp.ones_like(batch.next_obs)))


@register("mse_normalized", prepare=value_weights.from_variances)
def mse_normalized_loss(
    params,
    batch: Transition,
    value_fn: ValueFn = None,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Squared error on standardised targets: each target counts by its variance.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, obs_dim + 1]` from `weights.from_variances`, over all of the data;
        without them the variances of this batch are used.

    Returns:
      A scalar, without a unit.

    Raises:
      ValueError: shapes disagree or `batch` holds NaN.
    """
    prediction = _predict("mse_normalized_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.from_variances(batch, value_fn)
    return jnp.mean(_squared_errors(prediction, batch, weights))


@register("value_weighted", prepare=value_weights.from_values)
def value_weighted_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Squared error in which a sample counts by the magnitude of its value.

        w_b = |V(s'_b)| / mean |V|, with |V| the mean over the K functions

    A baseline of the VaGraM paper: it knows where values are high, not what they depend
    on.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, obs_dim]`, prepared over all of the data, if at hand.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = _predict("value_weighted_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.from_values(batch, value_fn)
    return jnp.mean(_squared_errors(prediction, batch, weights))


@register("vagram_unbounded", prepare=value_weights.gradients_of)
def vagram_unbounded_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The first-order Taylor form of the value error, before it is bounded.

        L = (1/B) sum_b [ (1/K) sum_k (dV_k(s'_b)/ds' . (s_hat_b - s'_b))^2
                          + (r_hat_b - r_b)^2 ]

    Voelcker et al. 2022 (arXiv 2204.01464). Any error orthogonal to the gradient is
    free, which is why the paper bounds it.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, K, obs_dim]`, the gradients of this batch, if at hand.

    Returns:
      A scalar, in (units of return)^2.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = _predict("vagram_unbounded_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.value_gradients(value_fn, batch.next_obs)
    _check_weights(weights, batch, weights.shape[-2:-1] + batch.next_obs.shape[-1:])
    error = prediction.next_obs - batch.next_obs
    value_error = jnp.einsum("...kd,...d->...k", weights, error)
    return jnp.mean(
        jnp.mean(jnp.square(value_error), axis=-1) + _reward_error(prediction, batch)
    )


@register("vaml")
def vaml_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """IterVAML: the squared difference of values at the predicted and the real state.

        L = (1/B) sum_b [ (1/K) sum_k (V_k(s_hat_b) - V_k(s'_b))^2 + (r_hat_b - r_b)^2 ]

    Farahmand 2018, with a deterministic model (a Gaussian's mean is used). It asks for
    values at predicted states, where nothing was learned; for stochastic environments
    its minimum is biased (Voelcker et al. 2025, arXiv 2505.22772).

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = _predict("vaml_loss", params, batch, predict)
    value_weights.check_value_fn(
        value_fn, batch.next_obs.shape[-1], batch.next_obs.dtype
    )
    values = jnp.vectorize(
        lambda state: jnp.atleast_1d(value_fn(state)), signature="(d)->(k)"
    )
    # The value at the prediction, as a function of the prediction alone: its tangent
    # plane has the same value and gradient, and lets nothing into the value function.
    predicted = prediction.next_obs
    constant = jax.lax.stop_gradient(predicted)
    slope = value_weights.value_gradients(value_fn, constant)
    value = jax.lax.stop_gradient(values(constant) - values(batch.next_obs))
    value_error = value + jnp.einsum("...kd,...d->...k", slope, predicted - constant)
    return jnp.mean(
        jnp.mean(jnp.square(value_error), axis=-1) + _reward_error(prediction, batch)
    )


@register("mle", gaussian=True)
def mle_loss(
    params,
    batch: Transition,
    value_fn: ValueFn = None,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """The negative log-likelihood of a diagonal Gaussian, in nats.

        L = (1/B) sum_b sum_j 1/2 [ e_bj^2 / var_bj + log var_bj + log 2 pi ]

    over the state dimensions and the reward, as in PETS and MBPO (Chua et al. 2018,
    Janner et al. 2019), there twice this and without the constant.

    Args:
      params: what `init_dynamics` with a Gaussian head returned, or any pytree.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model; it returns a log-variance as third element.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or there is no log-variance.
    """
    del value_fn
    prediction = _predict("mle_loss", params, batch, predict)
    weights = jnp.ones_like(batch.next_obs)
    return jnp.mean(_gaussian_nll("mle_loss", prediction, batch, weights))


@register("vagram_nll", prepare=value_weights.from_gradients, gaussian=True)
def vagram_nll_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The Gaussian likelihood with each dimension's term weighted as in VaGraM.

        L = (1/B) sum_b sum_j w_bj / 2 [ e_bj^2 / var_bj + log var_bj + log 2 pi ]

    with the weights of `vagram_loss`, one for the reward. With weights of one it is
    `mle_loss`. The paper has no such loss; it is VaGraM's for a probabilistic ensemble.

    Args:
      params: what `init_dynamics` with a Gaussian head returned, or any pytree.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model; it returns a log-variance as third element.
      weights: `[B, obs_dim]` from `value_gradient_weights` for this batch, if at hand.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, there is no log-variance, or
        `value_fn` is of another form.
    """
    prediction = _predict("vagram_nll_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.value_gradient_weights(value_fn, batch.next_obs)
    return jnp.mean(_gaussian_nll("vagram_nll_loss", prediction, batch, weights))


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
    for name, shape in expected.items():
        given = jnp.shape(getattr(batch, name))
        if given != shape:
            raise ValueError(
                f"{where}: batch.{name} has shape {list(given)}; with batch.obs "
                f"{list(batch.obs.shape)} it must be {list(shape)}"
            )
    for name in ("obs", "action", "reward", "next_obs"):
        value = getattr(batch, name)
        if not isinstance(value, jax.core.Tracer) and not np.all(np.isfinite(value)):
            raise ValueError(
                f"{where}: batch.{name} holds NaN or infinity; it must be finite; drop "
                "those transitions"
            )


def _predict(where: str, params, batch: Transition, predict: PredictFn) -> Prediction:
    """The model's answer for a batch, both checked."""
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
    return prediction


def _check_weights(weights: jax.Array, batch: Transition, *last: tuple) -> None:
    """Refuses weights that would broadcast; `last` are the trailing shapes accepted."""
    shapes = [(*batch.reward.shape, *axes) for axes in last]
    # Per-member weights may stand beside a shared batch.
    if weights.shape not in shapes and weights.shape[1:] not in shapes:
        raise ValueError(
            f"weights: shape {list(weights.shape)} for batch.next_obs "
            f"{list(batch.next_obs.shape)}; {list(shapes[0])} is accepted"
        )


def _squared_errors(prediction, batch, weights) -> jax.Array:
    """Weighted squared errors of states plus that of the reward, `[..., B]`.

    A column more in `weights` than there are state dimensions weights the reward.
    """
    obs_dim = batch.next_obs.shape[-1]
    _check_weights(weights, batch, (obs_dim,), (obs_dim + 1,))
    square = jnp.square(prediction.next_obs - batch.next_obs)
    reward = _reward_error(prediction, batch)
    if weights.shape[-1] == obs_dim + 1:
        reward = weights[..., -1] * reward
    return jnp.sum(weights[..., :obs_dim] * square, axis=-1) + reward


def _reward_error(prediction, batch) -> jax.Array:
    return jnp.square(prediction.reward - batch.reward)


def _gaussian_nll(where: str, prediction, batch, weights) -> jax.Array:
    """Weighted negative log-likelihoods, `[..., B]`; the reward's weight is one."""
    if prediction.log_var is None:
        raise ValueError(
            f"{where}: predict returned no log-variance; it must be the third element; "
            "give the model a gaussian head"
        )
    error = jnp.concatenate(
        [
            prediction.next_obs - batch.next_obs,
            (prediction.reward - batch.reward)[..., None],
        ],
        axis=-1,
    )
    log_var = prediction.log_var
    if log_var.shape != error.shape:
        raise ValueError(
            f"{where}: predict returned log_var {list(log_var.shape)}; with next_obs "
            f"{list(prediction.next_obs.shape)} it must be {list(error.shape)}, one "
            "for each dimension and, last, one for the reward"
        )
    _check_weights(weights, batch, batch.next_obs.shape[-1:])
    nll = 0.5 * (
        jnp.square(error) * jnp.exp(-log_var) + log_var + jnp.log(2.0 * jnp.pi)
    )
    return jnp.sum(weights * nll[..., :-1], axis=-1) + nll[..., -1]


def _where_from(fn: LossFn) -> tuple[str, str]:
    return fn.__module__, fn.__qualname__
