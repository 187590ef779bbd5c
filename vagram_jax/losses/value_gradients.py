"""What a loss weights its errors with: how much a value depends on each dimension.

Comes in: a value function and real successors. Goes out: weights, `[B, obs_dim]`, or
what else a loss needs to know of values and data. None of it depends on the model, so a
fit with a frozen value function prepares it once for all of its data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import dynamics
from vagram_jax.config import ConfigError, leaf, static
from vagram_jax.types import Transition, ValueFn

# Jacobians of more states than this are taken in parts, to bound the memory.
_STATES_AT_ONCE = 4096


@struct.dataclass(kw_only=True)
class WeightConfig:
    """Departures from the plain value-gradient weights, all off by default.

    Attributes:
      gradient_at: where the gradient is taken, at "next_obs", or at "delta", the state
        difference, as the paper's code did until April 2022 by mistake.
      clip_quantile: shrink gradients whose norm is above this quantile of the batch to
        that norm (the paper's code: 0.95); 1 clips nothing.
      normalize: scale the weights of the batch to a mean of one.
      mask_terminated: no weight where a transition terminated: its successor has no
        value, and nothing was learned about the gradient there.
      scale_by_dim: multiply by the number of state dimensions, the factor that the
        Cauchy-Schwarz bound has and the released loss has not.
      mse_coef: add this much to each weight, that is, add so much plain squared error.
      mse_steps: do so only until this environment step (the paper's code: 1,000).
      gradient_share: m of a mixture, 1 - m times the squared error of `mixed_with` and
        m times VaGraM; with `normalize` both have weights of a like size. One number,
        or in training a schedule (see `imagine.scheduled`): until the critics know what
        the value depends on, their gradients are noise.
      mixed_with: "mse", the plain squared error, or "mse_normalized", that on
        standardised targets, scaled to a mean weight of one.
      discount: of the targets of `muzero`; nothing stands for the agent's.
    """

    gradient_at: str = static("next_obs", choices=("next_obs", "delta"))
    clip_quantile: float = static(1.0, above=0.0, high=1.0)
    normalize: bool = static(False)
    mask_terminated: bool = static(False)
    scale_by_dim: bool = static(False)
    mse_coef: float = leaf(0.0, low=0.0)
    mse_steps: float = leaf(0.0, low=0.0)
    gradient_share: tuple[float, ...] = leaf((1.0,), low=0.0)
    mixed_with: str = static("mse", choices=("mse", "mse_normalized"))
    discount: tuple[float, ...] = leaf((), low=0.0, high=1.0)


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
    return _derivatives(jax.jacrev, value_fn, states)


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
    weights = value_gradient_weights(
        value_fn,
        _states(batch, config),
        terminated=batch.terminated,
        where=where,
        config=config,
    )
    return _mixed(weights, batch, where, config)


def from_mean_gradients(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """The mean of VaGraM's weights over the batch: one for each dimension.

    Args:
      batch: `[..., ]` transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[...]` bool, the rows that count.
      config: as in `from_gradients`.

    Returns:
      `[..., obs_dim]`, the same in each row.
    """
    weights = from_gradients(batch, value_fn, where=where, config=config)
    rows = tuple(range(weights.ndim - 1))
    counted = None if where is None else where[..., None]
    mean = jnp.mean(weights, axis=rows, where=counted)
    return jnp.broadcast_to(mean, weights.shape)


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
      config: only its `gradient_at`, `clip_quantile` and `mask_terminated` have a
        meaning here.

    Returns:
      `[..., K, obs_dim]`.
    """
    gradients = value_gradients(value_fn, _states(batch, config))
    gradients = _clip(gradients, where, config.clip_quantile)
    if config.mask_terminated:
        gradients = jnp.where(batch.terminated[..., None, None], 0.0, gradients)
    return gradients


def taylor_terms(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """Gradient and diagonal of the Hessian of each value function.

    Args:
      batch: `[..., ]` transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[...]` bool, the rows that count for the quantile.
      config: as in `gradients_of`; curvature is never clipped.

    Returns:
      `[..., K, 2, obs_dim]`, the gradient first.
    """
    gradients = gradients_of(batch, value_fn, where=where, config=config)
    hessians = _hessians_of(batch, value_fn, config)
    diagonal = jnp.diagonal(hessians, axis1=-2, axis2=-1)
    return jnp.stack([gradients, diagonal], axis=-2)


def taylor_terms_of_eigenbasis(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """Gradient and curvature of each value function along its Hessian's eigenvectors.

    Args:
      batch: `[..., ]` transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[...]` bool, the rows that count for the quantile.
      config: as in `gradients_of`; curvature is never clipped.

    Returns:
      `[..., K, obs_dim + 2, obs_dim]`: the gradient in the basis, the eigenvalues, and
      the eigenvectors, one a row.
    """
    gradients = gradients_of(batch, value_fn, where=where, config=config)
    eigenvalues, vectors = jnp.linalg.eigh(_hessians_of(batch, value_fn, config))
    turned = jnp.einsum("...dj,...d->...j", vectors, gradients)
    rows = [
        turned[..., None, :],
        eigenvalues[..., None, :],
        jnp.swapaxes(vectors, -1, -2),
    ]
    return jnp.concatenate(rows, axis=-2)


def next_values(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    config: WeightConfig = WeightConfig(),
) -> jax.Array:
    """The value of each successor as bootstrapped from the transition that followed it.

        y_i = r_{i+1} + discount (1 - terminated_{i+1}) V(s'_{i+1})

    Where the next row doesn't go on from this one, at the end of an episode or of the
    data, it is V(s'_i).

    Args:
      batch: `[N, ...]` transitions in the order of time.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[N]` bool, the rows that count.
      config: only its `discount` has a meaning here.

    Returns:
      `[N, K]`, in units of return.

    Raises:
      ConfigError: `config` says no discount.
    """
    if not config.discount:
        raise ConfigError("config: weights.discount=(); one number is needed here")
    counted = jnp.ones(batch.reward.shape, bool) if where is None else where
    after, follows = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), (batch, counted))
    # After an episode's end the next one may start in the very state that ended it.
    goes_on = counted & follows & ~batch.terminated & ~batch.truncated
    goes_on = goes_on & jnp.all(after.obs == batch.next_obs, axis=-1)
    values = values_of(value_fn, batch.next_obs)  # [N, K]
    later = jnp.where(after.terminated[:, None], 0.0, jnp.roll(values, -1, axis=0))
    targets = after.reward[:, None] + config.discount[0] * later
    return jax.lax.stop_gradient(jnp.where(goes_on[:, None], targets, values))


def values_of(value_fn: ValueFn, states: jax.Array) -> jax.Array:
    """What each value function gives each state.

    Args:
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      states: `[..., obs_dim]`, in the units of the data.

    Returns:
      `[..., K]`, K one for a scalar.

    Raises:
      ValueError: `value_fn` returns anything but a floating scalar or `[K]`.
    """
    check_value_fn(value_fn, states.shape[-1], states.dtype)
    return jnp.vectorize(
        lambda state: jnp.atleast_1d(value_fn(state)), signature="(d)->(k)"
    )(states)


def value_hessians(value_fn: ValueFn, states: jax.Array) -> jax.Array:
    """The second derivatives of each value function at each state.

    Args:
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      states: `[..., obs_dim]`, in the units of the data.

    Returns:
      `[..., K, obs_dim, obs_dim]`; no gradient flows through it.

    Raises:
      ValueError: `value_fn` returns anything but a floating scalar or `[K]`.
    """
    return _derivatives(jax.hessian, value_fn, states)


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
    values = jnp.mean(jnp.abs(values_of(value_fn, batch.next_obs)), axis=-1)
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


def _derivatives(transform, value_fn: ValueFn, states: jax.Array) -> jax.Array:
    """`transform` of the K functions at each state, `[..., K, ...]`."""
    check_value_fn(value_fn, states.shape[-1], states.dtype)
    at_one = transform(lambda state: jnp.atleast_1d(value_fn(state)))
    flat = states.reshape(-1, states.shape[-1])
    if flat.shape[0] > _STATES_AT_ONCE:
        found = jax.lax.map(at_one, flat, batch_size=_STATES_AT_ONCE)
    else:
        found = jax.vmap(at_one)(flat)
    return jax.lax.stop_gradient(found.reshape(*states.shape[:-1], *found.shape[1:]))


def _hessians_of(batch: Transition, value_fn: ValueFn, config: WeightConfig):
    """The Hessians that belong to `gradients_of`: there, and none where masked."""
    hessians = value_hessians(value_fn, _states(batch, config))
    if config.mask_terminated:
        ended = batch.terminated[..., None, None, None]
        hessians = jnp.where(ended, 0.0, hessians)
    return hessians


def _states(batch: Transition, config: WeightConfig) -> jax.Array:
    """Where gradients are taken."""
    is_delta = config.gradient_at == "delta"
    return batch.next_obs - batch.obs if is_delta else batch.next_obs


def _mixed(weights, batch: Transition, where, config: WeightConfig) -> jax.Array:
    """The weights, mixed with those of a squared error."""
    other = jnp.ones_like(weights)
    if config.mixed_with == "mse_normalized":
        other = from_variances(batch, where=where)[..., : weights.shape[-1]]
        other = other / jnp.mean(other, axis=-1, keepdims=True)
    if where is not None:
        other = jnp.where(where[..., None], other, 0.0)
    share = config.gradient_share[0]
    return share * weights + (1.0 - share) * other


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
