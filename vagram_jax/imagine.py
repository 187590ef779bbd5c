"""Imagination: short rollouts in the dynamics model that branch off real states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import dynamics, schedules
from vagram_jax.config import leaf, static
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
      clip: limit each dimension of an imagined state to the range of the real data.
      max_disagreement: a rollout stops before a step at which the members disagree more
        than this many times the 95% quantile of their disagreement at the real start
        states (after MACURA, Frauenknecht et al. 2024, arXiv 2405.19014, which measures
        it by a divergence of Gaussians). None means no limit.
      termination: what ends a rollout: "env" calls the environment's `termination`,
        "learned" trains a classifier on the real transitions, "none" ends no episode.
    """

    rollouts_per_step: int = static(400, low=1)
    horizon: Schedule = static(schedules.constant(1), low=1, whole=True)
    keep_epochs: int = static(1, low=1)
    clip: bool = static(False)
    max_disagreement: float | None = leaf(None, above=0.0)
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
    bounds: tuple[jax.Array, jax.Array] | None = None,
    max_disagreement: jax.Array | float | None = None,
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
      bounds: lowest and highest value of each state dimension, `[obs_dim]` each, to
        which imagined states are clipped; None means no clipping.
      max_disagreement: limit of the members' disagreement, see `ImagineConfig`.

    Returns:
      `[T, B, ...]` transitions, and a `[T, B]` bool mask of the valid ones. Rows are
      invalid after the rollout has terminated, beyond the horizon, once the model has
      returned NaN or infinity, and once the members disagree too much. No transition is
      marked as truncated.
    """

    def step(carry, inputs):
        obs, alive, limit = carry
        key, t = inputs
        key_act, key_model = jax.random.split(key)
        action = act(key_act, obs)
        next_obs, reward, disagreement = dynamics.sample(
            key_model, params, elites, obs, action
        )
        finite = jnp.all(jnp.isfinite(next_obs), axis=-1) & jnp.isfinite(reward)
        valid = alive & finite & (t < horizon)
        if max_disagreement is not None:
            at_start = max_disagreement * jnp.quantile(disagreement, 0.95)
            limit = jnp.where(t == 0, at_start, limit)
            valid &= disagreement <= limit
        if bounds is not None:
            next_obs = jnp.clip(next_obs, *bounds)
        transition = Transition(
            obs=obs,
            action=action,
            reward=reward,
            next_obs=next_obs,
            terminated=jax.vmap(termination)(obs, action, next_obs),
            truncated=jnp.zeros_like(valid),
        )
        alive = valid & ~transition.terminated
        return (next_obs, alive, limit), (transition, valid)

    alive = jnp.ones(start_obs.shape[0], bool)
    keys = jax.random.split(key, max_horizon)
    _, rollouts = jax.lax.scan(
        step, (start_obs, alive, jnp.inf), (keys, jnp.arange(max_horizon))
    )
    return rollouts
