"""How good a policy is: the undiscounted returns of whole episodes.

Comes in: a policy and an environment. Goes out: a return for each episode. It uses keys
of its own, so evaluating more often changes nothing in training.
"""

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
    episode_length: int,
    num_episodes: int,
) -> tuple[jax.Array, jax.Array]:
    """Plays episodes side by side, from start states of their own, until all end.

    Args:
      key: used once.
      act: the policy, `(key, obs)` to an action.
      env: the environment.
      episode_length: steps until an episode is cut.
      num_episodes: how many.

    Returns:
      `(returns [num_episodes], lengths [num_episodes])`: the sum of an episode's
      rewards until it ended or a number was not finite, and the number of its steps.
    """
    play = partial(_play, act=act, env=env, episode_length=episode_length)
    return jax.vmap(play)(jax.random.split(key, num_episodes))


def _play(key, *, act: ActFn, env: base.Env, episode_length: int):
    """The return and the length of one episode."""
    key_start, key_steps = jax.random.split(key)
    # The check for reuse doesn't see that a loop takes each of several keys once.
    keys = jax.random.key_data(jax.random.split(key_steps, episode_length))

    def step(carry):
        episode, total, length, _ = carry
        own_key = jax.random.wrap_key_data(keys[length], impl=jax.random.key_impl(key))
        key_act, key_env = jax.random.split(own_key)
        action = act(key_act, episode.env_state.obs)
        episode, transition, valid = episodes.step(
            key_env, episode, action, env=env, episode_length=episode_length
        )
        total = total + jnp.where(valid, transition.reward, 0.0)
        goes_on = valid & ~(transition.terminated | transition.truncated)
        return episode, total, length + valid, goes_on

    first = episodes.reset(key_start, env=env)
    dtype = jnp.promote_types(jnp.float32, first.env_state.reward.dtype)
    start = (first, jnp.zeros((), dtype), jnp.int32(0), jnp.bool_(True))
    # Not a scan: where episodes fail early, most of one would be played for nothing.
    _, total, length, _ = jax.lax.while_loop(lambda carry: carry[-1], step, start)
    return total, length
