"""Environments of Gymnasium, which run on the host, with pure `reset` and `step`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax import user_code
from vagram_jax.envs import base, host
from vagram_jax.envs.adapters import imports

_FIRST_CAPACITY = 16  # environments in use; grows when one was dropped too early
_MAX_DROPPED = 4096  # remembered positions of dropped environments


def make(name: str, *, observation: str = "", physics: str = "auto") -> GymnasiumEnv:
    """Returns an environment that is registered with Gymnasium, stepped on the host.

    Args:
      name: as for `gymnasium.make`, such as `"Hopper-v5"`, or `"module:Name-v0"` to
        import the module that registers it.
      observation: only the default is accepted.
      physics: only the default is accepted.

    Raises:
      EnvError: Gymnasium or one of its dependencies isn't installed, it has no such
        environment, its spaces are unsuitable, or the environment isn't deterministic
        given its seed.
    """
    where = f"env gymnasium:{name}"
    refuse_options(where, observation, physics)
    install = '"vagram_jax[gymnasium]"'
    gymnasium = imports.library("gymnasium", where, install=install)
    construct = functools.partial(gymnasium.make, name, disable_env_checker=True)
    try:
        return GymnasiumEnv(construct, f"gymnasium:{name}")
    except base.EnvError as error:
        cause = error.__cause__
        if cause is None or not isinstance(cause, gymnasium.error.UnregisteredEnv):
            raise
        near = imports.similar(name.split(":")[-1], gymnasium.registry)
        raise base.EnvError(f"{where}: {user_code.one_line(cause)}; {near}") from error


def refuse_options(where: str, observation: str, physics: str) -> None:
    """Raises an error if options are set that environments on the host don't have.

    Raises:
      EnvError: one of them isn't the default.
    """
    if observation or physics != "auto":
        raise base.EnvError(
            f"{where}: observation={observation!r}, physics={physics!r}; neither can "
            "be chosen here; leave them out"
        )


@struct.dataclass(kw_only=True)
class History:
    """The seed and the actions of an episode, which determine its state.

    Attributes:
      seed: `[]` uint32 below 2^31, the seed of the reset.
      steps: `[]` int32, number of steps since the reset.
      actions: `[episode_length, action_dim]` float32 in [-1, 1]; zeros after `steps`.
    """

    seed: jax.Array  # []
    steps: jax.Array  # []
    actions: jax.Array  # [episode_length, action_dim]


class GymnasiumEnv:
    """A Gymnasium environment on the host, with pure `reset` and `step`.

    JAX can't see the state of the simulation, so the JAX state holds what determines
    it: the seed and the actions so far. The host keeps environments in use and steps
    the one with exactly this history. If there is none, after a restart or because two
    states continue from one, it resets another with the seed and repeats the actions.
    So vmap, checkpoints and resuming are exact if the environment is deterministic
    given its seed.

    An action is scaled from [-1, 1] to the bounds and clipped. After the end of an
    episode the state stays constant and the reward is 0. An action that is not finite
    is not played: the observation and the reward become NaN, and the episode ends.

    An exception in a step ends the program; the last line of its message names the
    environment. No config can make an episode longer than `episode_length`.

    Args:
      construct: a function without arguments that makes a `gymnasium.Env`.
      name: its name in messages.
      episode_length: number of steps after which an episode is truncated; 0 means
        `max_episode_steps` of its spec.

    Attributes:
      observation_size: number of dimensions of an observation.
      action_size: number of dimensions of an action.
      episode_length: as given, or as in its spec.
      termination: None, because Gymnasium has no such function.

    Raises:
      EnvError: a space is not a vector, a bound is not finite, no episode length is
        known, the environment fails or is not deterministic given its seed, or JAX has
        no CPU device.

    Example:
      >>> def flat():
      ...     construct = lambda: FlattenObservation(gymnasium.make("Mine-v0"))
      ...     return GymnasiumEnv(construct, "mine", episode_length=200)
    """

    termination = None

    def __init__(
        self, construct: Callable[[], Any], name: str, *, episode_length: int = 0
    ):
        where = f"env {name}"
        with base.as_env_error(f"{where}: making it"):
            env = construct()
        _check_spaces(env, where)
        _check_cpu(where)
        spec_length = getattr(env.spec, "max_episode_steps", None)
        self.episode_length = episode_length or spec_length
        if not base.is_count(self.episode_length):
            raise base.EnvError(
                f"{where}: max_episode_steps={self.episode_length!r}; a whole number "
                "of at least 1 is accepted; register it with one"
            )
        (self.observation_size,) = env.observation_space.shape
        (self.action_size,) = env.action_space.shape
        simulations = _Simulations(construct, env, where, self.episode_length)
        self._reset = host.HostFunction(f"{name} reset", simulations.reset)
        self._step = host.HostFunction(f"{name} step", simulations.step)

    def reset(self, key: jax.Array) -> base.State:
        """Draws a seed and returns its first state; `pipeline_state` is a `History`."""
        # 31 bits, because some environments store their seed in a C int.
        seed = jax.random.bits(key, (), jnp.uint32) >> 1
        dtype = jnp.result_type(float)
        row = jax.ShapeDtypeStruct((self.observation_size,), dtype)
        actions = jnp.zeros((self.episode_length, self.action_size), jnp.float32)
        (obs,) = self._reset([row], seed)
        zero = jnp.zeros((), dtype)
        return base.State(
            pipeline_state=History(seed=seed, steps=jnp.int32(0), actions=actions),
            obs=obs,
            reward=zero,
            done=zero,
            metrics={},
            info={"truncation": zero},
        )

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """Returns the state after an action `[action_dim]` in [-1, 1].

        If the environment truncates the episode or its length is reached, `done` and
        `info["truncation"]` are 1. If it terminates at the same step,
        `info["truncation"]` is 0.
        """
        history, ended = state.pipeline_state, state.done > 0
        action = action.astype(jnp.float32)
        row = jax.ShapeDtypeStruct((self.observation_size + 3,), state.obs.dtype)
        inputs = (history.seed, history.steps, history.actions, action, ended)
        (row,) = self._step([row], *inputs)
        reward, done, truncation = row[-3:]
        after = state.replace(
            pipeline_state=history.replace(
                steps=history.steps + 1,
                actions=history.actions.at[history.steps].set(action),
            ),
            obs=row[:-3],
            reward=reward,
            done=done,
            info={"truncation": truncation},
        )
        unchanged = state.replace(reward=jnp.zeros_like(state.reward))
        return jax.tree.map(functools.partial(jnp.where, ended), unchanged, after)


class _Simulations:
    """The environments of one kind on the host, found by their seed and actions.

    The calls of several devices come from several threads, so they share a lock.
    """

    def __init__(self, construct: Callable, env: Any, where: str, episode_length: int):
        self._construct, self._where = construct, where
        self._episode_length = episode_length
        self._space, self._obs_shape = env.action_space, env.observation_space.shape
        self._low = np.float64(self._space.low)
        self._high = np.float64(self._space.high)
        self._lock = threading.Lock()
        # (seed, bytes of the actions) to the environment with this history, the least
        # recently used first.
        self._in_use: dict[tuple[int, bytes], Any] = {}
        self._idle = [env]
        # The number of states that are stepped in turn isn't known, so the capacity
        # grows whenever a dropped environment is needed again.
        self._capacity = _FIRST_CAPACITY
        self._dropped: dict[int, None] = {}
        self._check_deterministic()

    def reset(self, seeds: np.ndarray) -> tuple[np.ndarray]:
        """Returns the first observations of seeds of any shape."""
        rows = np.empty((seeds.size, *self._obs_shape))
        with self._lock, base.as_env_error(f"{self._where}: reset"):
            for lane, seed in enumerate(seeds.ravel()):
                env = self._take_idle()
                rows[lane] = self._observation(env.reset(seed=int(seed))[0])
                self._idle.append(env)
        return (rows.reshape(*seeds.shape, -1),)

    def step(self, *inputs: np.ndarray) -> tuple[np.ndarray]:
        """Steps one environment per history.

        Takes seeds, steps, past actions, actions, and whether the episode ended. Each
        row returned is the observation, reward, done and truncation, or zeros after
        the end.
        """
        seeds, steps, pasts, actions, ended = inputs
        pasts = pasts.reshape(-1, *pasts.shape[-2:])
        actions = actions.reshape(-1, actions.shape[-1])
        rows = np.zeros((seeds.size, self._obs_shape[0] + 3))
        with self._lock, base.as_env_error(f"{self._where}: step"):
            for lane in np.flatnonzero(~ended):
                past = pasts[lane, : steps.flat[lane]]
                rows[lane] = self._step(int(seeds.flat[lane]), past, actions[lane])
        return (rows.reshape(*seeds.shape, -1),)

    def _step(self, seed: int, past: np.ndarray, action: np.ndarray) -> np.ndarray:
        if not np.isfinite(action).all():
            return np.array([*np.full(self._obs_shape, np.nan), np.nan, 1, 0])
        before = (seed, past.tobytes())
        env = self._in_use.pop(before, None) or self._replay(before, past)
        row = self._play(env, action)
        if len(past) + 1 >= self._episode_length and not row[-2]:
            row[-2:] = 1
        if row[-2]:
            self._idle.append(env)
        else:
            after = (seed, before[1] + action.tobytes())
            # Of two environments with the same history, one is enough.
            self._idle += [self._in_use.pop(after)] if after in self._in_use else []
            self._in_use[after] = env
        return row

    def _replay(self, history: tuple[int, bytes], past: np.ndarray) -> Any:
        """Returns an environment that has repeated a history."""
        if hash(history) in self._dropped:
            del self._dropped[hash(history)]
            self._capacity += 1
        env = self._take_idle()
        env.reset(seed=history[0])
        for action in past:
            env.step(self._scale(action))
        return env

    def _take_idle(self) -> Any:
        """Returns an environment to reset: an idle, a new or the least recent one."""
        if self._idle:
            return self._idle.pop()
        if len(self._in_use) < self._capacity:
            return self._construct()
        oldest = next(iter(self._in_use))
        self._dropped[hash(oldest)] = None
        if len(self._dropped) > _MAX_DROPPED:
            del self._dropped[next(iter(self._dropped))]
        return self._in_use.pop(oldest)

    def _play(self, env: Any, action: np.ndarray) -> np.ndarray:
        obs, reward, terminated, truncated, _ = env.step(self._scale(action))
        row = np.array([*self._observation(obs), float(reward), 0, 0])
        # A number that is not finite ends the episode, so that training resets it.
        row[-2] = terminated or truncated or not np.isfinite(row).all()
        row[-1] = truncated and not terminated
        return row

    def _scale(self, action: np.ndarray) -> np.ndarray:
        # From the center, so that bounds of -1 and 1 keep every bit of the action.
        center, radius = (self._high + self._low) / 2, (self._high - self._low) / 2
        scaled = center + radius * np.float64(action)
        scaled = np.minimum(np.maximum(scaled, self._low), self._high)
        return scaled.astype(self._space.dtype)

    def _observation(self, obs: Any) -> np.ndarray:
        if np.shape(obs) != self._obs_shape:
            raise base.BrokenEnvError(
                f"the observation has shape {np.shape(obs)}; {self._obs_shape}, as in "
                "its space, is accepted; return the shape of the space"
            )
        return np.asarray(obs, np.float64)

    def _check_deterministic(self) -> None:
        """Plays the same episode on an environment twice and once on another."""
        first, second = self._idle[0], self._construct()
        self._idle.append(second)
        with base.as_env_error(f"{self._where}: a trial episode"):
            trials = [self._trial(env) for env in (first, first, second)]
        if not all(np.array_equal(trials[0], trial, True) for trial in trials):
            raise base.BrokenEnvError(
                f"{self._where}: two episodes from one seed differ; an environment "
                "that is deterministic given its seed is accepted, so that runs can be "
                "resumed; draw only from self.np_random"
            )

    def _trial(self, env: Any) -> np.ndarray:
        shape = (3, *self._space.shape)
        actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        rows = [np.append(self._observation(env.reset(seed=0)[0]), np.zeros(3))]
        for action in actions:
            if not rows[-1][-2]:
                rows.append(self._play(env, action))
        return np.stack(rows)


def _check_spaces(env: Any, where: str) -> None:
    spaces = {"observation": env.observation_space, "action": env.action_space}
    remedies = {
        "observation": "wrap it in gymnasium.wrappers.FlattenObservation",
        "action": "use a version of the task with continuous actions",
    }
    for kind, space in spaces.items():
        if not hasattr(space, "low") or len(space.shape) != 1:
            raise base.EnvError(
                f"{where}: its {kind} space is {type(space).__name__} of shape "
                f"{space.shape}; a Box with one axis is accepted; {remedies[kind]}"
            )
    space = env.action_space
    if not np.issubdtype(space.dtype, np.floating):
        raise base.EnvError(
            f"{where}: its actions are {space.dtype}; floats are accepted; "
            f"{remedies['action']}"
        )
    if not np.isfinite([space.low, space.high]).all():
        raise base.EnvError(
            f"{where}: the bounds of its action space are not finite; finite bounds "
            "are accepted, because [-1, 1] is scaled to them; state them"
        )


def _check_cpu(where: str) -> None:
    platforms = jax.config.jax_platforms
    if platforms and "cpu" not in platforms.split(","):
        raise base.EnvError(
            f"{where}: JAX_PLATFORMS={platforms}; its steps run on the host, for which "
            f"JAX needs cpu, too; set JAX_PLATFORMS={platforms},cpu"
        )
