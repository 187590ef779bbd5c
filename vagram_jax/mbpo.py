"""Model-based policy optimization: the training config, the training state, one epoch.

An epoch fits the dynamics model with the value function frozen, imagines rollouts, and
then steps the environment and updates the agent after each step (MBPO, Janner et al.
2019, arXiv 1906.08253). All functions are pure and for one seed: `vmap` them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import (
    diagnostics,
    divergence,
    dynamics,
    imagine,
    losses,
    replay,
    sac,
    schedules,
    termination,
)
from vagram_jax import fit as fitting
from vagram_jax.config import ConfigError, check_fields, leaf, nested, static
from vagram_jax.dynamics import DynamicsConfig
from vagram_jax.envs import base, episodes
from vagram_jax.fit import DynamicsState, FitConfig
from vagram_jax.imagine import ImagineConfig
from vagram_jax.losses import GradientConfig, WeightConfig
from vagram_jax.replay import ReplayState
from vagram_jax.sac import SACConfig, SACState
from vagram_jax.schedules import Schedule
from vagram_jax.termination import TerminationConfig, TerminationState
from vagram_jax.types import Metrics, TerminationFn, Transition

NO_MODEL = "none"
"""The loss name for plain SAC on real data, without a dynamics model."""


@struct.dataclass(kw_only=True)
class MBPOConfig:
    """Config of the algorithm: loss, batches and buffers, and configs of its parts.

    Attributes:
      loss: name of the model loss, `"path.module:name"` of one of the user's own, or
        "none" for plain SAC without a model.
      dynamics: size and kind of the ensemble.
      gradients: how value gradients are taken.
      weights: how the loss weights its errors.
      fit: how the model is fitted.
      termination: the classifier, used if `imagine.termination` is "learned".
      imagine: length and number of imagined rollouts.
      sac: the agent.
      batch_size: rows of an agent's batch.
      updates_per_step: agent updates after each environment step.
      steps_per_epoch: environment steps between two fits of the model.
      warmup_steps: uniformly random steps before the first fit, at least 2 unless the
        run starts from data.
      real_fraction: share of real rows in the agent's batches.
      replay_capacity: number of real transitions that are kept.
      divergence_slack: a seed counts as diverged when the value of a critic exceeds
        this many times the bound that rewards, initial temperature and discount give.
    """

    loss: str = static("vagram", known=losses.LOSSES)
    dynamics: DynamicsConfig = nested(DynamicsConfig)
    gradients: GradientConfig = nested(GradientConfig)
    weights: WeightConfig = nested(WeightConfig)
    fit: FitConfig = nested(FitConfig)
    termination: TerminationConfig = nested(TerminationConfig)
    imagine: ImagineConfig = nested(ImagineConfig)
    sac: SACConfig = nested(SACConfig)
    batch_size: int = static(256, low=1)
    updates_per_step: int = static(20, low=1)
    steps_per_epoch: int = static(250, low=1)
    warmup_steps: int = static(1000, low=0)
    real_fraction: Schedule = leaf(schedules.constant(0.05), low=0.0, high=1.0)
    replay_capacity: int = static(100_000, low=2)
    divergence_slack: float = leaf(10.0, above=0.0)


@struct.dataclass(kw_only=True)
class MBPOState:
    """Everything that the training of one seed needs to continue.

    Attributes:
      key: random key for everything that is still to be drawn.
      env_steps: int32 scalar, environment steps so far.
      episode: state of the environment.
      replay: real transitions.
      imagined: imagined transitions.
      dynamics: the ensemble.
      termination: the learned termination classifier, or None.
      agent: the agent.
      alive: bool scalar; False once the seed has diverged, which freezes its state.
      diverged_at: int32 scalar, the step of the divergence, -1 while alive.
      diverged_by: int32 scalar, an index of `divergence.CAUSES`.
      dropped: int32 scalar, transitions left out because a number wasn't finite.
    """

    key: jax.Array  # []
    env_steps: jax.Array  # []
    episode: episodes.EpisodeState
    replay: ReplayState
    imagined: ReplayState
    dynamics: DynamicsState
    termination: TerminationState | None
    agent: SACState
    alive: jax.Array  # []
    diverged_at: jax.Array  # []
    diverged_by: jax.Array  # []
    dropped: jax.Array  # []


@struct.dataclass(kw_only=True)
class Fitted:
    """Result of the first half of an epoch, input of the second.

    Attributes:
      key: random key of the state after the epoch.
      key_imagine: key for the rollouts.
      key_interact: key for the environment steps and the agent's updates.
      dynamics: the fitted ensemble.
      termination: the fitted classifier, or None.
    """

    key: jax.Array  # []
    key_imagine: jax.Array  # []
    key_interact: jax.Array  # []
    dynamics: DynamicsState
    termination: TerminationState | None


def check(config: MBPOConfig, env: base.Env, *, num_rows: int = 0) -> MBPOConfig:
    """Returns the config with "auto" settings resolved, or refuses it.

    `num_rows` is the number of transitions that the buffer begins with.

    Raises:
      ConfigError: a value out of range, an unknown loss, a setting that the loss
        doesn't read, a model head that it can't use, more elites than members, a buffer
        smaller than the warm-up, or no termination function where imagination needs
        one.
    """
    check_fields(config)
    way = termination.check_way(
        config.imagine.termination, env, has_model=config.loss != NO_MODEL
    )
    config = config.replace(imagine=config.imagine.replace(termination=way))
    dynamics.check(config.dynamics)
    sac.check(config.sac)
    if config.warmup_steps + num_rows < 2:
        raise ConfigError(
            f"config: warmup_steps={config.warmup_steps}; at least 2 without data to "
            "start from"
        )
    if config.warmup_steps > config.replay_capacity:
        raise ConfigError(
            f"config: replay_capacity={config.replay_capacity}; at least warmup_steps="
            f"{config.warmup_steps}"
        )
    if config.loss == NO_MODEL:
        if schedules.bounds(config.real_fraction)[0] < 1.0:
            raise ConfigError(
                f"config: real_fraction={schedules.to_plain(config.real_fraction)}; "
                "without a model (loss=none) only 1 is possible; set real_fraction=1"
            )
        return config
    head = fitting.check_loss(
        config.loss,
        dynamics_config=config.dynamics,
        gradients=config.gradients,
        weights=config.weights,
        also=(NO_MODEL,),
    )
    return config.replace(dynamics=head)


def init(key: jax.Array, *, env: base.Env, config: MBPOConfig) -> MBPOState:
    """Returns the state before the first step.

    Args:
      key: random key of the seed.
      env: the environment.
      config: a config that `check` returned, as for all functions below.
    """
    key, key_env, key_model, key_agent = jax.random.split(key, 4)
    sizes = {"obs_dim": env.observation_size, "action_dim": env.action_size}
    classifier = None
    if config.imagine.termination == "learned" and config.loss != NO_MODEL:
        key_model, key_classifier = jax.random.split(key_model)
        classifier = termination.init(
            key_classifier, **sizes, config=config.termination
        )
    return MBPOState(
        key=key,
        env_steps=jnp.int32(0),
        episode=episodes.reset(key_env, env=env),
        replay=replay.init(**sizes, capacity=config.replay_capacity),
        imagined=replay.init(**sizes, capacity=_imagined_capacity(config)),
        dynamics=fitting.init(
            key_model, **sizes, dynamics_config=config.dynamics, config=config.fit
        ),
        termination=classifier,
        agent=sac.init(key_agent, **sizes, config=config.sac),
        alive=jnp.bool_(True),
        diverged_at=jnp.int32(-1),
        diverged_by=jnp.int32(0),
        dropped=jnp.int32(0),
    )


def add_data(state: MBPOState, data: Transition) -> MBPOState:
    """Returns the state with transitions `[B, ...]` in its buffer, before `warm_up`."""
    valid = jnp.ones(data.reward.shape, bool)
    return state.replace(replay=replay.add(state.replay, data, valid))


def warm_up(state: MBPOState, *, env: base.Env, config: MBPOConfig) -> MBPOState:
    """Returns the state after `config.warmup_steps` uniformly random steps."""

    def step(state, key):
        key_act, key_env = jax.random.split(key)
        action = jax.random.uniform(
            key_act, (env.action_size,), minval=-1.0, maxval=1.0
        )
        return observe(key_env, state, action, env=env), None

    key, key_steps = jax.random.split(state.key)
    keys = jax.random.split(key_steps, config.warmup_steps)
    state = jax.lax.scan(step, state.replace(key=key), keys)[0]
    return fit_normalizer(state, config=config)


def fit_normalizer(state: MBPOState, *, config: MBPOConfig) -> MBPOState:
    """Returns the state whose agent normalizes by the observations in the buffer."""
    valid = jnp.arange(state.replay.capacity) < state.replay.size
    agent = sac.fit_normalizer(
        state.agent, state.replay.data.obs, valid, config=config.sac
    )
    return state.replace(agent=agent)


def fit_model(state: MBPOState, *, config: MBPOConfig) -> tuple[Fitted, Metrics]:
    """First half of an epoch: fits the model, with the value function frozen.

    Returns:
      The fitted model, and the metrics of `fit.fit` and `termination.fit`.
    """
    key, key_fit, key_imagine, key_interact = jax.random.split(state.key, 4)
    fitted = Fitted(
        key=key,
        key_imagine=key_imagine,
        key_interact=key_interact,
        dynamics=state.dynamics,
        termination=state.termination,
    )
    if config.loss == NO_MODEL:
        return fitted, {}
    metrics = {}
    if state.termination is not None:
        key_fit, key_classifier = jax.random.split(key_fit)
        classifier, metrics = termination.fit(
            key_classifier, state.termination, state.replay, config=config.termination
        )
        fitted = fitted.replace(termination=classifier)
    model, model_metrics = fitting.fit(
        key_fit,
        state.dynamics,
        state.replay,
        sac.value_fn(state.agent, config=config.sac),
        loss=losses.bind(
            losses.get(config.loss),
            gradients=config.gradients,
            weights=losses.resolve(config.weights, state.env_steps),
            discount=config.sac.discount,
        ),
        config=config.fit,
    )
    return fitted.replace(dynamics=model), model_metrics | metrics


def improve_policy(
    state: MBPOState,
    fitted: Fitted,
    *,
    env: base.Env,
    config: MBPOConfig,
    offline: bool = False,
) -> tuple[MBPOState, Metrics]:
    """Second half of an epoch: imagines, and steps the environment while learning.

    It is independent of the loss, so that all losses share one compiled program.

    Args:
      state: the state that `fit_model` was given.
      fitted: the result of `fit_model`.
      env: the environment.
      config: the algorithm.
      offline: as for `interact`.

    Returns:
      The state and metrics, as `epoch`.
    """
    new, metrics = fit_normalizer(state, config=config).replace(key=fitted.key), {}
    if config.loss != NO_MODEL:
        new = new.replace(dynamics=fitted.dynamics, termination=fitted.termination)
        new, metrics = add_imagined(fitted.key_imagine, new, env=env, config=config)
    new, agent_metrics = interact(
        fitted.key_interact, new, env=env, config=config, offline=offline
    )
    metrics |= agent_metrics
    if config.loss != NO_MODEL and not offline:
        metrics |= _errors_on_new(new, env=env, config=config)
    new = divergence.freeze_if_diverged(
        state, new, metrics, config=config, has_model=config.loss != NO_MODEL
    )
    return new, metrics


def epoch(
    state: MBPOState,
    *,
    env: base.Env,
    config: MBPOConfig,
    fit_model: Callable[..., tuple[Fitted, Metrics]] = fit_model,
    improve_policy: Callable[..., tuple[MBPOState, Metrics]] = improve_policy,
) -> tuple[MBPOState, Metrics]:
    """Runs one epoch: fits the model, imagines, and steps the environment.

    Args:
      state: the state after `warm_up` or the last epoch.
      env: the environment.
      config: the algorithm.
      fit_model: the first half, by default `fit_model`; a caller that compiles the
        halves on their own passes the compiled ones.
      improve_policy: the second half, by default `improve_policy`.

    Returns:
      The state after `config.steps_per_epoch` environment steps, and metrics. A seed
      that diverges keeps the state before the epoch.
    """
    fitted, model_metrics = fit_model(state, config=config)
    state, metrics = improve_policy(state, fitted, env=env, config=config)
    return state, model_metrics | metrics


def add_imagined(
    key: jax.Array, state: MBPOState, *, env: base.Env, config: MBPOConfig
) -> tuple[MBPOState, Metrics]:
    """Adds the imagined transitions of one epoch to the buffer.

    Returns:
      The state, and metrics: `model/horizon`, `model/valid` (share of rows that were
      kept) and `model/terminated` (share of those that terminated).
    """
    key_start, key_rollout = jax.random.split(key)
    horizon = schedules.value(config.imagine.horizon, state.env_steps)
    horizon = jnp.round(horizon).astype(jnp.int32)
    starts = replay.sample(key_start, state.replay, (_rollouts_per_epoch(config),))
    rollouts, valid = imagine.imagine(
        key_rollout,
        state.dynamics.params,
        state.dynamics.elites,
        starts.obs,
        act=sac.policy(state.agent, config=config.sac),
        termination=_termination_fn(env, state, config),
        horizon=horizon,
        config=config.imagine,
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
    config: MBPOConfig,
    offline: bool = False,
) -> tuple[MBPOState, Metrics]:
    """Steps the environment for one epoch, and updates the agent after each step.

    If `offline`, a step is counted but not taken, so that the buffer stays as it is.

    Returns:
      The state and the agent's metrics: means over the epoch, but for `sac/q_max`,
      which is the maximum.
    """

    def step(state, key):
        key_act, key_env, key_sample, key_update = jax.random.split(key, 4)
        if offline:
            state = state.replace(env_steps=state.env_steps + 1)
        else:
            obs = state.episode.env_state.obs
            action = sac.act(key_act, state.agent, obs, config=config.sac)
            state = observe(key_env, state, action, env=env)
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
    key: jax.Array, state: MBPOState, action: jax.Array, *, env: base.Env
) -> MBPOState:
    """Steps the environment once, and stores the transition if it is finite.

    Args:
      key: random key, used if an episode ends.
      state: the training state.
      action: `[action_dim]`, each in [-1, 1].
      env: the environment.
    """
    episode, transition, valid = episodes.step(
        key, state.episode, action, env=env, episode_length=episodes.length(env)
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
    """Draws the agent's batches for one environment step, part real, part imagined.

    Returns:
      `[updates_per_step, batch_size, ...]` transitions. The first rows of each batch
      are real; all of them are while the imagined buffer is empty.
    """
    key_real, key_imagined = jax.random.split(key)
    shape = (config.updates_per_step, config.batch_size)
    real = replay.sample(key_real, state.replay, shape)
    if config.loss == NO_MODEL:
        return real
    fraction = schedules.value(config.real_fraction, state.env_steps)
    fraction = jnp.where(state.imagined.size > 0, fraction, 1.0)
    is_real = jnp.arange(config.batch_size) < jnp.round(fraction * config.batch_size)
    imagined = replay.sample(key_imagined, state.imagined, shape)
    return jax.tree.map(
        lambda x, y: jnp.where(is_real.reshape(-1, *[1] * (x.ndim - 2)), x, y),
        real,
        imagined,
    )


def _errors_on_new(state: MBPOState, *, env: base.Env, config: MBPOConfig) -> Metrics:
    """Measures the model on the transitions of the epoch that has just ended."""
    age = 1 + jnp.arange(min(config.steps_per_epoch, state.replay.capacity))
    rows = (state.replay.insert_at - age) % state.replay.capacity
    return diagnostics.errors_on_new(
        state.dynamics.params,
        replay.take(state.replay.data, rows),
        age <= state.replay.size,
        sac.value_fn(state.agent, config=config.sac),
        _termination_fn(env, state, config),
    )


def _termination_fn(
    env: base.Env, state: MBPOState, config: MBPOConfig
) -> TerminationFn:
    way, classifier = config.imagine.termination, state.termination
    return termination.choose(way, env, classifier, config=config.termination)


def _rollouts_per_epoch(config: MBPOConfig) -> int:
    return config.imagine.rollouts_per_step * config.steps_per_epoch


def _imagined_capacity(config: MBPOConfig) -> int:
    if config.loss == NO_MODEL:
        return 1
    horizon = imagine.max_horizon(config.imagine)
    return _rollouts_per_epoch(config) * horizon * config.imagine.keep_epochs
