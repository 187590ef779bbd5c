"""Adapter for environments with Brax's interface, shared by Brax and Playground."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vagram_jax.envs import base


class BraxLikeEnv:
    """An environment with Brax's interface, as a `base.Env`.

    It gets raw keys, and a copy of its state, because it writes into the dicts of the
    state that it is given. An observation that is not finite ends the episode, even if
    the environment itself continues, as Brax's Ant and Humanoid do.

    Args:
      env: an object with `reset(raw key)`, `step(state, action)` and `action_size`.
      name: its name in messages.
      observation: the entry of the observation to use, if it is a dict.
      episode_length: number of steps after which an episode is truncated.

    Attributes:
      observation_size: number of dimensions of the observation.
      action_size: as in `env`.
      episode_length: as given.
      dt: duration of a step in s, or None.
      termination: None, because neither Brax nor Playground has such a function.

    Raises:
      EnvError: `reset` fails, or the observation has no such entry.
    """

    termination = None

    def __init__(
        self, env: Any, name: str, *, observation: str = "", episode_length: int
    ):
        self._env, self._entry = env, observation
        with base.as_env_error(f"env {name}: reset"):
            first = jax.eval_shape(lambda: env.reset(_raw_key(jax.random.key(0))))
        if isinstance(first.obs, Mapping):
            where = f"env {name}: observation"
            base.check_choice(where, observation, sorted(first.obs))
        elif observation:
            raise base.EnvError(
                f"env {name}: observation={observation!r}; it has only one; leave the "
                "option out"
            )
        (self.observation_size,) = self._observe(first).shape
        self.action_size = env.action_size
        self.episode_length = episode_length
        dt = getattr(env, "dt", None)
        self.dt = None if dt is None else float(dt)

    def reset(self, key: jax.Array) -> base.State:
        """Returns the first state of an episode."""
        return self._wrap(self._env.reset(_raw_key(key)))

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """Returns the state after an action `[action_dim]` in [-1, 1]."""
        copy = jax.tree.map(lambda leaf: leaf, state.pipeline_state)
        return self._wrap(self._env.step(copy, action))

    def unwrap(self, state: base.State) -> tuple[Any, Any]:
        """Returns the environment of the other library, and its state."""
        return self._env, state.pipeline_state

    def _observe(self, inner: Any) -> Any:
        return inner.obs[self._entry] if self._entry else inner.obs

    def _wrap(self, inner: Any) -> base.State:
        obs = self._observe(inner)
        state = base.wrapper_state(inner, inner, obs=obs, reward=inner.reward)
        done = jnp.asarray(inner.done).astype(obs.dtype)
        return state.replace(done=jnp.where(base.all_finite(obs), done, 1))


def _raw_key(key: jax.Array) -> jax.Array:
    """Converts a typed key to a raw one, which these libraries require."""
    return jax.random.key_data(key)
