"""The training loop: everything that training is, in one state and one pure function.

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

from vagram_jax import dynamics, imagine, losses, replay, sac, termination
from vagram_jax import fit as model_fit
from vagram_jax.config import ConfigError, leaf, nested, static
from vagram_jax.dynamics import DynamicsConfig
from vagram_jax.envs import base, episodes
from vagram_jax.fit import FitConfig, ModelState
from vagram_jax.imagine import ImagineConfig
from vagram_jax.replay import ReplayState
from vagram_jax.sac import SACConfig, SACState
from vagram_jax.termination import TerminationConfig, TerminationState
from vagram_jax.types import Metrics, TerminationFn, Transition
from vagram_jax.weights import WeightConfig

NO_MODEL = "none"
"""The loss name that stands for no model at all: plain SAC on real data."""


@struct.dataclass(kw_only=True)
class MBPOConfig:
    """The algorithm.

    Attributes:
      loss: a name in `losses.LOSSES`, or "none" for plain SAC without a model.
      model: size and kind of the ensemble.
      weights: how the loss prepares its weights.
      fit: how the model is fitted.
      termination: how termination is learned, if `imagine.termination` is "learned".
      imagine: how much is imagined.
      sac: the agent.
      batch_size: rows of an agent's batch.
      updates_per_step: updates of the agent after each environment step.
      steps_per_epoch: environment steps between two fits of the model.
      warmup_steps: uniformly random steps before the first fit.
      real_fraction: share of real rows in the agent's batches: one number, or a
        schedule, see `imagine.scheduled`.
      replay_capacity: real transitions that are kept.
      divergence_slack: a seed counts as diverged when a critic's value is so many times
        beyond what rewards, initial temperature and discount allow.
    """

    loss: str = static("vagram")
    model: DynamicsConfig = nested(DynamicsConfig)
    weights: WeightConfig = nested(WeightConfig)
    fit: FitConfig = nested(FitConfig)
    termination: TerminationConfig = nested(TerminationConfig)
    imagine: ImagineConfig = nested(ImagineConfig)
    sac: SACConfig = nested(SACConfig)
    batch_size: int = static(256, low=1)
    updates_per_step: int = static(20, low=1)
    steps_per_epoch: int = static(250, low=1)
    warmup_steps: int = static(1000, low=2)
    real_fraction: tuple[float, ...] = leaf((0.05,), low=0.0)
    replay_capacity: int = static(100_000, low=2)
    divergence_slack: float = leaf(10.0, above=0.0)


@struct.dataclass(kw_only=True)
class MBPOState:
    """All that training needs to go on, of one seed.

    Attributes:
      key: of everything that is still to be drawn.
      env_steps: int32 scalar, environment steps so far.
      episode: the environment's state.
      replay: real transitions.
      imagined: imagined transitions.
      model: the ensemble.
      termination: which steps end, if that is learned, else None.
      agent: the agent.
      alive: bool scalar; a seed that diverged is frozen as it was an epoch before.
      diverged_at: int32 scalar, the step of its divergence, -1 while alive.
      dropped: int32 scalar, transitions left out because a number wasn't finite.
    """

    key: jax.Array  # []
    env_steps: jax.Array  # []
    episode: episodes.EpisodeState
    replay: ReplayState
    imagined: ReplayState
    model: ModelState
    termination: TerminationState | None
    agent: SACState
    alive: jax.Array  # []
    diverged_at: jax.Array  # []
    dropped: jax.Array  # []


def check(config: MBPOConfig, env: base.Env) -> MBPOConfig:
    """The config with "auto" settings resolved, or a refusal.

    Args:
      config: the algorithm.
      env: what it will train on.

    Returns:
      The config that `init`, `warm_up` and `epoch` take.

    Raises:
      ConfigError: an unknown loss, a model head that the loss can't use, more elites
        than members, a schedule that is none, a fraction outside [0, 1], buffers that
        are too small, or no termination function where imagination needs one.
    """
    dynamics.check(config.model)
    imagine.check(config.imagine)
    _check_share("real_fraction", config.real_fraction)
    _check_share("weights.gradient_share", config.weights.gradient_share)
    if config.warmup_steps > config.replay_capacity:
        raise ConfigError(
            f"config: replay_capacity={config.replay_capacity}; at least warmup_steps="
            f"{config.warmup_steps}"
        )
    if config.loss == NO_MODEL:
        if min(config.real_fraction[:2]) < 1.0:
            raise ConfigError(
                f"config: real_fraction={config.real_fraction}; without a model "
                "(loss=none) only 1 is possible; set real_fraction=1"
            )
        return config
    _check_termination(env, config)
    loss = losses.get(config.loss, also=(NO_MODEL,))
    if loss.reads:
        raise ConfigError(
            f"config: loss={config.loss!r}; it reads batch.{loss.reads[0]}, which "
            "training doesn't record; register a loss with a `prepare` that makes it"
        )
    head = "gaussian" if loss.gaussian else "deterministic"
    if loss.gaussian and config.model.head == "deterministic":
        raise ConfigError(
            f"config: model.head='deterministic'; loss={config.loss!r} needs a "
            "variance; set model.head to gaussian or auto"
        )
    if config.model.head == "auto":
        config = config.replace(model=config.model.replace(head=head))
    return config


def init(key: jax.Array, *, env: base.Env, config: MBPOConfig) -> MBPOState:
    """The state before the first step.

    Args:
      key: of the seed.
      env: the environment.
      config: what `check` returned.

    Returns:
      The state.
    """
    key, key_env, key_model, key_agent = jax.random.split(key, 4)
    sizes = {"obs_dim": env.observation_size, "action_dim": env.action_size}
    head = None
    if config.imagine.termination == "learned" and config.loss != NO_MODEL:
        key_model, key_head = jax.random.split(key_model)
        head = termination.init(key_head, **sizes, config=config.termination)
    return MBPOState(
        key=key,
        env_steps=jnp.int32(0),
        episode=episodes.reset(key_env, env=env),
        replay=replay.init(**sizes, capacity=config.replay_capacity),
        imagined=replay.init(**sizes, capacity=_imagined_capacity(config)),
        model=model_fit.init(
            key_model, **sizes, dynamics_config=config.model, config=config.fit
        ),
        termination=head,
        agent=sac.init(key_agent, **sizes, config=config.sac),
        alive=jnp.bool_(True),
        diverged_at=jnp.int32(-1),
        dropped=jnp.int32(0),
    )


def warm_up(
    state: MBPOState, *, env: base.Env, episode_length: int, config: MBPOConfig
) -> MBPOState:
    """The state after `config.warmup_steps` uniformly random steps.

    Args:
      state: as `init` returned it.
      env: the environment.
      episode_length: steps until an episode is truncated.
      config: what `check` returned.

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
      config: what `check` returned.

    Returns:
      The state after `config.steps_per_epoch` environment steps, and metrics. A seed
      that diverges is frozen as it was before the epoch.
    """
    key, key_fit, key_imagine, key_interact = jax.random.split(state.key, 4)
    new_state = state.replace(key=key)
    metrics = {}
    if config.loss != NO_MODEL:
        new_state, fit_metrics = fit(key_fit, new_state, config=config)
        new_state, metrics = add_imagined(
            key_imagine, new_state, env=env, config=config
        )
        metrics |= fit_metrics
    new_state, interact_metrics = interact(
        key_interact, new_state, env=env, episode_length=episode_length, config=config
    )
    metrics |= interact_metrics
    return freeze_if_diverged(state, new_state, metrics, config=config), metrics


def fit(
    key: jax.Array, state: MBPOState, *, config: MBPOConfig
) -> tuple[MBPOState, Metrics]:
    """The state with the model fitted to the real data, for the current value function.

    Args:
      key: used once.
      state: the state.
      config: what `check` returned.

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
        state.model,
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
    return state.replace(model=model, termination=head), metrics | head_metrics


def add_imagined(
    key: jax.Array, state: MBPOState, *, env: base.Env, config: MBPOConfig
) -> tuple[MBPOState, Metrics]:
    """The state with an epoch's worth of imagined transitions added.

    Args:
      key: used once.
      state: the state.
      env: the environment, for its termination function.
      config: what `check` returned.

    Returns:
      The state, and metrics: `imagine/horizon`, `imagine/valid` (the share of rows that
      were kept) and `imagine/terminated`.
    """
    key_start, key_rollout = jax.random.split(key)
    horizon = imagine.scheduled(config.imagine.horizon, state.env_steps)
    horizon = jnp.round(horizon).astype(jnp.int32)
    starts = replay.sample(key_start, state.replay, (_rollouts_per_epoch(config),))
    rollouts, valid = imagine.imagine(
        key_rollout,
        state.model.params,
        state.model.elites,
        starts.obs,
        act=sac.policy(state.agent, config=config.sac),
        termination=_termination(env, state, config),
        horizon=horizon,
        max_horizon=imagine.max_horizon(config.imagine),
    )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollouts)
    imagined = replay.add(state.imagined, flat, valid.reshape(-1))
    return state.replace(imagined=imagined), {
        "imagine/horizon": horizon,
        "imagine/valid": jnp.mean(valid),
        "imagine/terminated": jnp.mean(rollouts.terminated, where=valid),
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
      config: what `check` returned.

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
      config: what `check` returned.

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
      config: what `check` returned.

    Returns:
      The state to go on from.
    """
    learned = (new.agent, new.model.params.network, new.termination)
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


def _check_share(key: str, schedule: tuple[float, ...]) -> None:
    imagine.check_schedule(key, schedule)
    if outside := [value for value in schedule[:2] if not 0.0 <= value <= 1.0]:
        raise ConfigError(
            f"config: {key}={outside[0]}; accepted: at least 0 and at most 1"
        )


def _check_termination(env: base.Env, config: MBPOConfig) -> None:
    asks = config.imagine.termination == "env"
    if asks and getattr(env, "termination", None) is None:
        raise ConfigError(
            f"config: imagine.termination='env'; {type(env).__name__} has no method "
            "termination(obs, action, next_obs); add one, or set imagine.termination "
            "to learned, or to none if no episode terminates"
        )


def _termination(env: base.Env, state: MBPOState, config: MBPOConfig) -> TerminationFn:
    if config.imagine.termination == "none":
        return lambda obs, action, next_obs: jnp.bool_(False)
    if config.imagine.termination == "learned":
        return termination.termination_fn(state.termination, config=config.termination)
    return env.termination


def _rollouts_per_epoch(config: MBPOConfig) -> int:
    return config.imagine.rollouts_per_step * config.steps_per_epoch


def _imagined_capacity(config: MBPOConfig) -> int:
    if config.loss == NO_MODEL:
        return 1
    horizon = imagine.max_horizon(config.imagine)
    return _rollouts_per_epoch(config) * horizon * config.imagine.keep_epochs
