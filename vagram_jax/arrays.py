"""Fits a dynamics model to plain arrays, with one call."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax import dynamics, losses
from vagram_jax import fit as fitting
from vagram_jax.config import from_mapping, leaf, nested, static, to_dict
from vagram_jax.dynamics import DynamicsConfig, DynamicsParams
from vagram_jax.fit import FitConfig
from vagram_jax.losses import GradientConfig, ModelLoss, WeightConfig, batches
from vagram_jax.replay import ReplayState
from vagram_jax.types import ValueFn


@struct.dataclass(kw_only=True)
class ArraysConfig:
    """The options of `fit_arrays`, with the keys and defaults of training.

    Attributes:
      loss: name of the model loss, or `"path.module:name"` of the user's own.
      dynamics: size and kind of the ensemble.
      gradients: how value gradients are taken.
      weights: how the loss weights its errors.
      fit: how the model is fitted.
      discount: discount factor of `value_fn`, for the losses that read it.
      seed: seed of the networks and of the minibatches.
    """

    loss: str = static("vagram", known=losses.LOSSES)
    dynamics: DynamicsConfig = nested(DynamicsConfig)
    gradients: GradientConfig = nested(GradientConfig)
    weights: WeightConfig = nested(WeightConfig)
    fit: FitConfig = nested(FitConfig)
    discount: float | None = leaf(None, low=0.0, high=1.0)
    seed: int = static(0, low=0, high=2**32 - 1)


class FittedModel(NamedTuple):
    """A model that was fitted to arrays.

    Attributes:
      params: the ensemble, as every loss takes it.
      elites: `[num_elites]`, the members with the lowest hold-out loss, best first.
      metrics: of the fit, by name, in NumPy; see `fit.fit`.
    """

    params: DynamicsParams
    elites: jax.Array
    metrics: dict[str, np.ndarray]

    def predict(self, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next observation and the reward that the elites predict on average.

        Args:
          obs: `[..., obs_dim]`, in the units of the data.
          action: `[..., action_dim]`, with the leading axes of `obs`.

        Returns:
          `(next_obs [..., obs_dim], reward [...])`.
        """
        obs, action = jnp.asarray(obs), jnp.asarray(action)
        return dynamics.predict_mean(self.params, self.elites, obs, action)


def fit_arrays(
    obs: jax.Array | np.ndarray,
    action: jax.Array | np.ndarray,
    reward: jax.Array | np.ndarray,
    next_obs: jax.Array | np.ndarray,
    *,
    value_fn: ValueFn | None = None,
    terminated: jax.Array | np.ndarray | None = None,
    **options: Any,
) -> FittedModel:
    """Fits an ensemble to transitions in plain arrays.

    Args:
      obs: `[N, obs_dim]`, N at least 2.
      action: `[N, action_dim]`, in any units.
      reward: `[N]`.
      next_obs: `[N, obs_dim]`.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`; a loss that doesn't
        use it accepts None.
      terminated: `[N]` bool, steps without a value after them; None: unknown.
      **options: fields of `ArraysConfig`: the `loss`, by default "vagram", and configs
        or mappings such as `dynamics={"hidden": (64, 64)}`, `fit={"max_epochs": 20}`.

    Returns:
      The model, whose `predict` takes one row or many.

    Raises:
      ConfigError: an unknown option, or a value out of range.
      ValueError: an array has the wrong shape or isn't finite, there are fewer than two
        rows, or the loss needs a value function.

    Example:
      >>> model = fit_arrays(obs, action, reward, next_obs, loss="vagram", value_fn=V)
      >>> next_obs, reward = model.predict(obs[0], action[0])
    """
    config, loss = _config(options)
    arrays = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs}
    data = _data(arrays | {"terminated": terminated})
    key_init, key_fit = jax.random.split(jax.random.key(config.seed))
    state = fitting.init(
        key_init,
        obs_dim=data.data.obs.shape[1],
        action_dim=data.data.action.shape[1],
        dynamics_config=config.dynamics,
        config=config.fit,
    )

    # A loss that doesn't use it accepts None, which the type doesn't say.
    frozen = cast(ValueFn, value_fn)

    @jax.jit
    @jax.default_matmul_precision("highest")
    def run(key, state, data):
        return fitting.fit(key, state, data, frozen, loss=loss, config=config.fit)

    state, metrics = run(key_fit, state, data)
    return FittedModel(state.params, state.elites, jax.device_get(metrics))


def _config(options: dict[str, Any]) -> tuple[ArraysConfig, ModelLoss]:
    """The config with the head that the loss needs, and the loss with its settings."""
    plain = {
        name: to_dict(value) if dataclasses.is_dataclass(value) else value
        for name, value in options.items()
    }
    config = from_mapping(ArraysConfig, plain)
    parts = {"gradients": config.gradients, "weights": config.weights}
    head = fitting.check_loss(config.loss, dynamics_config=config.dynamics, **parts)
    dynamics.check(head)
    loss = losses.bind(losses.get(config.loss), discount=config.discount, **parts)
    return config.replace(dynamics=head), loss


def _data(arrays: dict[str, Any]) -> ReplayState:
    """The arrays as a full buffer, after checks."""
    batch = batches.to_transition("fit_arrays", arrays)
    if batch.obs.ndim != 2 or batch.obs.shape[0] < 2:
        raise ValueError(
            f"fit_arrays: obs has shape {list(batch.obs.shape)}; [N, obs_dim] with at "
            "least two rows is accepted; some are held out to select the members"
        )
    if batch.terminated is not None:
        flags = batches.field("fit_arrays", batch, "terminated", "")
        batch = batch.replace(terminated=flags)
    return ReplayState(
        data=batch, insert_at=jnp.int32(0), size=jnp.int32(batch.obs.shape[0])
    )
