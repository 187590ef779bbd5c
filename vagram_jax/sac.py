"""Soft actor-critic: how to act, how to learn from a batch, and the value function.

Comes in: batches of transitions, real or imagined. Goes out: a better policy, and
`value_fn`, the plain function of one state that the model losses weight with (Haarnoja
et al. 2018, arXiv 1812.05905).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vagram_jax import networks
from vagram_jax.config import leaf, static
from vagram_jax.types import ActFn, Metrics, Transition, ValueFn

_NUM_CRITICS = 2


@struct.dataclass(kw_only=True)
class SACConfig:
    """Networks and learning rates.

    Attributes:
      hidden: widths of the hidden layers of actor and critics.
      activation: a name in `networks.ACTIVATIONS`.
      unit_features: features of norm one before the last layer, in actor and critics.
      actor_learning_rate: of Adam.
      critic_learning_rate: of Adam.
      temperature_learning_rate: of Adam, on the temperature's logarithm.
      initial_temperature: of the entropy bonus, learned from then on.
      target_entropy: what the policy's entropy is held at, in nats; nothing stands for
        minus the size of an action.
      discount: of the next step's value.
      target_rate: by how much the target critics move to the critics at each update.
      value_critics: whose values `value_fn` gives, "all" four critics', or those of the
        two "target" critics alone.
      value_through_policy: whether `value_fn` differentiates through the policy's
        action too, the gradient of V(s) = Q(s, pi(s)), or holds the action (the paper's
        code does).
    """

    hidden: tuple[int, ...] = static((256, 256), low=1)
    activation: str = static("relu", choices=tuple(networks.ACTIVATIONS))
    unit_features: bool = static(False)
    actor_learning_rate: float = leaf(3e-4, above=0.0)
    critic_learning_rate: float = leaf(3e-4, above=0.0)
    temperature_learning_rate: float = leaf(3e-4, above=0.0)
    initial_temperature: float = leaf(0.1, above=0.0)
    target_entropy: tuple[float, ...] = leaf(())
    discount: float = leaf(0.99, low=0.0, high=1.0)
    target_rate: float = leaf(0.005, above=0.0, high=1.0)
    value_critics: str = static("all", choices=("all", "target"))
    value_through_policy: bool = static(True)


@struct.dataclass(kw_only=True)
class SACState:
    """What the next update goes on from.

    Attributes:
      actor: parameters of the policy.
      critics: parameters of the twin critics, `[2, ...]` each.
      target_critics: their slow copies.
      log_temperature: scalar.
      actor_opt: state of the actor's optimiser.
      critic_opt: state of the critics' optimiser.
      temperature_opt: state of the temperature's optimiser.
    """

    actor: dict
    critics: dict  # [2, ...]
    target_critics: dict  # [2, ...]
    log_temperature: jax.Array  # []
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    temperature_opt: optax.OptState


def init(
    key: jax.Array, *, obs_dim: int, action_dim: int, config: SACConfig
) -> SACState:
    """A new agent.

    Args:
      key: used once.
      obs_dim: size of an observation.
      action_dim: size of an action.
      config: networks and learning rates.

    Returns:
      The agent; its targets equal its critics.
    """
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


def act(key: jax.Array, actor: dict, obs: jax.Array, *, config: SACConfig) -> jax.Array:
    """A random action of the policy.

    Args:
      key: used once.
      actor: parameters of the policy.
      obs: `[..., obs_dim]`.
      config: the agent's.

    Returns:
      `[..., action_dim]`, each in (-1, 1).
    """
    mean, log_std = _apply_policy(actor, obs, config)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return _sample(noise, mean, log_std)[0]


def act_mean(actor: dict, obs: jax.Array, *, config: SACConfig) -> jax.Array:
    """The policy's action without noise: the tanh of the Gaussian's mean.

    Args:
      actor: parameters of the policy.
      obs: `[..., obs_dim]`.
      config: the agent's.

    Returns:
      `[..., action_dim]`, each in (-1, 1).
    """
    return jnp.tanh(_apply_policy(actor, obs, config)[0])


def policy(state: SACState, *, config: SACConfig) -> ActFn:
    """The random policy as a function that `jit` and `vmap` take as data.

    Args:
      state: the agent.
      config: the agent's.

    Returns:
      `(key, obs)` to an action.
    """
    # The config goes in as data: then each agent is a call of the same program.
    return jax.tree_util.Partial(_act, state.actor, config=config)


def value_fn(state: SACState, *, config: SACConfig) -> ValueFn:
    """The values of a state: of both critics and both targets, at the mean action.

        V_k(s) = Q_k(s, pi(s)),  k = 1..4,  pi(s) the policy's mean action

    as the paper's code has it. The entropy bonus is left out.

    Args:
      state: the agent. No gradient flows into it.
      config: the agent's; `value_critics` leaves out the critics, and
        `value_through_policy` says whether the action moves with the state when the
        result is differentiated.

    Returns:
      One state `[obs_dim]` to `[4]`, or `[2]`, in units of return; a pytree, so that
      `jit` and `vmap` take it as data.
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
    """One step of critics, actor, temperature and targets, on one batch.

    Args:
      key: used once.
      state: the agent.
      batch: `[B, ...]` transitions.
      config: the agent's.

    Returns:
      The agent after the step, and metrics: `sac/critic_loss`, `sac/actor_loss`,
      `sac/entropy`, `sac/temperature`, `sac/q_mean` and `sac/q_max`, the largest
      magnitude of a critic's value in the batch.
    """
    # Drawn at once: on a CPU that takes less time than a split and two draws.
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
    """What the critics are trained towards.

        y = r + discount (1 - terminated) [ min_k Q'_k(s', a') - alpha log pi(a'|s') ]

    A truncated transition keeps its value: the episode was cut, the task goes on.

    Args:
      noise: `[B, action_dim]`, standard normal, that the next actions are drawn with.
      state: the agent.
      batch: `[B, ...]` transitions.
      config: the agent's.

    Returns:
      `[B]`, in units of return.
    """
    action, log_prob = _sample(
        noise, *_apply_policy(state.actor, batch.next_obs, config)
    )
    values = _apply_critics(state.target_critics, batch.next_obs, action, config)
    soft = jnp.min(values, axis=0) - jnp.exp(state.log_temperature) * log_prob
    # Selected, not multiplied: a value that isn't finite must not leak past the end.
    return batch.reward + config.discount * jnp.where(batch.terminated, 0.0, soft)


def tanh_gaussian_log_prob(
    raw: jax.Array, mean: jax.Array, log_std: jax.Array
) -> jax.Array:
    """The log-density of `tanh(raw)` where `raw` is a diagonal Gaussian.

    The correction is `log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))`, which keeps
    its digits where `1 - tanh(u)^2` has none.

    Args:
      raw: `[..., action_dim]`, before the tanh.
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
    """The mean over the batch of the critics' summed squared errors."""
    q = _apply_critics(critics, batch.obs, batch.action, config)  # [2, B]
    return jnp.mean(jnp.sum(jnp.square(q - target), axis=0)), q


def _actor_loss(actor, noise, critics, temperature, obs, *, config):
    action, log_prob = _sample(noise, *_apply_policy(actor, obs, config))
    q = jnp.min(_apply_critics(critics, obs, action, config), axis=0)
    return jnp.mean(temperature * log_prob - q), log_prob


def _update_temperature(state: SACState, log_prob, action_dim: int, config):
    """Raises the temperature while the entropy is below its target."""
    target_entropy = (config.target_entropy or (-float(action_dim),))[0]
    # The loss is log(alpha) times the excess, so the step doesn't scale with alpha.
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


def _descend(learning_rate, gradient, opt_state, params):
    updates, opt_state = optax.adam(learning_rate).update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _sample(noise, mean, log_std) -> tuple[jax.Array, jax.Array]:
    """An action and its log-density, differentiable in the Gaussian's parameters."""
    raw = mean + jnp.exp(log_std) * noise
    return jnp.tanh(raw), tanh_gaussian_log_prob(raw, mean, log_std)


def _apply_policy(actor, obs, config: SACConfig) -> tuple[jax.Array, jax.Array]:
    # The last bias has two entries per action dimension.
    action_dim = actor["params"]["mlp"][f"Dense_{len(config.hidden)}"]["bias"].size // 2
    return _policy(config, action_dim).apply(actor, obs)


def _apply_critics(critics, obs, action, config: SACConfig) -> jax.Array:
    """`[K, ...]`, one row per critic."""
    apply = _critic(config).apply
    return jax.vmap(apply, in_axes=(0, None, None))(critics, obs, action)


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
