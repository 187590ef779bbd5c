"""What training is: a config, and one state with all that it needs to go on.

Comes in: a config and an environment. Goes out: the config, checked, and the state
before the first step. What is done with them is in `mbpo`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import dynamics, imagine, losses, replay, sac, termination
from vagram_jax import fit as model_fit
from vagram_jax.config import ConfigError, leaf, nested, static
from vagram_jax.dynamics import DynamicsConfig
from vagram_jax.envs import base, episodes
from vagram_jax.fit import DynamicsState, FitConfig
from vagram_jax.imagine import ImagineConfig
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig
from vagram_jax.replay import ReplayState
from vagram_jax.sac import SACConfig, SACState
from vagram_jax.termination import TerminationConfig, TerminationState

NO_MODEL = "none"
"""The loss name that stands for no model at all: plain SAC on real data."""


@struct.dataclass(kw_only=True)
class MBPOConfig:
    """The algorithm.

    Attributes:
      loss: a name in `losses.LOSSES`, or "none" for plain SAC without a model.
      dynamics: size and kind of the ensemble.
      gradients: how value gradients are taken.
      weights: how they become the weights of a loss.
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
      dynamics: the ensemble.
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
    dynamics: DynamicsState
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
    dynamics.check(config.dynamics)
    imagine.check(config.imagine)
    _check_share("real_fraction", config.real_fraction)
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
    if loss.gaussian and config.dynamics.head == "deterministic":
        raise ConfigError(
            f"config: dynamics.head='deterministic'; loss={config.loss!r} needs a "
            "variance; set dynamics.head to gaussian or auto"
        )
    if config.dynamics.head == "auto":
        config = config.replace(dynamics=config.dynamics.replace(head=head))
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
        dynamics=model_fit.init(
            key_model, **sizes, dynamics_config=config.dynamics, config=config.fit
        ),
        termination=head,
        agent=sac.init(key_agent, **sizes, config=config.sac),
        alive=jnp.bool_(True),
        diverged_at=jnp.int32(-1),
        dropped=jnp.int32(0),
    )


def rollouts_per_epoch(config: MBPOConfig) -> int:
    """How many rollouts an epoch imagines.

    Args:
      config: the algorithm.

    Returns:
      The number.
    """
    return config.imagine.rollouts_per_step * config.steps_per_epoch


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


def _imagined_capacity(config: MBPOConfig) -> int:
    if config.loss == NO_MODEL:
        return 1
    horizon = imagine.max_horizon(config.imagine)
    return rollouts_per_epoch(config) * horizon * config.imagine.keep_epochs
