"""The other way round: environments of this package for users of Gymnasium.

env = to_gymnasium(vagram_jax.make("pendulum", distractors=10))
obs, info = env.reset(seed=0)
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import numpy as np

from vagram_jax.envs import base, episodes
from vagram_jax.envs.adapters import imports

_INSTALL = '"vagram_jax[gymnasium]"'


def to_gymnasium(env: base.Env, max_steps: int = 0) -> Any:
    """Returns an environment as a `gymnasium.Env`, which steps a compiled program.

    Observations are float32 vectors without bounds, actions float32 vectors in [-1, 1].
    `reset(seed=)` decides the episode, and those that follow without a seed. Episodes
    are truncated after `max_steps`; a step that terminates then counts as terminated.
    `info` has the metrics of the environment that evaluations record. A step whose
    observation or reward isn't finite truncates the episode and has `info["finite"]`
    False. There is no render mode; `vagram render` makes films.

    Args:
      env: the environment, such as from `vagram_jax.make`.
      max_steps: the number of steps after which an episode is truncated; 0 means the
        environment's own.

    Returns:
      A `gymnasium.Env`. Its `step` raises ValueError for an action that isn't in the
      space, and `gymnasium.error.ResetNeeded` before `reset` and after an episode.

    Raises:
      EnvError: Gymnasium isn't installed, the environment breaks the protocol, or no
        length of an episode is known.

    Example:
      >>> env = to_gymnasium(make("hopper"))
      >>> obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """
    gymnasium = imports.library("gymnasium", "to_gymnasium", install=_INSTALL)
    base.check_env(env)
    length = episodes.length(env, max_steps)

    class Environment(_Episodes, gymnasium.Env):
        """An environment of vagram_jax."""

        metadata: ClassVar = {"render_modes": []}
        observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (env.observation_size,), np.float32
        )
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)

    return Environment(env, length, gymnasium.error.ResetNeeded)


class _Episodes:
    """The methods of a `gymnasium.Env`; a library that may be missing is no base."""

    def __init__(self, env: base.Env, length: int, reset_needed: type[Exception]):
        def step(state, action):
            options = {"env": env, "episode_length": length}
            after, transition, valid = episodes.advance(state, action, **options)
            metrics = base.recorded_metrics(env, after.env_state)
            return after, (transition, valid, metrics)

        self._env, self._state, self._reset_needed = env, None, reset_needed
        self._reset = jax.jit(lambda key: episodes.reset(key, env=env))
        self._step = jax.jit(step)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns the first observation of an episode; there are no options."""
        super().reset(seed=seed, options=options)
        key = jax.random.key(int(self.np_random.integers(2**32)))
        self._state = self._reset(key)
        return np.asarray(self._state.env_state.obs, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Returns observation, reward, terminated, truncated and metrics."""
        if self._state is None:
            raise self._reset_needed("step: the episode is over; call reset first")
        given, shape = np.asarray(action, np.float32), self.action_space.shape
        if given.shape != shape or not (np.abs(given) <= 1).all():
            raise ValueError(
                f"step: action={action!r}; shape {shape}, each in [-1, 1], is accepted"
            )
        self._state, results = self._step(self._state, given)
        transition, valid, metrics = jax.device_get(results)
        terminated = bool(transition.terminated)
        truncated = bool(transition.truncated) or (not valid and not terminated)
        if terminated or truncated:
            self._state = None
        info = {**metrics, "finite": bool(valid)}
        obs = np.asarray(transition.next_obs, np.float32)
        return obs, float(transition.reward), terminated, truncated, info
