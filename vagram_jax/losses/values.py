"""Losses that compare values at predicted states with values at real ones.

They are zero for any prediction with the right value, even if the state is wrong, and
they evaluate the value function at predicted states, where nothing was learned.

In a stochastic environment a deterministic model that minimizes `vaml` predicts a state
of the right mean value, which isn't the mean state; for `value_l1` it has the median
value. A model that is trained on single samples of its own learns too little variance:
these losses are biased for stochastic models (Voelcker et al. 2025, arXiv 2505.22772),
which `calibrated_vaml` corrects. The others read a Gaussian's mean and ignore its
variance.

Not included, because they need more than `(params, batch, value_fn)`: OMD (Nikishin et
al. 2022), which differentiates through the solution of a Bellman equation, and losses
in a latent space (MuZero over several steps, TD-MPC2, MAD-TD, lambda-models), which
train an encoder.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.losses import (
    batches,
    checks,
    likelihood,
    registry,
    value_gradients,
    weighted,
)
from vagram_jax.types import Batch, PredictFn, Transition, ValueFn


@registry.register("vaml")
def vaml_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """IterVAML: the squared difference of values at the predicted and the real state.

        L = (1/B) sum_b [ (1/K) sum_k (V_k(s_hat_b) - V_k(s'_b))^2 + (r_hat_b - r_b)^2 ]

    Farahmand 2018, with a deterministic model: only the mean of a Gaussian is read.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` has another form.
    """
    batch, prediction = checks.predict_checked("vaml_loss", params, batch, predict)
    error = _value_errors(value_fn, prediction.next_obs, batch)
    value_error = jnp.mean(jnp.square(error), axis=-1)
    return jnp.mean(value_error + weighted.reward_error(prediction, batch))


@registry.register("value_equivalence")
def value_equivalence_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """VAML summed over K value functions, all of which the model must get right.

        L = (1/B) sum_b [ sum_k (V_k(s_hat_b) - V_k(s'_b))^2 + (r_hat_b - r_b)^2 ]

    Value equivalence (Grimm et al. 2020, arXiv 2011.03506) for the set that `value_fn`
    returns. With as many independent functions as dimensions no error is ignored. The K
    critics of an agent are alike, so for them it is close to K times `vaml`.

    Arguments, result and errors are those of `vaml_loss`.
    """
    batch, prediction = checks.predict_checked(
        "value_equivalence_loss", params, batch, predict
    )
    error = _value_errors(value_fn, prediction.next_obs, batch)
    value_error = jnp.sum(jnp.square(error), axis=-1)
    return jnp.mean(value_error + weighted.reward_error(prediction, batch))


@registry.register("value_l1")
def value_l1_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """The absolute difference of values at the predicted and the real state.

        L = (1/B) sum_b [ (1/K) sum_k |V_k(s_hat_b) - V_k(s'_b)| + (r_hat_b - r_b)^2 ]

    The model-advantage loss (Modhe et al. 2021, arXiv 2106.14080). The size of its
    gradient doesn't depend on the error. In a stochastic environment its minimizer has
    the median of the values, not their mean.

    Arguments and errors are those of `vaml_loss`. The result is in units of return and,
    for the reward, their square.
    """
    batch, prediction = checks.predict_checked("value_l1_loss", params, batch, predict)
    error = _value_errors(value_fn, prediction.next_obs, batch)
    value_error = jnp.mean(jnp.abs(error), axis=-1)
    return jnp.mean(value_error + weighted.reward_error(prediction, batch))


def next_values(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    discount: jax.Array | float,
) -> jax.Array:
    """Returns the value of each next state, bootstrapped from the transition after it.

        y_i = r_{i+1} + discount (1 - terminated_{i+1}) V(s'_{i+1})

    If the next row doesn't start where this one ended, as at the end of an episode or
    of the data, y_i is V(s'_i).

    Args:
      batch: `[..., N, ...]` transitions, consecutive in time along N.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[..., N]` bool, the rows that count.
      discount: of the next step's value.

    Returns:
      `[..., N, K]`, in units of return. No gradient flows through it.

    Raises:
      ValueError: `value_fn` has another form, or the batch doesn't say which rows end
        an episode.
    """
    missing = "it must hold whether each row ends an episode"
    terminated, truncated = (
        batches.field("next_values", batch, name, missing)
        for name in ("terminated", "truncated")
    )
    axis = batch.reward.ndim - 1
    counted = jnp.ones(batch.reward.shape, bool) if where is None else where
    after_obs, after_reward, after_terminated, after_counted = (
        jnp.roll(x, -1, axis=axis)
        for x in (batch.obs, batch.reward, terminated, counted)
    )
    # After an episode's end the next one may start in the very state that ended it.
    ended = jnp.logical_or(terminated, truncated)
    continues = counted & after_counted & ~ended
    continues = continues & jnp.all(after_obs == batch.next_obs, axis=-1)
    values = value_gradients.values_of(value_fn, batch.next_obs)  # [..., N, K]
    after_values = jnp.roll(values, -1, axis=axis)
    after_values = jnp.where(after_terminated[..., None], 0.0, after_values)
    targets = after_reward[..., None] + discount * after_values
    return jax.lax.stop_gradient(jnp.where(continues[..., None], targets, values))


@registry.register(
    "muzero", prepare=next_values, reads_config=("discount",), prepares_weights=False
)
def muzero_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
    discount: jax.Array | float | None = None,
) -> jax.Array:
    """MuZero's one-step loss: the reward, and the value bootstrapped one step later.

        L = (1/B) sum_b [ (1/K) sum_k (V_k(s_hat_b) - y_b)^2 + (r_hat_b - r_b)^2 ]
        y_b = r'_b + discount V(s''_b), of the transition that follows from s'_b

    Schrittwieser et al. 2020 (arXiv 1911.08265), without its policy term and with a
    frozen value function. y follows the stored action, not the one that the policy
    would take now, so it is biased to the value of old policies. If the same loss also
    trains the value, that is biased in stochastic environments, too (Voelcker et al.
    2023, arXiv 2306.17366).

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      prepared: `[B, K]`, y for each value function, as from `next_values`; replaces
        `batch.next_value`.
      discount: computes y by `next_values`, for rows that are consecutive in time; None
        reads `prepared` or `batch.next_value`.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, there is no y, `discount` has no
        effect, or `value_fn` has another form.
    """
    where = "muzero_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    if prepared is None:
        prepared = _bootstrapped(batch, value_fn, discount)
    elif discount is not None:
        raise ValueError(
            f"{where}: discount has no effect together with prepared; pass one of them"
        )
    value = _values_at(value_fn, prediction.next_obs)
    checks.check_prepared(where, prepared, batch, prediction, value.shape[-1:], (1,))
    value_error = jnp.mean(jnp.square(value - prepared), axis=-1)
    return jnp.mean(value_error + weighted.reward_error(prediction, batch))


@registry.register("calibrated_vaml", gaussian=True)
def calibrated_vaml_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    num_samples: int = 4,
    key: jax.Array | None = None,
) -> jax.Array:
    """VAML with several samples of a stochastic model, corrected for their variance.

        L = (1/B) sum_b [ (1/K) sum_k ((m_bk - V_k(s'_b))^2 - S_bk^2 / M) + NLL(r_b) ]
        m, S^2: mean and unbiased variance of V_k at M samples of the model

    The mean of M sampled values has the variance Var V / M around the model's expected
    value, which a squared error counts as error. It is subtracted, so that the
    expectation of the loss is (E V(s_hat) - V(s'))^2. That is the correction of
    Voelcker et al. 2025 (arXiv 2505.22772) as far as we know it. At the minimum a
    stochastic model expects the right mean value. For a linear value the loss doesn't
    depend on the variance of the state. It may be negative.

    Args:
      params: what `init_dynamics` with a Gaussian head returned, or any pytree.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model; it returns a log-variance as third element.
      num_samples: M, at least 2.
      key: random key of the samples, used once. None derives it from the batch, so
        that each batch has different samples. To train repeatedly on one batch pass a
        new key each time, or the model fits the samples.

    Returns:
      A scalar. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, there is no log-variance, fewer
        than 2 samples, or `value_fn` has another form.
    """
    if num_samples < 2:
        raise ValueError(
            f"calibrated_vaml_loss: num_samples={num_samples}; at least 2 are accepted"
        )
    where = "calibrated_vaml_loss"
    batch, prediction = checks.predict_checked(
        where, params, batch, predict, gaussian=True
    )
    key = _key_of(batch) if key is None else key
    shape, dtype = prediction.next_obs.shape, prediction.next_obs.dtype
    noise = jax.random.normal(key, (num_samples, *shape), dtype)
    std = jnp.exp(0.5 * checks.log_var(where, prediction)[..., :-1])
    error = _value_errors(value_fn, prediction.next_obs + std * noise, batch)
    spread = jnp.var(error, axis=0, ddof=1) / num_samples  # [..., B, K]
    value_error = jnp.mean(jnp.square(jnp.mean(error, axis=0)) - spread, axis=-1)
    return jnp.mean(
        value_error + likelihood.negative_log_likelihood(prediction, batch)[..., -1]
    )


def _bootstrapped(batch: Transition, value_fn, discount) -> jax.Array:
    """The targets of `muzero_loss` without prepared ones, `[..., B, K or 1]`."""
    if discount is None:
        missing = (
            "it must hold the bootstrapped value of each next_obs, [B]; or pass "
            "discount= for consecutive rows"
        )
        return batches.field("muzero_loss", batch, "next_value", missing)[..., None]
    if batch.next_value is not None:
        raise ValueError(
            "muzero_loss: discount has no effect together with batch.next_value; pass "
            "one of them"
        )
    return next_values(batch, value_fn, discount=discount)


def _value_errors(value_fn, states, batch: Transition) -> jax.Array:
    """V_k at predicted states minus V_k at the real ones, `[..., B, K]`."""
    real = value_gradients.values_of(value_fn, batch.next_obs)
    return _values_at(value_fn, states) - jax.lax.stop_gradient(real)


def _values_at(value_fn, states: jax.Array) -> jax.Array:
    """V_k at states, `[..., K]`, differentiable in the states only.

    Computed as the tangent plane at the states, which has the same value and gradient
    there and passes no gradient to the value function.
    """
    constant = jax.lax.stop_gradient(states)
    slope = value_gradients.value_gradients(value_fn, constant)
    value = jax.lax.stop_gradient(value_gradients.values_of(value_fn, constant))
    return value + jnp.einsum("...kd,...d->...k", slope, states - constant)


def _key_of(batch: Transition) -> jax.Array:
    """A key that depends on the numbers of a batch."""
    bits = jax.lax.bitcast_convert_type(batch.next_obs.astype(jnp.float32), jnp.uint32)
    return jax.random.fold_in(jax.random.key(0), jnp.sum(bits, dtype=jnp.uint32))
