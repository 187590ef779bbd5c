"""Imagination: short rollouts in the dynamics model that branch off real states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import dynamics, schedules
from vagram_jax.config import static
from vagram_jax.dynamics import DynamicsParams
from vagram_jax.schedules import Schedule
from vagram_jax.types import ActFn, TerminationFn, Transition


@struct.dataclass(kw_only=True)
class ImagineConfig:
    """Length and number of imagined rollouts.

    Attributes:
      rollouts_per_step: number of rollouts per environment step (MBPO: 400).
      horizon: length of a rollout, in steps.
      keep_epochs: number of epochs that an imagined transition is kept, at the longest
        horizon of the schedule; shorter rollouts fill the buffer later and stay longer.
      termination: what ends a rollout: "env" calls the environment's `termination`,
        "learned" trains a classifier on the real transitions, "none" ends no episode.
    """

    rollouts_per_step: int = static(400, low=1)
    horizon: Schedule = static(schedules.constant(1), low=1, whole=True)
    keep_epochs: int = static(1, low=1)
    termination: str = static("env", choices=("env", "learned", "none"))


def max_horizon(config: ImagineConfig) -> int:
    """Returns the length of the longest rollout of the schedule."""
    return int(schedules.bounds(config.horizon)[1])


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
    """Rolls out the policy in the dynamics model.

    Args:
      key: random key.
      params: the ensemble.
      elites: `[num_elites]` int, members to draw from; each step of each rollout draws
        one.
      start_obs: `[B, obs_dim]`, real states.
      act: the policy.
      termination: returns whether one step ends an episode.
      horizon: int scalar, length of the rollouts, at most `max_horizon`.
      max_horizon: T, the static bound of `horizon`.

    Returns:
      `[T, B, ...]` transitions, and a `[T, B]` bool mask of the valid ones. Rows are
      invalid after the rollout has terminated, beyond the horizon, and once the model
      has returned NaN or infinity. No transition is marked as truncated.
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
