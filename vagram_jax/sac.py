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

from vagram_jax import networks
from vagram_jax.config import leaf, static
from vagram_jax.types import ActFn, Metrics, Params, Transition, ValueFn

_NUM_CRITICS = 2


@struct.dataclass(kw_only=True)
class SACConfig:
    """Networks and learning rates of the agent.

    Attributes:
      hidden: widths of the hidden layers of actor and critics.
      activation: a name in `networks.ACTIVATIONS`.
      unit_features: scale the features before the last layer of actor and critics to
        norm one.
      actor_learning_rate: learning rate of Adam.
      critic_learning_rate: learning rate of Adam.
      temperature_learning_rate: learning rate of Adam, for the logarithm of the
        temperature.
      initial_temperature: temperature of the entropy bonus at the start; it is learned.
      target_entropy: target of the policy's entropy, in nats; None means minus the
        size of an action.
      discount: discount factor per step.
      target_rate: step size of the target critics' moving average.
      value_critics: the critics that `value_fn` returns: "all" (two critics and two
        targets), or only the two "target" critics.
      value_through_policy: differentiate `value_fn` through the policy's action, that
        is V(s) = Q(s, pi(s)); otherwise the action is held constant, as in the paper's
        code.
    """

    hidden: tuple[int, ...] = static((256, 256), low=1)
    activation: str = static("relu", choices=tuple(networks.ACTIVATIONS))
    unit_features: bool = static(False)
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
      critics: parameters of the twin critics, `[2, ...]` each.
      target_critics: moving averages of the critics.
      log_temperature: scalar.
      actor_opt: optimizer state of the actor.
      critic_opt: optimizer state of the critics.
      temperature_opt: optimizer state of the temperature.
    """

    actor: Params
    critics: Params  # [2, ...]
    target_critics: Params  # [2, ...]
    log_temperature: jax.Array  # []
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    temperature_opt: optax.OptState


def init(
    key: jax.Array, *, obs_dim: int, action_dim: int, config: SACConfig
) -> SACState:
    """Returns a new agent, whose target critics equal its critics."""
    key_actor, key_critics = jax.random.split(key)
    obs, action = jnp.zeros(obs_dim), jnp.zeros(action_dim)
    actor = _policy(config, action_dim).init(key_actor, obs)
    critics = jax.vmap(_critic(config).init, in_axes=(0, None, None))(
        jax.random.split(key_critics, _NUM_CRITICS), obs, action
    )
    log_temperature = jnp.log(jnp.float32(config.initial_temperature))
    return SACState(
        actor=actor,
        critics=critics,
        # A copy, so that a caller may donate the state's buffers.
        target_critics=jax.tree.map(jnp.copy, critics),
        log_temperature=log_temperature,
        actor_opt=optax.adam(config.actor_learning_rate).init(actor),
        critic_opt=optax.adam(config.critic_learning_rate).init(critics),
        temperature_opt=optax.adam(config.temperature_learning_rate).init(
            log_temperature
        ),
    )


def act(
    key: jax.Array, actor: Params, obs: jax.Array, *, config: SACConfig
) -> jax.Array:
    """Samples an action of the policy.

    Args:
      key: random key.
      actor: parameters of the policy.
      obs: `[..., obs_dim]`.
      config: the agent's config.

    Returns:
      `[..., action_dim]`, each in (-1, 1).
    """
    mean, log_std = _apply_policy(actor, obs, config)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return _sample(noise, mean, log_std)[0]


def act_mean(actor: Params, obs: jax.Array, *, config: SACConfig) -> jax.Array:
    """Returns the policy's mean action, the tanh of the Gaussian's mean.

    Args:
      actor: parameters of the policy.
      obs: `[..., obs_dim]`.
      config: the agent's config.

    Returns:
      `[..., action_dim]`, each in (-1, 1).
    """
    return jnp.tanh(_apply_policy(actor, obs, config)[0])


def policy(state: SACState, *, config: SACConfig) -> ActFn:
    """Returns the stochastic policy, a function `(key, obs)` to an action.

    It is a pytree, so that `jit` and `vmap` take it as an argument.
    """
    # The config is bound as data: agents that differ in numbers share a program.
    return jax.tree_util.Partial(_act, state.actor, config=config)


def value_fn(state: SACState, *, config: SACConfig) -> ValueFn:
    """Returns the value function of an agent, from its critics and target critics.

        V_k(s) = Q_k(s, pi(s)),  k = 1..4,  pi(s) the policy's mean action

    as in the paper's code, without the entropy bonus.

    Args:
      state: the agent. No gradient flows into it.
      config: the agent's config: `value_critics` selects the critics, and
        `value_through_policy` decides whether the action moves with the state when the
        result is differentiated.

    Returns:
      A function of one state `[obs_dim]` to `[4]` or `[2]` values, in units of return.
      It is a pytree, so that `jit` and `vmap` take it as an argument.
    """
    critics = state.target_critics
    if config.value_critics == "all":
        critics = jax.tree.map(
            lambda *pair: jnp.concatenate(pair), state.critics, critics
        )
    frozen = jax.lax.stop_gradient((state.actor, critics))
    return jax.tree_util.Partial(_values, *frozen, config=config)


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
    # One draw takes less time on a CPU than a split and two draws.
    noise_next, noise_now = jax.random.normal(key, (2, *batch.action.shape))
    target = bellman_target(noise_next, state, batch, config=config)
    critics, critic_opt, critic_loss, q = _update_critics(state, batch, target, config)
    temperature = jnp.exp(state.log_temperature)
    actor_grad = jax.value_and_grad(partial(_actor_loss, config=config), has_aux=True)
    (actor_loss, log_prob), gradient = actor_grad(
        state.actor, noise_now, critics, temperature, batch.obs
    )
    actor, actor_opt = _descend(
        config.actor_learning_rate, gradient, state.actor_opt, state.actor
    )
    log_temperature, temperature_opt = _update_temperature(
        state, log_prob, batch.action.shape[-1], config
    )
    new_state = SACState(
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
    noise: jax.Array, state: SACState, batch: Transition, *, config: SACConfig
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

    Returns:
      `[B]`, in units of return.
    """
    action, log_prob = _sample(
        noise, *_apply_policy(state.actor, batch.next_obs, config)
    )
    values = _apply_critics(state.target_critics, batch.next_obs, action, config)
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


def _update_critics(state: SACState, batch, target, config):
    (loss, q), gradient = jax.value_and_grad(_critic_loss, has_aux=True)(
        state.critics, batch, target, config
    )
    critics, critic_opt = _descend(
        config.critic_learning_rate, gradient, state.critic_opt, state.critics
    )
    return critics, critic_opt, loss, q


def _critic_loss(critics, batch, target, config):
    """Returns the squared error summed over critics, averaged over the batch."""
    q = _apply_critics(critics, batch.obs, batch.action, config)  # [2, B]
    return jnp.mean(jnp.sum(jnp.square(q - target), axis=0)), q


def _actor_loss(actor, noise, critics, temperature, obs, *, config):
    action, log_prob = _sample(noise, *_apply_policy(actor, obs, config))
    q = jnp.min(_apply_critics(critics, obs, action, config), axis=0)
    return jnp.mean(temperature * log_prob - q), log_prob


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


def _act(actor, key, obs, *, config: SACConfig) -> jax.Array:
    return act(key, actor, obs, config=config)


def _values(actor, critics, state, *, config: SACConfig) -> jax.Array:
    action = act_mean(actor, state, config=config)
    if not config.value_through_policy:
        action = jax.lax.stop_gradient(action)
    return _apply_critics(critics, state, action, config)


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
    return networks.Policy(mlp=_mlp(config, 2 * action_dim))


def _critic(config: SACConfig) -> networks.Critic:
    return networks.Critic(mlp=_mlp(config, 1))


def _mlp(config: SACConfig, out_dim: int) -> networks.MLP:
    return networks.MLP(
        hidden=config.hidden,
        out_dim=out_dim,
        activation=config.activation,
        unit_features=config.unit_features,
    )
