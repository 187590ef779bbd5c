"""Evaluation of a policy: undiscounted returns, or transitions, of whole episodes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from vagram_jax.envs import base, episodes
from vagram_jax.types import ActFn, Metrics, Transition

METRICS = "env/"
"""The prefix of the metrics of an environment itself."""


def returns(
    key: jax.Array,
    act: ActFn,
    *,
    env: base.Env,
    num_episodes: int,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Plays episodes in parallel until all have ended.

    Args:
      key: random key.
      act: the policy, `(key, obs)` to an action.
      env: the environment.
      num_episodes: number of episodes, each with a different start state.

    Returns:
      `(returns [num_episodes], lengths [num_episodes], metrics)`: the sum of rewards
      and the number of steps of each episode. An episode in which a number is not
      finite has the return NaN: where rewards are negative, breaking the physics would
      otherwise look better than going on. The metrics are those of the environment
      itself, `env/NAME` to the sum over the steps of each episode, `[num_episodes]` or
      `[num_episodes, n]`.
    """
    play = partial(_play, act=act, env=env, episode_length=episodes.length(env))
    return jax.vmap(play)(jax.random.split(key, num_episodes))


def transitions(
    key: jax.Array, act: ActFn, *, env: base.Env, num_episodes: int
) -> tuple[Transition, jax.Array]:
    """Plays episodes in parallel and returns their steps.

    Args:
      key: random key.
      act: the policy, `(key, obs)` to an action.
      env: the environment.
      num_episodes: number of episodes, each with a different start state.

    Returns:
      `[num_episodes, T, ...]` transitions, T the length of an episode, and a mask
      `[num_episodes, T]` of the steps until its end. A step that isn't finite ends an
      episode and isn't in the mask.
    """
    play = partial(_steps, act=act, env=env, episode_length=episodes.length(env))
    return jax.vmap(play)(jax.random.split(key, num_episodes))


def _steps(key, *, act: ActFn, env: base.Env, episode_length: int):
    """Returns the transitions of one episode, and a mask of those until its end."""
    key_start, key_steps = jax.random.split(key)

    def step(carry, key):
        episode, goes_on = carry
        key_act, key_env = jax.random.split(key)
        action = act(key_act, episode.env_state.obs)
        episode, transition, valid = episodes.step(
            key_env, episode, action, env=env, episode_length=episode_length
        )
        valid &= goes_on
        is_over = transition.terminated | transition.truncated
        return (episode, valid & ~is_over), (transition, valid)

    start = episodes.reset(key_start, env=env), jnp.bool_(True)
    return jax.lax.scan(step, start, jax.random.split(key_steps, episode_length))[1]


def _play(key, *, act: ActFn, env: base.Env, episode_length: int):
    """Returns return, length and summed metrics of one episode."""
    key_start, key_steps = jax.random.split(key)
    # As data, because JAX's check for key reuse can't tell that the loop takes each
    # key once.
    keys = jax.random.key_data(jax.random.split(key_steps, episode_length))

    def step(carry):
        episode, total, length, sums, _ = carry
        own_key = jax.random.wrap_key_data(keys[length], impl=jax.random.key_impl(key))
        key_act, key_env = jax.random.split(own_key)
        action = act(key_act, episode.env_state.obs)
        after, transition, valid = episodes.advance(
            episode, action, env=env, episode_length=episode_length
        )
        # A reset replaces the metrics of the last step.
        metrics = base.recorded_metrics(env, after.env_state)
        sums = {
            name: sums[name] + jnp.where(valid, value, jnp.nan).astype(dtype)
            for name, value in metrics.items()
        }
        episode = episodes.restart(key_env, after, episode, transition, valid, env=env)
        total = total + jnp.where(valid, transition.reward, jnp.nan)
        goes_on = valid & ~(transition.terminated | transition.truncated)
        return episode, total, length + valid, sums, goes_on

    first = episodes.reset(key_start, env=env)
    dtype = jnp.promote_types(jnp.float32, first.env_state.reward.dtype)
    metrics = base.recorded_metrics(env, first.env_state)
    sums = {name: jnp.zeros(jnp.shape(x), dtype) for name, x in metrics.items()}
    start = (first, jnp.zeros((), dtype), jnp.int32(0), sums, jnp.bool_(True))
    # A while loop stops when all episodes have ended; a scan would play on.
    last = jax.lax.while_loop(lambda carry: carry[-1], step, start)
    _, total, length, sums, _ = last
    return total, length, {f"{METRICS}{name}": x for name, x in sums.items()}
