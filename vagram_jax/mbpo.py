"""The training loop: from one training state to the next, in one pure function.

Comes in: a state, an environment, a config. Goes out: the state one epoch later. An
epoch fits the model with the value function frozen, imagines, and then steps the
environment, updating the agent after each step (MBPO, Janner et al. 2019,
arXiv 1906.08253). Nothing here knows of seeds: `vmap` the functions.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import fit as model_fit
from vagram_jax import imagine, losses, replay, sac, termination, training
from vagram_jax.envs import base, episodes
from vagram_jax.fit import DynamicsState
from vagram_jax.termination import TerminationState
from vagram_jax.training import NO_MODEL, MBPOConfig, MBPOState
from vagram_jax.types import Metrics, TerminationFn, Transition


@struct.dataclass(kw_only=True)
class Fitted:
    """What the first half of an epoch leaves for the second.

    Attributes:
      key: of what is to be drawn after the epoch.
      key_imagine: used once, to imagine.
      key_interact: used once, for the environment's steps and the agent's updates.
      dynamics: the ensemble.
      termination: which steps end, if that is learned, else None.
    """

    key: jax.Array  # []
    key_imagine: jax.Array  # []
    key_interact: jax.Array  # []
    dynamics: DynamicsState
    termination: TerminationState | None


def warm_up(
    state: MBPOState, *, env: base.Env, episode_length: int, config: MBPOConfig
) -> MBPOState:
    """The state after `config.warmup_steps` uniformly random steps.

    Args:
      state: as `training.init` returned it.
      env: the environment.
      episode_length: steps until an episode is truncated.
      config: what `training.check` returned.

    Returns:
      The state, with the steps in its buffer.
    """

    def step(state, key):
        key_act, key_env = jax.random.split(key)
        action = jax.random.uniform(
            key_act, (env.action_size,), minval=-1.0, maxval=1.0
        )
        return observe(key_env, state, action, env, episode_length), None

    key, key_steps = jax.random.split(state.key)
    keys = jax.random.split(key_steps, config.warmup_steps)
    return jax.lax.scan(step, state.replace(key=key), keys)[0]


def epoch(
    state: MBPOState, *, env: base.Env, episode_length: int, config: MBPOConfig
) -> tuple[MBPOState, Metrics]:
    """One epoch: fit the model, imagine, and step the environment while learning.

    Args:
      state: as `warm_up` or the last epoch returned it.
      env: the environment.
      episode_length: steps until an episode is truncated.
      config: what `training.check` returned.

    Returns:
      The state after `config.steps_per_epoch` environment steps, and metrics. A seed
      that diverges is frozen as it was before the epoch.
    """
    fitted, model_metrics = learn_model(state, config=config)
    state, metrics = learn_policy(
        state, fitted, env=env, episode_length=episode_length, config=config
    )
    return state, model_metrics | metrics


def learn_model(state: MBPOState, *, config: MBPOConfig) -> tuple[Fitted, Metrics]:
    """The first half of an epoch: fit the model, with the value function frozen.

    Args:
      state: as `warm_up` or the last epoch returned it.
      config: what `training.check` returned.

    Returns:
      What `learn_policy` takes, and metrics.
    """
    key, key_fit, key_imagine, key_interact = jax.random.split(state.key, 4)
    metrics = {}
    if config.loss != NO_MODEL:
        state, metrics = fit(key_fit, state, config=config)
    fitted = Fitted(
        key=key,
        key_imagine=key_imagine,
        key_interact=key_interact,
        dynamics=state.dynamics,
        termination=state.termination,
    )
    return fitted, metrics


def learn_policy(
    state: MBPOState,
    fitted: Fitted,
    *,
    env: base.Env,
    episode_length: int,
    config: MBPOConfig,
) -> tuple[MBPOState, Metrics]:
    """The second half: imagine, and step the environment while learning.

    It reads whether there is a model, not by which loss it was fitted: losses that are
    compared share this program.

    Args:
      state: the one that `learn_model` was given.
      fitted: what it returned.
      env: the environment.
      episode_length: steps until an episode is truncated.
      config: what `training.check` returned.

    Returns:
      As `epoch`.
    """
    new, metrics = state.replace(key=fitted.key), {}
    if config.loss != NO_MODEL:
        new = new.replace(dynamics=fitted.dynamics, termination=fitted.termination)
        new, metrics = add_imagined(fitted.key_imagine, new, env=env, config=config)
    new, more = interact(
        fitted.key_interact,
        new,
        env=env,
        episode_length=episode_length,
        config=config,
    )
    metrics |= more
    return freeze_if_diverged(state, new, metrics, config=config), metrics


def fit(
    key: jax.Array, state: MBPOState, *, config: MBPOConfig
) -> tuple[MBPOState, Metrics]:
    """The state with the model fitted to the real data, for the current value function.

    Args:
      key: used once.
      state: the state.
      config: what `training.check` returned.

    Returns:
      The state and the metrics of `fit.fit`, and those of `termination.fit` if
      termination is learned.
    """
    head, head_metrics = state.termination, {}
    if head is not None:
        key, key_head = jax.random.split(key)
        head, head_metrics = termination.fit(
            key_head, head, state.replay, config=config.termination
        )
    weights = config.weights
    mixes = state.env_steps < weights.mse_steps
    model, metrics = model_fit.fit(
        key,
        state.dynamics,
        state.replay,
        sac.value_fn(state.agent, config=config.sac),
        loss=losses.get(config.loss),
        weight_config=weights.replace(
            mse_coef=jnp.where(mixes, weights.mse_coef, 0.0),
            gradient_share=(
                imagine.scheduled(weights.gradient_share, state.env_steps),
            ),
            discount=weights.discount or (config.sac.discount,),
        ),
        config=config.fit,
    )
    return state.replace(dynamics=model, termination=head), metrics | head_metrics


def add_imagined(
    key: jax.Array, state: MBPOState, *, env: base.Env, config: MBPOConfig
) -> tuple[MBPOState, Metrics]:
    """The state with an epoch's worth of imagined transitions added.

    Args:
      key: used once.
      state: the state.
      env: the environment, for its termination function.
      config: what `training.check` returned.

    Returns:
      The state, and metrics: `model/horizon`, `model/valid` (the share of rows that
      were kept) and `model/terminated`.
    """
    key_start, key_rollout = jax.random.split(key)
    horizon = imagine.scheduled(config.imagine.horizon, state.env_steps)
    horizon = jnp.round(horizon).astype(jnp.int32)
    starts = replay.sample(
        key_start, state.replay, (training.rollouts_per_epoch(config),)
    )
    rollouts, valid = imagine.imagine(
        key_rollout,
        state.dynamics.params,
        state.dynamics.elites,
        starts.obs,
        act=sac.policy(state.agent, config=config.sac),
        termination=_termination(env, state, config),
        horizon=horizon,
        max_horizon=imagine.max_horizon(config.imagine),
    )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollouts)
    imagined = replay.add(state.imagined, flat, valid.reshape(-1))
    return state.replace(imagined=imagined), {
        "model/horizon": horizon,
        "model/valid": jnp.mean(valid),
        "model/terminated": jnp.mean(rollouts.terminated, where=valid),
    }


def interact(
    key: jax.Array,
    state: MBPOState,
    *,
    env: base.Env,
    episode_length: int,
    config: MBPOConfig,
) -> tuple[MBPOState, Metrics]:
    """An epoch's environment steps, each followed by updates of the agent.

    Args:
      key: used once.
      state: the state.
      env: the environment.
      episode_length: steps until an episode is truncated.
      config: what `training.check` returned.

    Returns:
      The state and the agent's metrics, means over the epoch; `sac/q_max` is its
      maximum.
    """

    def step(state, key):
        key_act, key_env, key_sample, key_update = jax.random.split(key, 4)
        obs = state.episode.env_state.obs
        action = sac.act(key_act, state.agent.actor, obs, config=config.sac)
        state = observe(key_env, state, action, env, episode_length)
        batches = mixed_batches(key_sample, state, config=config)
        keys = jax.random.split(key_update, config.updates_per_step)
        agent, metrics = jax.lax.scan(
            lambda agent, x: sac.update(x[0], agent, x[1], config=config.sac),
            state.agent,
            (keys, batches),
        )
        return state.replace(agent=agent), metrics

    keys = jax.random.split(key, config.steps_per_epoch)
    state, history = jax.lax.scan(step, state, keys)
    metrics = jax.tree.map(jnp.mean, history)
    return state, metrics | {"sac/q_max": jnp.max(history["sac/q_max"])}


def observe(
    key: jax.Array, state: MBPOState, action: jax.Array, env: base.Env, length: int
) -> MBPOState:
    """The state after one environment step, which is stored if it is finite.

    Args:
      key: used once, if an episode ends.
      state: the state.
      action: `[action_dim]`.
      env: the environment.
      length: steps until an episode is truncated.

    Returns:
      The state.
    """
    episode, transition, valid = episodes.step(
        key, state.episode, action, env=env, episode_length=length
    )
    one_row = jax.tree.map(lambda x: x[None], transition)
    return state.replace(
        episode=episode,
        replay=replay.add(state.replay, one_row, valid[None]),
        env_steps=state.env_steps + 1,
        dropped=state.dropped + ~valid,
    )


def mixed_batches(
    key: jax.Array, state: MBPOState, *, config: MBPOConfig
) -> Transition:
    """The agent's batches for one environment step: part real, part imagined.

    Args:
      key: used once.
      state: the state.
      config: what `training.check` returned.

    Returns:
      `[updates_per_step, batch_size, ...]`; the first rows of each batch are real, all
      of them while nothing is imagined.
    """
    key_real, key_imagined = jax.random.split(key)
    shape = (config.updates_per_step, config.batch_size)
    real = replay.sample(key_real, state.replay, shape)
    if config.loss == NO_MODEL:
        return real
    fraction = imagine.scheduled(config.real_fraction, state.env_steps)
    fraction = jnp.where(state.imagined.size > 0, fraction, 1.0)
    is_real = jnp.arange(config.batch_size) < jnp.round(fraction * config.batch_size)
    imagined = replay.sample(key_imagined, state.imagined, shape)
    return jax.tree.map(
        lambda x, y: jnp.where(is_real.reshape(-1, *[1] * (x.ndim - 2)), x, y),
        real,
        imagined,
    )


def freeze_if_diverged(
    old: MBPOState, new: MBPOState, metrics: Metrics, *, config: MBPOConfig
) -> MBPOState:
    """The new state of a healthy seed, the old one of a seed that has diverged.

    A seed has diverged when a parameter isn't finite, or a critic's value is beyond
    `divergence_slack (max |r| + alpha_0 action_dim) / (1 - discount)`, with the initial
    temperature: a temperature that runs away takes the values with it, and is found
    out. Selecting keeps NaN out of every other seed; nothing is summed over seeds.

    Args:
      old: before the epoch.
      new: after it.
      metrics: of the epoch.
      config: what `training.check` returned.

    Returns:
      The state to go on from.
    """
    learned = (new.agent, new.dynamics.params.network, new.termination)
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(learned)]
    reward = jnp.max(jnp.abs(new.replay.data.reward))
    bonus = config.sac.initial_temperature * new.replay.data.action.shape[-1]
    bound = config.divergence_slack * (reward + bonus)
    within = metrics["sac/q_max"] * (1.0 - config.sac.discount) <= bound
    healthy = jnp.all(jnp.stack(finite)) & within
    go_on = old.alive & healthy
    state = jax.tree.map(partial(episodes.choose, go_on), new, old)
    return state.replace(
        alive=go_on,
        diverged_at=jnp.where(
            old.alive & ~healthy, new.env_steps, old.diverged_at
        ).astype(jnp.int32),
    )


def _termination(env: base.Env, state: MBPOState, config: MBPOConfig) -> TerminationFn:
    if config.imagine.termination == "none":
        return lambda obs, action, next_obs: jnp.bool_(False)
    if config.imagine.termination == "learned":
        return termination.termination_fn(state.termination, config=config.termination)
    return env.termination
