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
        "learned" trains a classifier on the real transitions, "none" ends no episode,
        and "auto" is "env" if the environment has the function, else "learned".
    """

    rollouts_per_step: int = static(400, low=1)
    horizon: Schedule = static(schedules.constant(1), low=1, whole=True)
    keep_epochs: int = static(1, low=1)
    clip: bool = static(False)
    max_disagreement: float | None = leaf(None, above=0.0)
    termination: str = static("auto", choices=("auto", "env", "learned", "none"))


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
    config: ImagineConfig,
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
      horizon: int scalar, length of the rollouts, at most T = `max_horizon(config)`.
      config: the limits of the rollouts; their number is that of `start_obs`.

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
        limit = jnp.where(t == 0, _limit(disagreement, config), limit)
        valid = alive & finite & (t < horizon) & (disagreement <= limit)
        if config.clip:
            bounds = params.normalizer.obs_low, params.normalizer.obs_high
            next_obs = jnp.clip(next_obs, *bounds)
        transition = Transition(
            obs=obs,
            action=action,
            reward=reward,
            next_obs=next_obs,
            terminated=jax.vmap(termination)(obs, action, next_obs),
            truncated=jnp.zeros_like(valid),
        )
        return (next_obs, valid & ~transition.terminated, limit), (transition, valid)

    length = max_horizon(config)
    start = start_obs, jnp.ones(start_obs.shape[0], bool), jnp.inf
    inputs = jax.random.split(key, length), jnp.arange(length)
    return jax.lax.scan(step, start, inputs)[1]


def _limit(disagreement: jax.Array, config: ImagineConfig) -> jax.Array | float:
    """Returns the largest disagreement that is accepted, from that at the starts."""
    if config.max_disagreement is None:
        return jnp.inf
    return config.max_disagreement * jnp.quantile(disagreement, 0.95)
