"""The dynamics model: an ensemble that predicts the next observation and the reward.

Inputs and predictions are in the units of the data. Normalization, the prediction of
differences and the ensemble are internal to this module; the losses don't see them.
"""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import networks
from vagram_jax.config import ConfigError, check_fields, static
from vagram_jax.types import Params, Prediction, Transition

# Rows that `sample` predicts at once. The activations of all rows of an epoch take
# gigabytes, and as they don't fit a CPU's cache twice the time.
_CHUNK = 2048


@struct.dataclass(kw_only=True)
class DynamicsConfig:
    """Size and kind of the ensemble.

    Attributes:
      hidden: widths of the hidden layers (MBPO and the paper: four of 200).
      num_members: E, number of members.
      num_elites: number of members that imagination draws from.
      head: "deterministic", "gaussian", or "auto" for the one that the loss needs.
      log_var_bounds: bounds of a Gaussian's log-variance: "learned", with a penalty on
        their distance (Janner et al. 2019), or "fixed".
      target: what the network predicts of the successor: its "difference" to the
        state, or "next_obs" itself.
      normalize_state: scale the network's targets of the state to unit variance.
      normalize_reward: scale the target of the reward to unit variance. Whether one or
        the other is scaled matters much (Barkley and Fridovich-Keil 2025, arXiv
        2510.01457).
      activation: activation of the hidden layers.
    """

    hidden: tuple[int, ...] = static((200, 200, 200, 200), low=1)
    num_members: int = static(7, low=1)
    num_elites: int = static(5, low=1)
    head: str = static("auto", choices=("auto", "deterministic", "gaussian"))
    log_var_bounds: str = static("learned", choices=("learned", "fixed"))
    target: str = static("difference", choices=("difference", "next_obs"))
    normalize_state: bool = static(False)
    normalize_reward: bool = static(False)
    activation: str = static("silu", choices=tuple(networks.ACTIVATIONS))


@struct.dataclass(kw_only=True)
class Normalizer:
    """Statistics of the data: scales of the network, and bounds of the observations.

    Attributes:
      input_mean: `[obs_dim + action_dim]`.
      input_std: `[obs_dim + action_dim]`.
      target_mean: `[obs_dim + 1]`, of the network's targets, last the reward.
      target_std: `[obs_dim + 1]`.
      obs_low: `[obs_dim]`, the lowest observation.
      obs_high: `[obs_dim]`, the highest observation.
    """

    input_mean: jax.Array  # [obs_dim + action_dim]
    input_std: jax.Array  # [obs_dim + action_dim]
    target_mean: jax.Array  # [obs_dim + 1]
    target_std: jax.Array  # [obs_dim + 1]
    obs_low: jax.Array  # [obs_dim]
    obs_high: jax.Array  # [obs_dim]


@struct.dataclass(kw_only=True)
class DynamicsParams:
    """Everything that a prediction depends on.

    Attributes:
      network: parameters of the members, `[E, ...]` each; without the member axis they
        are those of a single model, as `vmap` over members sees it.
      normalizer: shared by the members; no gradient flows into it.
      config: size and kind of the ensemble.
    """

    network: Params
    normalizer: Normalizer
    config: DynamicsConfig = struct.field(pytree_node=False)


def init_dynamics(
    key: jax.Array,
    *,
    obs_dim: int,
    action_dim: int,
    config: DynamicsConfig = DynamicsConfig(),
) -> DynamicsParams:
    """Returns the parameters of a new ensemble, which `predict` and every loss take.

    The normalizer is the identity until `fit_normalizer` sets it.

    Raises:
      ValueError: a size is below one.
      ConfigError: as `check`.
    """
    check(config)
    for name, size in (("obs_dim", obs_dim), ("action_dim", action_dim)):
        if size < 1:
            raise ValueError(f"init_dynamics: {name}={size}; at least 1")
    in_dim, out_dim = obs_dim + action_dim, obs_dim + 1
    module = _module(config, out_dim)
    keys = jax.random.split(key, config.num_members)
    # With a dtype, because a program would compile again for an array of a weak type.
    infinity = jnp.full(obs_dim, jnp.inf, jnp.result_type(float))
    return DynamicsParams(
        network=jax.vmap(module.init, in_axes=(0, None))(keys, jnp.zeros(in_dim)),
        normalizer=Normalizer(
            input_mean=jnp.zeros(in_dim),
            input_std=jnp.ones(in_dim),
            target_mean=jnp.zeros(out_dim),
            target_std=jnp.ones(out_dim),
            obs_low=-infinity,
            obs_high=infinity,
        ),
        config=config,
    )


def check(config: DynamicsConfig) -> None:
    """Raises `ConfigError` for a value out of range, or more elites than members."""
    check_fields(config, prefix="dynamics.")
    if config.num_elites > config.num_members:
        raise ConfigError(
            f"config: dynamics.num_elites={config.num_elites}; at most "
            f"dynamics.num_members={config.num_members}; lower num_elites or raise "
            "num_members"
        )


def predict(params: DynamicsParams, obs: jax.Array, action: jax.Array) -> Prediction:
    """Predicts the next step with each member, in the units of the data.

    Args:
      params: an ensemble, or a single model (without the member axis).
      obs: `[..., obs_dim]`; for an ensemble `[B, obs_dim]`, shared by the members, or
        `[E, B, obs_dim]`.
      action: `[..., action_dim]`, with the leading axes of `obs`.

    Returns:
      The prediction, with leading axes `[...]` for a single model and `[E, B]` for an
      ensemble.
    """
    if not _is_ensemble(params):
        return _predict_one(params, obs, action)
    axis = 0 if obs.ndim == 3 else None

    def member(network, obs, action):
        return _predict_one(params.replace(network=network), obs, action)

    return jax.vmap(member, in_axes=(0, axis, axis))(params.network, obs, action)


def predict_mean(
    params: DynamicsParams, elites: jax.Array, obs: jax.Array, action: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean prediction of the elites.

    Args:
      params: an ensemble.
      elites: `[num_elites]` int, the members that count.
      obs: `[..., obs_dim]`, in the units of the data.
      action: `[..., action_dim]`, with the leading axes of `obs`.

    Returns:
      `(next_obs [..., obs_dim], reward [...])`.
    """
    shape = obs.shape[:-1]
    rows = (obs.reshape(-1, obs.shape[-1]), action.reshape(-1, action.shape[-1]))
    prediction = predict(members(params, elites), *rows)
    next_obs = jnp.mean(prediction.next_obs, axis=0)
    reward = jnp.mean(prediction.reward, axis=0)
    return next_obs.reshape(obs.shape), reward.reshape(shape)


def members(params: DynamicsParams, which: jax.Array) -> DynamicsParams:
    """Returns an ensemble of some members.

    Args:
      params: an ensemble.
      which: `[n]` int, the members.
    """
    return params.replace(network=jax.tree.map(lambda x: x[which], params.network))


def sample(
    key: jax.Array,
    params: DynamicsParams,
    elites: jax.Array,
    obs: jax.Array,
    action: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples the next step of each row from a random elite (TS1, Chua et al. 2018).

    The disagreement of a row is the root mean square, over the state dimensions, of the
    standard deviation of the elites' means, in standard deviations of the data.

    Args:
      key: random key.
      params: an ensemble.
      elites: `[num_elites]` int, the members to draw from.
      obs: `[B, obs_dim]`, in the units of the data.
      action: `[B, action_dim]`.

    Returns:
      `(next_obs [B, obs_dim], reward [B], disagreement [B])`; a Gaussian model adds its
      noise to the first two.
    """
    key_member, key_noise = jax.random.split(key)
    num_rows, num_elites = obs.shape[0], elites.shape[0]
    elite_params = members(params, elites)
    predictions = jax.lax.map(
        lambda row: predict(elite_params, *row), (obs, action), batch_size=_CHUNK
    )  # [B, num_elites, ...]
    drawn = jax.random.choice(key_member, num_elites, (num_rows,))
    prediction = jax.tree.map(lambda x: x[jnp.arange(num_rows), drawn], predictions)
    step = jnp.concatenate([prediction.next_obs, prediction.reward[:, None]], axis=-1)
    if prediction.log_var is not None:
        noise = jax.random.normal(key_noise, step.shape, step.dtype)
        step = step + noise * jnp.exp(0.5 * prediction.log_var)
    obs_std = params.normalizer.input_std[: obs.shape[-1]]
    spread = jnp.std(predictions.next_obs, axis=1) / obs_std
    disagreement = jnp.sqrt(jnp.mean(jnp.square(spread), axis=-1))
    return step[:, :-1], step[:, -1], disagreement


def bounds_penalty(network: Params, *, config: DynamicsConfig) -> jax.Array:
    """Returns the penalty on learned log-variance bounds (Janner et al. 2019).

    It is 0.01 times the summed distance of the bounds, and zero if none are learned.

    Args:
      network: parameters of a single model.
      config: kind of the model.
    """
    if config.head != "gaussian" or config.log_var_bounds == "fixed":
        return jnp.zeros(())
    bounds = network["params"]
    return 0.01 * jnp.sum(bounds["max_log_var"] - bounds["min_log_var"])


def fit_normalizer(
    params: DynamicsParams, data: Transition, where: jax.Array
) -> DynamicsParams:
    """Sets the normalizer to the statistics of the data.

    Targets are scaled only where the config asks for it.

    Args:
      params: the model.
      data: `[N, ...]` transitions.
      where: `[N]` bool, the rows that count.
    """
    inputs = jnp.concatenate([data.obs, data.action], axis=-1)
    input_mean, input_std = moments(inputs, where)
    obs_low, obs_high = _bounds(jnp.stack([data.obs, data.next_obs]), where)
    target_mean, target_std = moments(targets(data, target=params.config.target), where)
    scaled = _scaled_targets(params)
    return params.replace(
        normalizer=Normalizer(
            input_mean=input_mean,
            input_std=input_std,
            target_mean=jnp.where(scaled, target_mean, 0.0),
            target_std=jnp.where(scaled, target_std, 1.0),
            obs_low=obs_low,
            obs_high=obs_high,
        )
    )


def targets(data: Transition, *, target: str = "difference") -> jax.Array:
    """Returns the targets of the network: those of the state and, last, the reward.

    Args:
      data: `[...]` transitions.
      target: "difference" or "next_obs", as in `DynamicsConfig`.

    Returns:
      `[..., obs_dim + 1]`, in the units of the data.
    """
    state = data.next_obs if target == "next_obs" else data.next_obs - data.obs
    return jnp.concatenate([state, data.reward[..., None]], axis=-1)


def moments(values: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation of the rows that count, in two passes.

    Args:
      values: `[N, dim]`.
      where: `[N]` bool, the rows that count.

    Returns:
      `(mean [dim], std [dim])`. A constant dimension gets a standard deviation of one,
      because a smaller scale would inflate its first change. If no row counts, row 0
      does.
    """
    mask = (where | (~jnp.any(where) & (jnp.arange(where.size) == 0)))[:, None]
    # Differences to one row keep the digits that a large offset would take in float32.
    origin = values[jnp.argmax(where)]
    shifted = values - origin
    shift = jnp.mean(shifted, axis=0, where=mask)
    std = jnp.sqrt(jnp.mean(jnp.square(shifted - shift), axis=0, where=mask))
    mean = origin + shift
    return mean, jnp.where(std > 1e-6 * (1.0 + jnp.abs(mean)), std, 1.0)


def elites_of(scores: jax.Array, num_elites: int) -> jax.Array:
    """Returns the members with the lowest scores, best first; non-finite ones last.

    Args:
      scores: `[E]`, hold-out losses.
      num_elites: number of members to return.

    Returns:
      `[num_elites]` int32.
    """
    ranked = jnp.argsort(jnp.where(jnp.isfinite(scores), scores, jnp.inf))
    return ranked[:num_elites].astype(jnp.int32)


def _module(config: DynamicsConfig, num_targets: int) -> networks.Dynamics:
    gaussian = config.head == "gaussian"
    return networks.Dynamics(
        mlp=networks.MLP(
            hidden=config.hidden,
            out_dim=2 * num_targets if gaussian else num_targets,
            activation=config.activation,
            features_first=True,
        ),
        gaussian=gaussian,
    )


def _is_ensemble(params: DynamicsParams) -> bool:
    """Returns whether there is a member axis, which is a second axis of a bias."""
    return params.network["params"]["mlp"]["Dense_0"]["bias"].ndim == 2


def _predict_one(params: DynamicsParams, obs, action) -> Prediction:
    normalizer = jax.lax.stop_gradient(params.normalizer)
    inputs = jnp.concatenate([obs, action], axis=-1)
    inputs = (inputs - normalizer.input_mean) / normalizer.input_std
    module = _module(params.config, normalizer.target_mean.shape[-1])
    # Flax's type has a second case, the variables of modules that change theirs.
    outputs = module.apply(_network(params), inputs)
    mean, log_var = cast(tuple[jax.Array, jax.Array | None], outputs)
    step = mean * normalizer.target_std + normalizer.target_mean
    if log_var is not None:
        log_var = log_var + 2.0 * jnp.log(normalizer.target_std)
    state, reward = step[..., :-1], step[..., -1]
    next_obs = state if params.config.target == "next_obs" else obs + state
    return Prediction(next_obs, reward, log_var)


def _bounds(obs: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns lowest and highest of `[2, N, obs_dim]` over the rows that count."""
    where = where[:, None]
    low = jnp.min(obs, axis=(0, 1), where=where, initial=jnp.inf)
    high = jnp.max(obs, axis=(0, 1), where=where, initial=-jnp.inf)
    return low, high


def _scaled_targets(params: DynamicsParams) -> jax.Array:
    """Returns which targets are scaled, `[obs_dim + 1]` bool."""
    num_targets = params.normalizer.target_mean.shape[-1]
    is_reward = jnp.arange(num_targets) == num_targets - 1
    config = params.config
    return jnp.where(is_reward, config.normalize_reward, config.normalize_state)


def _network(params: DynamicsParams) -> Params:
    """Returns the network's parameters, with fixed bounds cut off from gradients."""
    if params.config.head != "gaussian" or params.config.log_var_bounds == "learned":
        return params.network
    inner = params.network["params"]
    bounds = {
        name: jax.lax.stop_gradient(inner[name])
        for name in ("min_log_var", "max_log_var")
    }
    return {"params": inner | bounds}
