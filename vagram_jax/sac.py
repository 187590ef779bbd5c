"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) and its value function.

`value_fn` turns an agent into a function of one state; the model losses take their
weights from its gradient.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vagram_jax import dynamics, networks
from vagram_jax.config import ConfigError, check_fields, leaf, static
from vagram_jax.types import ActFn, Metrics, Params, Transition, ValueFn


@struct.dataclass(kw_only=True)
class SACConfig:
    """Networks and learning rates of the agent.

    Attributes:
      hidden: widths of the hidden layers of actor and critics.
      activation: activation of the hidden layers.
      normalize_obs: normalize the observations of actor and critics by the mean and
        standard deviation of the real data, which `fit_normalizer` sets.
      actor_layer_norm: LayerNorm in the hidden layers of the actor.
      critic_layer_norm: LayerNorm in the hidden layers of the critics (DroQ, Hiraoka et
        al. 2021, arXiv 2110.02034; RLPD, Ball et al. 2023, arXiv 2302.02948).
      actor_unit_features: scale the features before the last layer of the actor to
        norm one.
      critic_unit_features: the same for the critics (Hussing et al. 2024, arXiv
        2403.05996).
      num_critics: number of critics.
      min_critics: number of target critics, drawn anew for each update, whose minimum
        is the target (REDQ, Chen et al. 2021, arXiv 2101.05982). The actor then
        maximizes the mean of all critics. None means all target critics, and an actor
        that maximizes the minimum, as in SAC.
      actor_learning_rate: learning rate of Adam.
      critic_learning_rate: learning rate of Adam.
      temperature_learning_rate: learning rate of Adam, for the logarithm of the
        temperature.
      initial_temperature: temperature of the entropy bonus at the start; it is learned.
      target_entropy: target of the policy's entropy, in nats; None means minus the
        size of an action.
      discount: discount factor per step.
      target_rate: step size of the target critics' moving average.
      value_critics: the critics that `value_fn` returns: "all" (critics and target
        critics), or only the "target" critics.
      value_through_policy: differentiate `value_fn` through the policy's action, that
        is V(s) = Q(s, pi(s)); otherwise the action is held constant, as in the paper's
        code.
    """

    hidden: tuple[int, ...] = static((256, 256), low=1)
    activation: str = static("relu", choices=tuple(networks.ACTIVATIONS))
    normalize_obs: bool = static(False)
    actor_layer_norm: bool = static(False)
    critic_layer_norm: bool = static(False)
    actor_unit_features: bool = static(False)
    critic_unit_features: bool = static(False)
    num_critics: int = static(2, low=1)
    min_critics: int | None = static(None, low=1)
    actor_learning_rate: float = leaf(3e-4, above=0.0)
    critic_learning_rate: float = leaf(3e-4, above=0.0)
    temperature_learning_rate: float = leaf(3e-4, above=0.0)
    initial_temperature: float = leaf(0.1, above=0.0)
    target_entropy: float | None = leaf(None)
    discount: float = leaf(0.99, low=0.0, high=1.0)
    target_rate: float = leaf(0.005, above=0.0, high=1.0)
    value_critics: str = static("all", choices=("all", "target"))
    value_through_policy: bool = static(True)


@struct.dataclass(kw_only=True)
class SACState:
    """Parameters and optimizer states of the agent.

    Attributes:
      actor: parameters of the policy.
      critics: parameters of the critics, `[num_critics, ...]` each.
      target_critics: moving averages of the critics.
      obs_mean: `[obs_dim]`, zeros without `normalize_obs`.
      obs_std: `[obs_dim]`, ones without `normalize_obs`.
      log_temperature: scalar.
      actor_opt: optimizer state of the actor.
      critic_opt: optimizer state of the critics.
      temperature_opt: optimizer state of the temperature.
    """

    actor: Params
    critics: Params  # [num_critics, ...]
    target_critics: Params  # [num_critics, ...]
    obs_mean: jax.Array  # [obs_dim]
    obs_std: jax.Array  # [obs_dim]
    log_temperature: jax.Array  # []
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    temperature_opt: optax.OptState


def check(config: SACConfig) -> None:
    """Raises `ConfigError` for a value out of range, or too many `min_critics`."""
    check_fields(config, prefix="sac.")
    if config.min_critics is not None and config.min_critics > config.num_critics:
        raise ConfigError(
            f"config: sac.min_critics={config.min_critics}; at most sac.num_critics="
            f"{config.num_critics}; lower min_critics or raise num_critics"
        )


def init(
    key: jax.Array, *, obs_dim: int, action_dim: int, config: SACConfig
) -> SACState:
    """Returns a new agent, whose target critics equal its critics.

    Raises:
      ConfigError: as `check`.
    """
    check(config)
    key_actor, key_critics = jax.random.split(key)
    obs, action = jnp.zeros(obs_dim), jnp.zeros(action_dim)
    actor = _policy(config, action_dim).init(key_actor, obs)
    critics = jax.vmap(_critic(config).init, in_axes=(0, None, None))(
        jax.random.split(key_critics, config.num_critics), obs, action
    )
    log_temperature = jnp.log(jnp.float32(config.initial_temperature))
    return SACState(
        actor=actor,
        critics=critics,
        # A copy, so that a caller may donate the state's buffers.
        target_critics=jax.tree.map(jnp.copy, critics),
        obs_mean=jnp.zeros(obs_dim),
        obs_std=jnp.ones(obs_dim),
        log_temperature=log_temperature,
        actor_opt=optax.adam(config.actor_learning_rate).init(actor),
        critic_opt=optax.adam(config.critic_learning_rate).init(critics),
        temperature_opt=optax.adam(config.temperature_learning_rate).init(
            log_temperature
        ),
    )


def fit_normalizer(
    state: SACState, obs: jax.Array, where: jax.Array, *, config: SACConfig
) -> SACState:
    """Sets mean and standard deviation of the observations, if the config asks for it.

    Args:
      state: the agent.
      obs: `[N, obs_dim]`, in the units of the data.
      where: `[N]` bool, the rows that count.
      config: the agent's config.
    """
    if not config.normalize_obs:
        return state
    mean, std = dynamics.moments(obs, where)
    return state.replace(obs_mean=mean, obs_std=std)


def act(
    key: jax.Array, state: SACState, obs: jax.Array, *, config: SACConfig
) -> jax.Array:
    """Samples an action of the policy.

    Args:
      key: random key.
      state: the agent.
      obs: `[..., obs_dim]`.
      config: the agent's config.

    Returns:
      `[..., action_dim]`, each in (-1, 1).
    """
    mean, log_std = _apply_policy(state.actor, _normalize(state, obs, config), config)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return _sample(noise, mean, log_std)[0]


def act_mean(state: SACState, obs: jax.Array, *, config: SACConfig) -> jax.Array:
    """Returns the policy's mean action, the tanh of the Gaussian's mean.

    Args:
      state: the agent.
      obs: `[..., obs_dim]`.
      config: the agent's config.

    Returns:
      `[..., action_dim]`, each in (-1, 1).
    """
    return _mean_action(state.actor, _normalize(state, obs, config), config)


def policy(state: SACState, *, config: SACConfig) -> ActFn:
    """Returns the stochastic policy, a function `(key, obs)` to an action.

    It is a pytree, so that `jit` and `vmap` take it as an argument.
    """
    # The config is bound as data: agents that differ in numbers share a program.
    return jax.tree_util.Partial(_act, state, config=config)


def value_fn(state: SACState, *, config: SACConfig) -> ValueFn:
    """Returns the value function of an agent, from its critics and target critics.

        V_k(s) = Q_k(s, pi(s)),  k = 1..K,  pi(s) the policy's mean action

    as in the paper's code, without the entropy bonus. Its gradient is with respect to
    the observation in the units of the data, through the normalization if there is one.

    Args:
      state: the agent. No gradient flows into it.
      config: the agent's config: `value_critics` selects the critics, and
        `value_through_policy` decides whether the action moves with the state when the
        result is differentiated.

    Returns:
      A function of one state `[obs_dim]` to `[K]` values in units of return; K is twice
      the number of critics, or that number for the target critics alone. It is a
      pytree, so that `jit` and `vmap` take it as an argument.
    """
    return jax.tree_util.Partial(_values, jax.lax.stop_gradient(state), config=config)


def update(
    key: jax.Array, state: SACState, batch: Transition, *, config: SACConfig
) -> tuple[SACState, Metrics]:
    """Updates critics, actor, temperature and target critics once.

    Args:
      key: random key.
      state: the agent.
      batch: `[B, ...]` transitions.
      config: the agent's config.

    Returns:
      The agent, and metrics: `sac/critic_loss`, `sac/actor_loss`, `sac/entropy`,
      `sac/temperature`, `sac/q_mean`, and `sac/q_max`, the largest magnitude of a
      critic's value in the batch.
    """
    key, subset = _draw_subset(key, config)
    # One draw takes less time on a CPU than a split and two draws.
    noise_next, noise_now = jax.random.normal(key, (2, *batch.action.shape))
    target = bellman_target(noise_next, state, batch, config=config, subset=subset)
    obs = _normalize(state, batch.obs, config)
    critics, critic_opt, critic_loss, q = _update_critics(
        state, obs, batch.action, target, config
    )
    temperature = jnp.exp(state.log_temperature)
    actor_grad = jax.value_and_grad(partial(_actor_loss, config=config), has_aux=True)
    (actor_loss, log_prob), gradient = actor_grad(
        state.actor, noise_now, critics, temperature, obs
    )
    actor, actor_opt = _descend(
        config.actor_learning_rate, gradient, state.actor_opt, state.actor
    )
    log_temperature, temperature_opt = _update_temperature(
        state, log_prob, batch.action.shape[-1], config
    )
    new_state = state.replace(
        actor=actor,
        critics=critics,
        target_critics=optax.incremental_update(
            critics, state.target_critics, config.target_rate
        ),
        log_temperature=log_temperature,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        temperature_opt=temperature_opt,
    )
    return new_state, {
        "sac/critic_loss": critic_loss,
        "sac/actor_loss": actor_loss,
        "sac/entropy": -jnp.mean(log_prob),
        "sac/temperature": temperature,
        "sac/q_mean": jnp.mean(q),
        "sac/q_max": jnp.max(jnp.abs(q)),
    }


def bellman_target(
    noise: jax.Array,
    state: SACState,
    batch: Transition,
    *,
    config: SACConfig,
    subset: jax.Array | None = None,
) -> jax.Array:
    """Returns the targets of the critics.

        y = r + discount (1 - terminated) [ min_k Q'_k(s', a') - alpha log pi(a'|s') ]

    A truncated transition keeps the value of its successor, because only the recording
    of the episode ended.

    Args:
      noise: `[B, action_dim]`, standard normal noise of the next actions.
      state: the agent.
      batch: `[B, ...]` transitions.
      config: the agent's config.
      subset: int, the target critics of the minimum; None means all.

    Returns:
      `[B]`, in units of return.
    """
    next_obs = _normalize(state, batch.next_obs, config)
    action, log_prob = _sample(noise, *_apply_policy(state.actor, next_obs, config))
    critics = state.target_critics
    if subset is not None:
        critics = jax.tree.map(lambda x: x[subset], critics)
    values = _apply_critics(critics, next_obs, action, config)
    soft = jnp.min(values, axis=0) - jnp.exp(state.log_temperature) * log_prob
    # A selection and no product: a non-finite value must not pass a termination.
    return batch.reward + config.discount * jnp.where(batch.terminated, 0.0, soft)


def tanh_gaussian_log_prob(
    raw: jax.Array, mean: jax.Array, log_std: jax.Array
) -> jax.Array:
    """Returns the log-density of `tanh(raw)` for a diagonal Gaussian `raw`.

    The correction is `log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))`, which stays
    accurate where `1 - tanh(u)^2` underflows.

    Args:
      raw: `[..., action_dim]`, the action before the tanh.
      mean: `[..., action_dim]`.
      log_std: `[..., action_dim]`.

    Returns:
      `[...]`, in nats.
    """
    scaled = (raw - mean) * jnp.exp(-log_std)
    gaussian = -0.5 * jnp.square(scaled) - log_std - 0.5 * jnp.log(2.0 * jnp.pi)
    correction = 2.0 * (jnp.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))
    return jnp.sum(gaussian - correction, axis=-1)


def _normalize(state: SACState, obs: jax.Array, config: SACConfig) -> jax.Array:
    return (obs - state.obs_mean) / state.obs_std if config.normalize_obs else obs


def _draw_subset(key, config: SACConfig) -> tuple[jax.Array, jax.Array | None]:
    """Returns a key for what follows, and the target critics of the minimum."""
    if config.min_critics is None:
        return key, None
    key, key_subset = jax.random.split(key)
    shape = (config.min_critics,)
    return key, jax.random.choice(key_subset, config.num_critics, shape, replace=False)


def _update_critics(state: SACState, obs, action, target, config):
    (loss, q), gradient = jax.value_and_grad(_critic_loss, has_aux=True)(
        state.critics, obs, action, target, config
    )
    critics, critic_opt = _descend(
        config.critic_learning_rate, gradient, state.critic_opt, state.critics
    )
    return critics, critic_opt, loss, q


def _critic_loss(critics, obs, action, target, config):
    """Returns the squared error summed over critics, averaged over the batch."""
    q = _apply_critics(critics, obs, action, config)  # [num_critics, B]
    return jnp.mean(jnp.sum(jnp.square(q - target), axis=0)), q


def _actor_loss(actor, noise, critics, temperature, obs, *, config):
    action, log_prob = _sample(noise, *_apply_policy(actor, obs, config))
    values = _apply_critics(critics, obs, action, config)
    reduce = jnp.min if config.min_critics is None else jnp.mean
    return jnp.mean(temperature * log_prob - reduce(values, axis=0)), log_prob


def _update_temperature(state: SACState, log_prob, action_dim: int, config):
    """Raises the temperature while the entropy is below the target."""
    target_entropy = config.target_entropy
    if target_entropy is None:
        target_entropy = -float(action_dim)
    # The loss is log(alpha) times the excess, so that steps don't scale with alpha.
    gradient = -jnp.mean(log_prob + target_entropy)
    return _descend(
        config.temperature_learning_rate,
        gradient,
        state.temperature_opt,
        state.log_temperature,
    )


def _act(state: SACState, key, obs, *, config: SACConfig) -> jax.Array:
    return act(key, state, obs, config=config)


def _values(state: SACState, obs, *, config: SACConfig) -> jax.Array:
    critics = state.target_critics
    if config.value_critics == "all":
        critics = jax.tree.map(
            lambda *pair: jnp.concatenate(pair), state.critics, critics
        )
    obs = _normalize(state, obs, config)
    action = _mean_action(state.actor, obs, config)
    if not config.value_through_policy:
        action = jax.lax.stop_gradient(action)
    return _apply_critics(critics, obs, action, config)


def _mean_action(actor, obs, config: SACConfig) -> jax.Array:
    return jnp.tanh(_apply_policy(actor, obs, config)[0])


def _descend(
    learning_rate, gradient, opt_state, params: Params
) -> tuple[Params, optax.OptState]:
    updates, opt_state = optax.adam(learning_rate).update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _sample(noise, mean, log_std) -> tuple[jax.Array, jax.Array]:
    """Returns an action and its log-density, differentiable in mean and log_std."""
    raw = mean + jnp.exp(log_std) * noise
    return jnp.tanh(raw), tanh_gaussian_log_prob(raw, mean, log_std)


def _apply_policy(actor, obs, config: SACConfig) -> tuple[jax.Array, jax.Array]:
    # The last bias has two entries per action dimension.
    action_dim = actor["params"]["mlp"][f"Dense_{len(config.hidden)}"]["bias"].size // 2
    # Flax's type has a second case, the variables of modules that change theirs.
    outputs = _policy(config, action_dim).apply(actor, obs)
    return cast(tuple[jax.Array, jax.Array], outputs)


def _apply_critics(critics, obs, action, config: SACConfig) -> jax.Array:
    """Returns the values of K critics, `[K, ...]`."""
    apply = _critic(config).apply
    values = jax.vmap(apply, in_axes=(0, None, None))(critics, obs, action)
    return cast(jax.Array, values)  # as in `_apply_policy`


def _policy(config: SACConfig, action_dim: int) -> networks.Policy:
    return networks.Policy(
        mlp=networks.MLP(
            hidden=config.hidden,
            out_dim=2 * action_dim,
            activation=config.activation,
            layer_norm=config.actor_layer_norm,
            unit_features=config.actor_unit_features,
        )
    )


def _critic(config: SACConfig) -> networks.Critic:
    return networks.Critic(
        mlp=networks.MLP(
            hidden=config.hidden,
            out_dim=1,
            activation=config.activation,
            layer_norm=config.critic_layer_norm,
            unit_features=config.critic_unit_features,
        )
    )
