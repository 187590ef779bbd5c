"""Losses that compare values at predicted states with what they should be.

Comes in: a value function and a model's predictions. Goes out: losses that are zero for
any prediction of the right value, right or wrong itself. They ask for values where
nothing was learned.

In a stochastic environment a deterministic model has, at the minimum of `vaml`, a state
of the right mean value, which isn't the mean state; `value_l1` has the median value. A
model that is trained on single samples of its own learns too little variance: these
losses are biased for stochastic models (Voelcker et al. 2025, arXiv 2505.22772), which
`calibrated_vaml` corrects. The others take a Gaussian's mean and leave its variance
alone.

Not here, because they need more than `(params, batch, value_fn)`: OMD (Nikishin et al.
2022), which differentiates through the solution of a Bellman equation, and losses in a
latent space (MuZero over several steps, TD-MPC2, MAD-TD, lambda-models), which train an
encoder.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.losses import errors, registry
from vagram_jax.losses import value_gradients as value_weights
from vagram_jax.types import PredictFn, Transition, ValueFn


@registry.register("vaml")
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
    values at predicted states, where nothing was learned.

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
    prediction = errors.predicted("vaml_loss", params, batch, predict)
    error = _value_errors(value_fn, prediction.next_obs, batch)
    value_error = jnp.mean(jnp.square(error), axis=-1)
    return jnp.mean(value_error + errors.reward(prediction, batch))


@registry.register("value_equivalence")
def value_equivalence_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """VAML summed over a set of K value functions: the model must suit all of them.

        L = (1/B) sum_b [ sum_k (V_k(s_hat_b) - V_k(s'_b))^2 + (r_hat_b - r_b)^2 ]

    Value equivalence (Grimm et al. 2020, arXiv 2011.03506) for the set that `value_fn`
    returns. With as many independent functions as dimensions nothing is free any more.
    The K functions of an agent are alike, so that there it is close to K times `vaml`.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = errors.predicted("value_equivalence_loss", params, batch, predict)
    error = _value_errors(value_fn, prediction.next_obs, batch)
    value_error = jnp.sum(jnp.square(error), axis=-1)
    return jnp.mean(value_error + errors.reward(prediction, batch))


@registry.register("value_l1")
def value_l1_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """The absolute difference of values at the predicted and the real state.

        L = (1/B) sum_b [ (1/K) sum_k |V_k(s_hat_b) - V_k(s'_b)| + (r_hat_b - r_b)^2 ]

    The model-advantage loss (Modhe et al. 2021, arXiv 2106.14080). Its gradient doesn't
    fade with the error, and doesn't grow with it. In a stochastic environment its
    minimiser has the median of the values, not their mean.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.

    Returns:
      A scalar, in units of return and, for the reward, their square.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = errors.predicted("value_l1_loss", params, batch, predict)
    error = _value_errors(value_fn, prediction.next_obs, batch)
    value_error = jnp.mean(jnp.abs(error), axis=-1)
    return jnp.mean(value_error + errors.reward(prediction, batch))


@registry.register("muzero", prepare=value_weights.next_values, takes="targets")
def muzero_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    targets: jax.Array | None = None,
) -> jax.Array:
    """MuZero's loss of one step: the reward, and the value bootstrapped a step later.

        L = (1/B) sum_b [ (1/K) sum_k (V_k(s_hat_b) - y_b)^2 + (r_hat_b - r_b)^2 ]
        y_b = r'_b + discount V(s''_b), of the transition that follows from s'_b

    Schrittwieser et al. 2020 (arXiv 1911.08265), without its policy term and with a
    frozen value function. y follows the action that was stored, not the one the policy
    would take now, so it is biased to the value of old policies; where the same loss
    trains the value as well, that is biased in stochastic environments, too (Voelcker
    et al. 2023, arXiv 2306.17366).

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions with `next_value`, or `[E, B, ...]`.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      targets: `[B, K]`, y for each value function, in place of `batch.next_value`;
        training makes them with `weights.next_values`.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, there is no target, or `value_fn`
        is of another form.
    """
    prediction = errors.predicted("muzero_loss", params, batch, predict)
    if targets is None and batch.next_value is None:
        raise ValueError(
            "muzero_loss: batch.next_value is missing; it must hold the bootstrapped "
            "value of each next_obs, [B]"
        )
    targets = batch.next_value[..., None] if targets is None else targets
    value = _values_at(value_fn, prediction.next_obs)
    errors.check_weights(targets, batch, value.shape[-1:], (1,))
    value_error = jnp.mean(jnp.square(value - targets), axis=-1)
    return jnp.mean(value_error + errors.reward(prediction, batch))


@registry.register("calibrated_vaml", gaussian=True)
def calibrated_vaml_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    num_samples: int = 4,
    key: jax.Array | None = None,
) -> jax.Array:
    """VAML with several samples of a stochastic model, without their spread's bias.

        L = (1/B) sum_b [ (1/K) sum_k ((m_bk - V_k(s'_b))^2 - S_bk^2 / M) + NLL(r_b) ]
        m, S^2: mean and unbiased variance of V_k at M samples of the model

    The mean of M sampled values scatters by Var V / M around what the model expects,
    and a squared error counts that as error: it is taken off again, so that the
    expectation is (E V(s_hat) - V(s'))^2. That is the correction of Voelcker et al.
    2025 (arXiv 2505.22772) as far as its excerpts tell. At the minimum a stochastic
    model expects the right mean value. The loss says nothing of a state's variance
    where the value is linear, and may be below zero.

    Args:
      params: what `init_dynamics` with a Gaussian head returned, or any pytree.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model; it returns a log-variance as third element.
      num_samples: M, at least 2.
      key: of the samples. Without one it is made of the batch itself, so that each
        batch has samples of its own; descending on one and the same batch needs new
        keys, or the model fits the samples.

    Returns:
      A scalar. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, there is no log-variance, fewer
        than 2 samples, or `value_fn` is of another form.
    """
    if num_samples < 2:
        raise ValueError(
            f"calibrated_vaml_loss: num_samples={num_samples}; at least 2 are accepted"
        )
    where = "calibrated_vaml_loss"
    prediction = errors.predicted(where, params, batch, predict, gaussian=True)
    key = _key_of(batch) if key is None else key
    shape, dtype = prediction.next_obs.shape, prediction.next_obs.dtype
    noise = jax.random.normal(key, (num_samples, *shape), dtype)
    std = jnp.exp(0.5 * prediction.log_var[..., :-1])
    error = _value_errors(value_fn, prediction.next_obs + std * noise, batch)
    spread = jnp.var(error, axis=0, ddof=1) / num_samples  # [..., B, K]
    value_error = jnp.mean(jnp.square(jnp.mean(error, axis=0)) - spread, axis=-1)
    return jnp.mean(value_error + errors.nll(prediction, batch)[..., -1])


def _value_errors(value_fn, states, batch: Transition) -> jax.Array:
    """V_k at predicted states minus V_k at the real ones, `[..., B, K]`."""
    real = value_weights.values_of(value_fn, batch.next_obs)
    return _values_at(value_fn, states) - jax.lax.stop_gradient(real)


def _values_at(value_fn, states: jax.Array) -> jax.Array:
    """V_k as functions of the states alone, `[..., K]`.

    The tangent plane at the states has the same value and gradient there, and lets no
    gradient into the value function.
    """
    constant = jax.lax.stop_gradient(states)
    slope = value_weights.value_gradients(value_fn, constant)
    value = jax.lax.stop_gradient(value_weights.values_of(value_fn, constant))
    return value + jnp.einsum("...kd,...d->...k", slope, states - constant)


def _key_of(batch: Transition) -> jax.Array:
    """A key that depends on the numbers of a batch."""
    bits = jax.lax.bitcast_convert_type(batch.next_obs.astype(jnp.float32), jnp.uint32)
    return jax.random.fold_in(jax.random.key(0), jnp.sum(bits, dtype=jnp.uint32))
