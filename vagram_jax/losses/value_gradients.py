"""Value gradients, and the loss weights derived from them.

Also values and Hessians of a value function. None of it depends on the model, so a fit
with a frozen value function computes it once for all of its data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import schedules
from vagram_jax.config import ConfigError, leaf, static
from vagram_jax.losses import batches, checks
from vagram_jax.schedules import Schedule
from vagram_jax.types import Transition, ValueFn

# The derivatives of this many states fit into the cache of a core.
_STATES_AT_ONCE = 256
# Of more states than this, those behind the last row that counts are left out.
_STATES_IN_A_BLOCK = 4096
_GRADIENT_AT = ("next_obs", "delta")


@struct.dataclass(kw_only=True)
class GradientConfig:
    """How value gradients are taken. The defaults take the plain gradients.

    Attributes:
      at: "next_obs" takes the gradient at the real next state; "delta" takes it at the
        state difference, as the paper's code did by mistake until April 2022.
      clip_quantile: scales gradients whose norm is above this quantile of the data down
        to that norm (the paper's code: 0.95); 1 clips nothing. If the quantile is
        zero, because most gradients are, that of the other gradients is taken.
      mask_terminated: terminated transitions get a gradient of zero and don't count for
        the quantile: their next state has no value, so its gradient was never learned.
    """

    at: str = static("next_obs", choices=_GRADIENT_AT)
    clip_quantile: float = static(1.0, above=0.0, high=1.0)
    mask_terminated: bool = static(False)


@struct.dataclass(kw_only=True)
class WeightConfig:
    """How squared value gradients w become the weights of a loss.

        weights = gradient_coef * w + mse_coef * o

    with o = 1, the weights of the squared error, or those of `mse_normalized`.

    Attributes:
      normalize: scales w to a mean of one over the data. Rows whose gradient isn't
        finite don't count for the mean and keep a weight that isn't finite.
      scale_by_dim: multiplies w by the number of state dimensions, the factor of the
        Cauchy-Schwarz bound that the released loss leaves out.
      gradient_coef: coefficient of w; a number, or a schedule that starts at zero while
        the critics don't know yet what the value depends on.
      mse_coef: coefficient of o; a number, or a schedule (the paper's code: 1 for the
        first 1,000 steps of training).
      mse_normalized: o is one over the variance of each dimension's change, scaled to a
        mean of one over the dimensions.
    """

    normalize: bool = static(False)
    scale_by_dim: bool = static(False)
    gradient_coef: Schedule = leaf(schedules.constant(1.0), low=0.0)
    mse_coef: Schedule = leaf(schedules.constant(0.0), low=0.0)
    mse_normalized: bool = static(False)


def check(weights: WeightConfig) -> None:
    """Refuses coefficients with which all weights are zero from the start to the end.

    Raises:
      ConfigError: both are zero. Arrays, as `resolve` returns, are not checked.
    """
    coefs = (weights.gradient_coef, weights.mse_coef)
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(coefs)):
        return
    if all(schedules.bounds(coef)[1] == 0.0 for coef in coefs):
        raise ConfigError(
            "weights: gradient_coef=0 and mse_coef=0 make all weights zero; set one of "
            "them above 0"
        )


def resolve(weights: WeightConfig, env_steps: jax.Array | int) -> WeightConfig:
    """Returns the config with each schedule replaced by its value after `env_steps`."""
    return weights.replace(
        gradient_coef=schedules.value(weights.gradient_coef, env_steps),
        mse_coef=schedules.value(weights.mse_coef, env_steps),
    )


def coefficients(weights: WeightConfig) -> tuple[jax.Array | float, jax.Array | float]:
    """Returns `(gradient_coef, mse_coef)` as numbers.

    Raises:
      ConfigError: one of them changes with the environment steps, or both are zero.
    """
    check(weights)
    return (
        _number("gradient_coef", weights.gradient_coef),
        _number("mse_coef", weights.mse_coef),
    )


def value_gradient_weights(
    value_fn: ValueFn,
    next_obs: jax.Array,
    *,
    where: jax.Array | None = None,
    clip_quantile: float = 1.0,
    normalize: bool = False,
    scale_by_dim: bool = False,
) -> jax.Array:
    """Returns the mean over value functions of the squared gradient in each dimension.

        w[b, d] = (1/K) sum_k (dV_k(s) / ds_d)^2    at s = next_obs[b]

    The weights of VaGraM's bounded objective (Voelcker et al. 2022, arXiv 2204.01464).

    Args:
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      next_obs: `[..., obs_dim]`, real next states, in the units of the data.
      where: `[...]` bool, the rows that count for quantile and mean; the others get
        weights of zero.
      clip_quantile: as in `GradientConfig`.
      normalize: as in `WeightConfig`.
      scale_by_dim: as in `WeightConfig`.

    Returns:
      `[..., obs_dim]`, (units of return / units of the dimension)^2. No gradient flows
      into `value_fn` or through the result.

    Raises:
      ValueError: `value_fn` doesn't return a floating scalar or `[K]`, `next_obs` is no
        array, or `where` has another shape or dtype.
      ConfigError: an option is outside its range, or `normalize` would undo
        `scale_by_dim`.
    """
    if not hasattr(next_obs, "shape"):
        remedy = "convert it with jnp.asarray"
        if callable(next_obs):
            remedy = "pass value_fn first, then next_obs"
        raise ValueError(
            f"value_gradient_weights: next_obs is a {type(next_obs).__name__}; an "
            f"array [..., obs_dim] is accepted; {remedy}"
        )
    batches.check_mask("value_gradient_weights", where, next_obs.shape[:-1])
    if normalize and scale_by_dim:
        raise ConfigError(
            "weights: scale_by_dim=True has no effect with normalize=True; set one of "
            "them"
        )
    gradients = value_gradients(value_fn, next_obs, where=where)
    gradients = clip(gradients, clip_quantile, where=where)
    weights = jnp.mean(jnp.square(gradients), axis=-2)  # [..., obs_dim]
    if scale_by_dim:
        weights = weights * next_obs.shape[-1]
    if where is not None:
        weights = jnp.where(where[..., None], weights, 0.0)
    if normalize:
        weights = to_mean_of_one(weights, where)
    return jax.lax.stop_gradient(weights)


def to_mean_of_one(weights: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Returns weights scaled to a mean of one over the rows that count.

    Rows with NaN or infinity don't count, so the weights of the others are the same
    as without them; their own weights stay NaN or infinite, and so does the loss. If
    the mean is zero, the weights are returned as they are.

    Args:
      weights: `[..., dim]`.
      where: `[...]` bool, the rows that count.

    Returns:
      `[..., dim]`.
    """
    counted = jnp.all(jnp.isfinite(weights), axis=-1)
    counted = counted if where is None else counted & where
    mean = jnp.mean(weights, where=counted[..., None])
    return weights / jnp.where(mean > 0.0, mean, 1.0)


def value_gradients(
    value_fn: ValueFn, states: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Returns the gradient of each value function at each state.

    Args:
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      states: `[..., obs_dim]`, in the units of the data.
      where: `[...]` bool, the rows that are needed; the others may be zero. A buffer
        that is filled in part takes less time with it.

    Returns:
      `[..., K, obs_dim]`, with K = 1 for a scalar. No gradient flows through it.

    Raises:
      ValueError: `value_fn` doesn't return a floating scalar or `[K]`.
    """
    return _derivatives(_jacobian, value_fn, states, where)


def value_hessians(
    value_fn: ValueFn, states: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Returns the Hessian of each value function at each state.

    Args and errors are those of `value_gradients`.

    Returns:
      `[..., K, obs_dim, obs_dim]`, with K = 1 for a scalar. No gradient flows through
      it.
    """
    return _derivatives(jax.hessian, value_fn, states, where)


def values_of(value_fn: ValueFn, states: jax.Array) -> jax.Array:
    """Returns the values of each state.

    Args and errors are those of `value_gradients`.

    Returns:
      `[..., K]`, with K = 1 for a scalar.
    """
    checks.check_value_fn(value_fn, states.shape[-1], states.dtype)
    return jnp.vectorize(
        lambda state: jnp.atleast_1d(value_fn(state)), signature="(d)->(k)"
    )(states)


def gradient_states(batch: Transition, config: GradientConfig) -> jax.Array:
    """Returns the states at which the gradients of a batch are taken.

    Args:
      batch: `[..., ]` transitions.
      config: its `at` is read.

    Returns:
      `[..., obs_dim]`.

    Raises:
      ConfigError: `config.at` is unknown.
    """
    if config.at not in _GRADIENT_AT:
        raise ConfigError(
            f"gradients: at={config.at!r}; accepted: {', '.join(_GRADIENT_AT)}"
        )
    return batch.next_obs - batch.obs if config.at == "delta" else batch.next_obs


def counted_rows(
    batch: Transition, where: jax.Array | None, config: GradientConfig
) -> jax.Array | None:
    """Returns `where` without the rows that `config.mask_terminated` excludes.

    Args:
      batch: `[..., ]` transitions.
      where: `[...]` bool, the rows that count; None means all.
      config: its `mask_terminated` is read.

    Returns:
      `[...]` bool, or None for all rows.

    Raises:
      ValueError: terminated rows are masked and the batch has no `terminated`.
    """
    if not config.mask_terminated:
        return where
    alive = jnp.logical_not(terminated(batch))
    return alive if where is None else where & alive


def terminated(batch: Transition) -> jax.Array:
    """Returns which rows terminated, `[...]` bool, for `mask_terminated`.

    Raises:
      ValueError: the batch doesn't say so.
    """
    return batches.field(
        "gradients: mask_terminated=True",
        batch,
        "terminated",
        "add it, or set mask_terminated=False",
    )


def clip(
    gradients: jax.Array, quantile: float, *, where: jax.Array | None = None
) -> jax.Array:
    """Scales long gradients down to a quantile of the norms, for each value function.

    Args:
      gradients: `[..., K, obs_dim]`.
      quantile: above 0, at most 1; 1 clips nothing. If it is zero, because most norms
        are, the quantile of the other norms is taken: it clips no gradient to zero.
      where: `[...]` bool, the rows that count for the quantile. Rows with NaN or
        infinity never count.

    Returns:
      `[..., K, obs_dim]`.

    Raises:
      ConfigError: `quantile` is outside its range.
    """
    if not 0.0 < quantile <= 1.0:
        raise ConfigError(
            f"gradients: clip_quantile={quantile}; accepted: above 0 and at most 1"
        )
    if quantile == 1.0:
        return gradients
    norms = jnp.sqrt(jnp.sum(jnp.square(gradients), axis=-1))  # [..., K]
    counted = jnp.isfinite(norms)
    if where is not None:
        counted = counted & where[..., None]
    limit = _quantile(norms, quantile, counted)
    limit_of_others = _quantile(norms, quantile, counted & (norms > 0.0))
    limit = jnp.where(limit > 0.0, limit, limit_of_others)
    factor = jnp.minimum(1.0, limit / jnp.where(norms > 0.0, norms, 1.0))
    return gradients * factor[..., None]


def _quantile(norms: jax.Array, quantile: float, counted: jax.Array) -> jax.Array:
    """The quantile of the norms that count, `[K]`; infinite if none counts."""
    rows = tuple(range(norms.ndim - 1))
    limit = jnp.nanquantile(jnp.where(counted, norms, jnp.nan), quantile, axis=rows)
    return jnp.where(jnp.isnan(limit), jnp.inf, limit)


def _jacobian(function):
    """Reverse mode, one output after the other: on a CPU twice as fast as `jacrev`."""

    def jacobian(state):
        values, pull_back = jax.vjp(function, state)
        return jax.lax.map(
            lambda row: pull_back(row)[0], jnp.eye(values.size, dtype=values.dtype)
        )

    return jacobian


def _derivatives(transform, value_fn: ValueFn, states: jax.Array, where) -> jax.Array:
    """Applies `transform` to the K functions at each state, `[..., K, ...]`."""
    checks.check_value_fn(value_fn, states.shape[-1], states.dtype)
    at_one = transform(lambda state: jnp.atleast_1d(value_fn(state)))
    flat = states.reshape(-1, states.shape[-1])
    if flat.shape[0] <= _STATES_AT_ONCE:
        derivatives = jax.vmap(at_one)(flat)
    elif flat.shape[0] <= _STATES_IN_A_BLOCK or where is None:
        derivatives = jax.lax.map(at_one, flat, batch_size=_STATES_AT_ONCE)
    else:
        derivatives = _in_blocks(at_one, flat, where.reshape(-1))
    shape = (*states.shape[:-1], *derivatives.shape[1:])
    return jax.lax.stop_gradient(derivatives.reshape(shape))


def _in_blocks(at_one, states: jax.Array, where: jax.Array) -> jax.Array:
    """Applies `at_one` to the blocks that hold a row that counts; the rest is zero."""
    count, size = states.shape[0], _STATES_IN_A_BLOCK
    num_blocks = -(-count // size)
    padded = jnp.pad(states, ((0, num_blocks * size - count), (0, 0)))

    def add_block(i, derivatives):
        block = jax.lax.dynamic_slice_in_dim(padded, i * size, size)
        block = jax.lax.map(at_one, block, batch_size=_STATES_AT_ONCE)
        return jax.lax.dynamic_update_slice_in_dim(derivatives, block, i * size, 0)

    one = jax.eval_shape(at_one, states[0])
    zeros = jnp.zeros((num_blocks * size, *one.shape), one.dtype)
    last = jnp.max(jnp.where(where, jnp.arange(1, count + 1), 0))
    return jax.lax.fori_loop(0, -(-last // size), add_block, zeros)[:count]


def _number(name: str, coefficient: Schedule | jax.Array | float):
    if not isinstance(coefficient, Schedule):
        return coefficient
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(coefficient))
    if traced or not schedules.is_constant(coefficient):
        raise ConfigError(
            f"weights: {name}={coefficient}; outside training a constant is accepted; "
            "call value_gradients.resolve(weights, env_steps) first"
        )
    return coefficient.start
