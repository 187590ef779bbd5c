"""Imagination: short rollouts of the model that branch off real states.

Comes in: real states, a policy, the model. Goes out: imagined transitions. A rollout
ends where the task's termination function says so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import dynamics
from vagram_jax.config import ConfigError, static
from vagram_jax.dynamics import DynamicsParams
from vagram_jax.types import ActFn, TerminationFn, Transition


@struct.dataclass(kw_only=True)
class ImagineConfig:
    """How much is imagined.

    Attributes:
      rollouts_per_step: how many rollouts for each environment step (MBPO: 400).
      horizon: length of a rollout: one number, or a schedule, see `scheduled`.
      keep_epochs: for how many epochs an imagined transition is kept, at the longest
        horizon of the schedule; shorter rollouts fill the buffer later and stay longer.
      termination: "env" asks the environment's `termination`, "learned" learns one
        from the real transitions, "none" says that no episode terminates.
    """

    rollouts_per_step: int = static(400, low=1)
    horizon: tuple[int, ...] = static((1,), low=0)
    keep_epochs: int = static(1, low=1)
    termination: str = static("env", choices=("env", "learned", "none"))


def check(config: ImagineConfig) -> None:
    """Refuses a config that can't be carried out.

    Args:
      config: how much is imagined.

    Raises:
      ConfigError: the schedule of the horizon is none, or it has a length of zero.
    """
    check_schedule("imagine.horizon", config.horizon)
    if min(config.horizon[:2]) < 1:
        raise ConfigError(
            f"config: imagine.horizon={config.horizon}; lengths of at least 1"
        )


def check_schedule(key: str, schedule: tuple[float, ...]) -> None:
    """Refuses a tuple that is no schedule.

    Args:
      key: the schedule's key in the config.
      schedule: what `scheduled` takes.

    Raises:
      ConfigError: neither one number nor four, or it ends before it begins.
    """
    if len(schedule) == 1 or (len(schedule) == 4 and schedule[3] > schedule[2]):
        return
    raise ConfigError(
        f"config: {key}={schedule}; one number, or four: start value, end value, first "
        "and last environment step of the change, in rising order"
    )


def scheduled(schedule: tuple[float, ...], step: jax.Array) -> jax.Array:
    """The value of a schedule: constant, or linear between two steps.

    Args:
      schedule: `(value,)` or `(start_value, end_value, first_step, last_step)`.
      step: environment steps so far.

    Returns:
      A float scalar.
    """
    if len(schedule) == 1:
        return jnp.asarray(schedule[0], jnp.float32)
    start, end, first, last = schedule
    share = jnp.clip((step - first) / (last - first), 0.0, 1.0)
    return start + share * (end - start)


def max_horizon(config: ImagineConfig) -> int:
    """The longest rollout that the schedule reaches.

    Args:
      config: how much is imagined.

    Returns:
      The number of steps.
    """
    return max(config.horizon[:2])


def imagine(
    key: jax.Array,
    params: DynamicsParams,
    elites: jax.Array,
    start_obs: jax.Array,
    *,
    act: ActFn,
    termination: TerminationFn,
    horizon: jax.Array,
    max_horizon: int,
) -> tuple[Transition, jax.Array]:
    """Rollouts of the policy in the model.

    Args:
      key: used once.
      params: the ensemble.
      elites: `[num_elites]` int, the members to draw from, anew for each step and row.
      start_obs: `[B, obs_dim]`, real states.
      act: the policy.
      termination: whether one step ends an episode.
      horizon: int scalar, how long the rollouts are, at most `max_horizon`.
      max_horizon: T.

    Returns:
      `[T, B, ...]` transitions, and `[T, B]` bool: False from the step after a
      rollout's termination on, beyond the horizon, and from where the model gave NaN
      or infinity. None of them is marked as truncated.
    """

    def step(carry, inputs):
        obs, alive = carry
        key, t = inputs
        key_act, key_model = jax.random.split(key)
        action = act(key_act, obs)
        next_obs, reward = dynamics.sample(key_model, params, elites, obs, action)
        finite = jnp.all(jnp.isfinite(next_obs), axis=-1) & jnp.isfinite(reward)
        valid = alive & finite & (t < horizon)
        transition = Transition(
            obs=obs,
            action=action,
            reward=reward,
            next_obs=next_obs,
            terminated=jax.vmap(termination)(obs, action, next_obs),
            truncated=jnp.zeros_like(valid),
        )
        return (next_obs, valid & ~transition.terminated), (transition, valid)

    alive = jnp.ones(start_obs.shape[0], bool)
    keys = jax.random.split(key, max_horizon)
    _, rollouts = jax.lax.scan(
        step, (start_obs, alive), (keys, jnp.arange(max_horizon))
    )
    return rollouts
