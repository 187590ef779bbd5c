"""What a loss weights its errors with: how much a value depends on each dimension.

Comes in: a value function and real successors. Goes out: weights, `[B, obs_dim]`.
They depend on data and value function alone, never on the model, so a fit with a frozen
value function prepares them once for all of its data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import dynamics
from vagram_jax.config import leaf, static
from vagram_jax.types import Transition, ValueFn

# Jacobians of more states than this are taken in parts, to bound the memory.
_STATES_AT_ONCE = 4096


@struct.dataclass(kw_only=True)
class WeightConfig:
    """Departures from the plain value-gradient weights, all off by default.

    Attributes:
      clip_quantile: shrink gradients whose norm is above this quantile of the batch to
        that norm (the paper's code: 0.95); 1 clips nothing.
      normalize: scale the weights of the batch to a mean of one.
      mask_terminated: no weight where a transition terminated: its successor has no
        value, and nothing was learned about the gradient there.
      scale_by_dim: multiply by the number of state dimensions, the factor that the
        Cauchy-Schwarz bound has and the released loss has not.
      mse_coef: add this much to each weight, that is, add so much plain squared error.
      mse_steps: do so only until this environment step (the paper's code: 1,000).
    """

    clip_quantile: float = static(1.0, above=0.0, high=1.0)
    normalize: bool = static(False)
    mask_terminated: bool = static(False)
    scale_by_dim: bool = static(False)
    mse_coef: float = leaf(0.0, low=0.0)
    mse_steps: float = leaf(0.0, low=0.0)


def value_gradient_weights(
    value_fn: ValueFn,
    next_obs: jax.Array,
    *,
    terminated: jax.Array | None = None,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """How much the value changes with each dimension of a state, squared.

        w[b, d] = (1/K) sum_k (dV_k(s) / ds_d)^2    at s = next_obs[b]

    The weights of VaGraM's bounded objective (Voelcker et al. 2022, arXiv 2204.01464).

    Args:
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      next_obs: `[..., obs_dim]`, real successors, in the units of the data.
      terminated: `[...]` bool; used by `config.mask_terminated` only.
      where: `[...]` bool, rows that count for quantile and mean; others get zero.
      config: clipping and normalising; `mse_coef` is added as it stands.

    Returns:
      `[..., obs_dim]`, (units of return / units of the dimension)^2. No gradient flows
      into `value_fn` or through the result.

    Raises:
      ValueError: `value_fn` returns anything but a floating scalar or `[K]`.
    """
    if config.mask_terminated and terminated is not None:
        where = ~terminated if where is None else where & ~terminated
    gradients = _clip(value_gradients(value_fn, next_obs), where, config.clip_quantile)
    weights = jnp.mean(jnp.square(gradients), axis=-2)  # [..., obs_dim]
    if config.scale_by_dim:
        weights = weights * next_obs.shape[-1]
    if where is not None:
        weights = jnp.where(where[..., None], weights, 0.0)
    if config.normalize:
        mean = jnp.mean(weights, where=None if where is None else where[..., None])
        weights = weights / jnp.where(mean > 0.0, mean, 1.0)
    return jax.lax.stop_gradient(weights + config.mse_coef)


def value_gradients(value_fn: ValueFn, states: jax.Array) -> jax.Array:
    """The gradient of each value function at each state.

    Args:
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      states: `[..., obs_dim]`, in the units of the data.

    Returns:
      `[..., K, obs_dim]`, K one for a scalar; no gradient flows through it.

    Raises:
      ValueError: `value_fn` returns anything but a floating scalar or `[K]`.
    """
    check_value_fn(value_fn, states.shape[-1], states.dtype)
    jacobian = jax.jacrev(lambda state: jnp.atleast_1d(value_fn(state)))
    flat = states.reshape(-1, states.shape[-1])
    if flat.shape[0] > _STATES_AT_ONCE:
        gradients = jax.lax.map(jacobian, flat, batch_size=_STATES_AT_ONCE)
    else:
        gradients = jax.vmap(jacobian)(flat)
    return jax.lax.stop_gradient(
        gradients.reshape(*states.shape[:-1], *gradients.shape[1:])
    )


def check_value_fn(value_fn: ValueFn, obs_dim: int, dtype=jnp.float32) -> None:
    """Refuses a value function of the wrong form, before anything runs.

    Args:
      value_fn: one state to a scalar or to `[K]`.
      obs_dim: size of a state.
      dtype: of a state.

    Raises:
      ValueError: it returns anything but a floating scalar or `[K]`.
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


def from_gradients(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """The weights of VaGraM for a batch.

    Args:
      batch: `[..., ]` transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[...]` bool, the rows that count.
      config: passed on to `value_gradient_weights`.

    Returns:
      `[..., obs_dim]`.
    """
    return value_gradient_weights(
        value_fn,
        batch.next_obs,
        terminated=batch.terminated,
        where=where,
        config=config,
    )


def gradients_of(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """The value gradients themselves, signed, for the unbounded loss.

    Args:
      batch: `[..., ]` transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[...]` bool, the rows that count for the quantile.
      config: only its `clip_quantile` and `mask_terminated` have a meaning here.

    Returns:
      `[..., K, obs_dim]`.
    """
    gradients = value_gradients(value_fn, batch.next_obs)
    gradients = _clip(gradients, where, config.clip_quantile)
    if config.mask_terminated:
        gradients = jnp.where(batch.terminated[..., None, None], 0.0, gradients)
    return gradients


def from_values(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """How large the value of each successor is, the same for all of its dimensions.

        w_b = |V(s'_b)| / mean |V|, with |V| the mean over the K functions

    Args:
      batch: `[..., ]` transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[...]` bool, the rows that count for the mean.
      config: not used.

    Returns:
      `[..., obs_dim]`, without a unit.
    """
    del config
    check_value_fn(value_fn, batch.next_obs.shape[-1], batch.next_obs.dtype)
    values = jnp.vectorize(
        lambda state: jnp.mean(jnp.abs(value_fn(state))), signature="(d)->()"
    )(batch.next_obs)
    mean = jnp.mean(values, where=where)
    weights = values / jnp.where(mean > 0.0, mean, 1.0)
    return jax.lax.stop_gradient(
        jnp.broadcast_to(weights[..., None], batch.next_obs.shape)
    )


def from_variances(
    batch: Transition,
    value_fn: ValueFn = None,
    *,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """One over the variance of each target: what standardising the targets does.

    Args:
      batch: `[..., ]` transitions.
      value_fn: not used.
      where: `[...]` bool, the rows that count.
      config: not used.

    Returns:
      `[..., obs_dim + 1]`, the same in each row, the reward's last.
    """
    del value_fn, config
    targets = dynamics.targets(batch)
    counted = jnp.ones(batch.reward.shape, bool) if where is None else where
    _, std = dynamics.moments(
        targets.reshape(-1, targets.shape[-1]), counted.reshape(-1)
    )
    return jax.lax.stop_gradient(jnp.broadcast_to(1.0 / jnp.square(std), targets.shape))


def _clip(gradients: jax.Array, where, quantile: float) -> jax.Array:
    """Each function's gradients, shrunk to a quantile of their norm."""
    if quantile == 1.0:
        return gradients
    norms = jnp.sqrt(jnp.sum(jnp.square(gradients), axis=-1))  # [..., K]
    counted = jnp.isfinite(norms)
    if where is not None:
        counted = counted & where[..., None]
    rows = tuple(range(norms.ndim - 1))
    limit = jnp.nanquantile(jnp.where(counted, norms, jnp.nan), quantile, axis=rows)
    factor = jnp.minimum(1.0, limit / jnp.where(norms > 0.0, norms, 1.0))
    return gradients * factor[..., None]
