"""Evaluation of a policy: undiscounted returns of whole episodes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from vagram_jax.envs import base, episodes
from vagram_jax.types import ActFn


def returns(
    key: jax.Array,
    act: ActFn,
    *,
    env: base.Env,
    num_episodes: int,
) -> tuple[jax.Array, jax.Array]:
    """Plays episodes in parallel until all have ended.

    Args:
      key: random key.
      act: the policy, `(key, obs)` to an action.
      env: the environment.
      num_episodes: number of episodes, each with a different start state.

    Returns:
      `(returns [num_episodes], lengths [num_episodes])`: the sum of rewards and the
      number of steps of each episode. An episode in which a number is not finite has
      the return NaN: where rewards are negative, breaking the physics would otherwise
      look better than going on.
    """
    play = partial(_play, act=act, env=env, episode_length=episodes.length(env))
    return jax.vmap(play)(jax.random.split(key, num_episodes))


def _play(key, *, act: ActFn, env: base.Env, episode_length: int):
    """Returns the return and the length of one episode."""
    key_start, key_steps = jax.random.split(key)
    # As data, because JAX's check for key reuse can't tell that the loop takes each
    # key once.
    keys = jax.random.key_data(jax.random.split(key_steps, episode_length))

    def step(carry):
        episode, total, length, _ = carry
        own_key = jax.random.wrap_key_data(keys[length], impl=jax.random.key_impl(key))
        key_act, key_env = jax.random.split(own_key)
        action = act(key_act, episode.env_state.obs)
        episode, transition, valid = episodes.step(
            key_env, episode, action, env=env, episode_length=episode_length
        )
        total = total + jnp.where(valid, transition.reward, jnp.nan)
        goes_on = valid & ~(transition.terminated | transition.truncated)
        return episode, total, length + valid, goes_on

    first = episodes.reset(key_start, env=env)
    dtype = jnp.promote_types(jnp.float32, first.env_state.reward.dtype)
    start = (first, jnp.zeros((), dtype), jnp.int32(0), jnp.bool_(True))
    # A while loop stops when all episodes have ended; a scan would play on.
    _, total, length, _ = jax.lax.while_loop(lambda carry: carry[-1], step, start)
    return total, length
