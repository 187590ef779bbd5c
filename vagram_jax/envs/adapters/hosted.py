"""Gymnasium's environments: on the host, and yet with a step that is a pure function.

Comes in: a function that makes a `gymnasium.Env`. Goes out: an environment in the form
of `base.Env`, for jit, vmap and checkpoints like one in JAX.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax.envs import base

_FIRST_CAPACITY = 16  # live environments, before any was missed
_REMEMBERED = 4096  # dropped positions


@struct.dataclass(kw_only=True)
class Past:
    """All that a Gymnasium environment depends on, in an episode.

    Attributes:
      seed: `[]` uint32, below 2^31, what the episode was reset with.
      steps: `[]` int32, how many steps it has had.
      actions: `[episode_length, action_dim]` float32 in [-1, 1], those of these steps;
        zeros after them.
    """

    seed: jax.Array  # []
    steps: jax.Array  # []
    actions: jax.Array  # [episode_length, action_dim]


class Gymnasium:
    """A Gymnasium environment on the host, whose step is a pure function.

    Its simulation is out of JAX's sight, so the state holds what it depends on: the
    seed and the actions so far. The host keeps live environments and steps the one
    that stands exactly there. Where there is none, after a restart or where two states
    branch off one, it resets another with the seed and repeats the actions. So vmap,
    checkpoints and resuming are exact for all that is deterministic given its seed.

    An action is scaled from [-1, 1] to the bounds and clipped. Beyond the end of an
    episode nothing moves and the reward is 0. An action that is not finite is not
    played: the observation and the reward are NaN, and the episode ends.

    An exception in a step ends the program; the last line of its message names the
    environment. An episode never outlasts `episode_length`, whatever a config says.

    Args:
      construct: a function without arguments that makes a `gymnasium.Env`.
      name: what messages call it.
      episode_length: after how many steps an episode is cut; 0 for what its spec says.

    Attributes:
      observation_size: the length of its observation.
      action_size: the length of its action.
      episode_length: as given, or as its spec says.
      termination: None, since Gymnasium has no such function.

    Raises:
      EnvError: spaces other than vectors, bounds that are not finite, no episode
        length, an environment that fails or is not deterministic given its seed, or
        JAX without a CPU.

    Example:
      >>> def flat():
      ...     made = lambda: FlattenObservation(gymnasium.make("Mine-v0"))
      ...     return Gymnasium(made, "mine", episode_length=200)
    """

    termination = None

    def __init__(
        self, construct: Callable[[], Any], name: str, *, episode_length: int = 0
    ):
        where = f"env {name}"
        with naming(f"{where}: making it"):
            env = construct()
        _check_spaces(env, where)
        _check_host(where)
        spec_length = getattr(env.spec, "max_episode_steps", None)
        self.episode_length = episode_length or spec_length
        if not base.is_count(self.episode_length):
            raise base.EnvError(
                f"{where}: max_episode_steps={self.episode_length!r}; a whole number "
                "of at least 1 is accepted; register it with one"
            )
        (self.observation_size,) = env.observation_space.shape
        (self.action_size,) = env.action_space.shape
        self._host = _Host(construct, env, where, self.episode_length)

    def reset(self, key: jax.Array) -> base.State:
        """The first state of an episode, from a seed that is drawn.

        Args:
          key: a typed key.

        Returns:
          The first `State`; its `pipeline_state` is a `Past`.
        """
        # 31 bits: some environments keep their seed in a C int.
        seed = jax.random.bits(key, (), jnp.uint32) >> 1
        dtype = jnp.result_type(float)
        row = jax.ShapeDtypeStruct((self.observation_size,), dtype)
        actions = jnp.zeros((self.episode_length, self.action_size), jnp.float32)
        zero = jnp.zeros((), dtype)
        return base.State(
            pipeline_state=Past(seed=seed, steps=jnp.int32(0), actions=actions),
            obs=_call(self._host.reset, row, seed),
            reward=zero,
            done=zero,
            metrics={},
            info={"truncation": zero},
        )

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """One step of the environment.

        Args:
          state: as `reset` or the last step returned it.
          action: `[action_dim]`, each in [-1, 1].

        Returns:
          The next `State`. Where the environment truncates the episode, or its length
          is reached, `done` and `info["truncation"]` are 1; where it terminates at the
          same step, `info["truncation"]` is 0.
        """
        past, ended = state.pipeline_state, state.done > 0
        action = action.astype(jnp.float32)
        row = jax.ShapeDtypeStruct((self.observation_size + 3,), state.obs.dtype)
        inputs = (past.seed, past.steps, past.actions, action, ended)
        row = _call(self._host.step, row, *inputs)
        reward, done, truncation = row[-3:]
        after = state.replace(
            pipeline_state=past.replace(
                steps=past.steps + 1, actions=past.actions.at[past.steps].set(action)
            ),
            obs=row[:-3],
            reward=reward,
            done=done,
            info={"truncation": truncation},
        )
        still = state.replace(reward=jnp.zeros_like(state.reward))
        return jax.tree.map(functools.partial(jnp.where, ended), still, after)


class _Host:
    """The live environments of one kind, found by what was done to them.

    All in it is NumPy and Python: JAX called from a callback may wait for itself. The
    callbacks of several devices come at once, from several threads: one lock.
    """

    def __init__(self, construct: Callable, env: Any, where: str, episode_length: int):
        self._construct, self._where = construct, where
        self._episode_length = episode_length
        self._space, self._obs_shape = env.action_space, env.observation_space.shape
        self._low, self._high = (
            np.float64(self._space.low),
            np.float64(self._space.high),
        )
        self._lock = threading.Lock()
        # (seed, actions so far) to the environment there, the longest unused first.
        self._live: dict[tuple[int, bytes], Any] = {}
        self._idle = [env]
        # Grown whenever an environment is missed that was dropped for want of room:
        # nobody says how many states are stepped in turn.
        self._capacity = _FIRST_CAPACITY
        self._dropped: dict[int, None] = {}
        self._check_deterministic()

    def reset(self, dtype: Any, seeds: Any) -> np.ndarray:
        """Seeds of any shape to observations; no environment stays bound to them."""
        seeds = np.asarray(seeds)
        rows = np.empty((seeds.size, *self._obs_shape))
        with self._lock, naming(f"{self._where}: reset"):
            for row, seed in zip(rows, seeds.ravel(), strict=True):
                env = self._take()
                row[:] = self._observed(env.reset(seed=int(seed))[0])
                self._idle.append(env)
        return rows.reshape(*seeds.shape, -1).astype(dtype)

    def step(self, dtype: Any, *inputs: Any) -> np.ndarray:
        """Seeds, steps, actions so far, actions and whether the episode ended to rows.

        A row is the observation, reward, done and truncation; zeros beyond the end.
        """
        seeds, steps, pasts, actions, ended = map(np.asarray, inputs)
        pasts = pasts.reshape(-1, *pasts.shape[-2:])
        actions = actions.reshape(-1, actions.shape[-1])
        rows = np.zeros((seeds.size, self._obs_shape[0] + 3))
        with self._lock, naming(f"{self._where}: step"):
            for lane in np.flatnonzero(~ended):
                past = pasts[lane, : steps.flat[lane]]
                rows[lane] = self._step(int(seeds.flat[lane]), past, actions[lane])
        return rows.reshape(*seeds.shape, -1).astype(dtype)

    def _step(self, seed: int, past: np.ndarray, action: np.ndarray) -> np.ndarray:
        if not np.isfinite(action).all():
            return np.array([*np.full(self._obs_shape, np.nan), np.nan, 1, 0])
        here = (seed, past.tobytes())
        env = self._live.pop(here, None) or self._replayed(here, past)
        row = self._played(env, action)
        if len(past) + 1 >= self._episode_length and not row[-2]:
            row[-2:] = 1
        if row[-2]:
            self._idle.append(env)
        else:
            there = (seed, here[1] + action.tobytes())
            # Two states that did the same stand at one place; one is enough.
            self._idle += [self._live.pop(there)] if there in self._live else []
            self._live[there] = env
        return row

    def _replayed(self, here: tuple[int, bytes], past: np.ndarray) -> Any:
        """An environment that stands at `here`, where none did."""
        if hash(here) in self._dropped:
            del self._dropped[hash(here)]
            self._capacity += 1
        env = self._take()
        env.reset(seed=here[0])
        for action in past:
            env.step(self._scaled(action))
        return env

    def _take(self) -> Any:
        """An environment that stands nowhere in particular."""
        if self._idle:
            return self._idle.pop()
        if len(self._live) < self._capacity:
            return self._construct()
        oldest = next(iter(self._live))
        self._dropped[hash(oldest)] = None
        if len(self._dropped) > _REMEMBERED:
            del self._dropped[next(iter(self._dropped))]
        return self._live.pop(oldest)

    def _played(self, env: Any, action: np.ndarray) -> np.ndarray:
        obs, reward, terminated, truncated, _ = env.step(self._scaled(action))
        row = np.array([*self._observed(obs), float(reward), 0, 0])
        # Nothing follows a number that is not finite: whoever reads it starts anew.
        row[-2] = terminated or truncated or not np.isfinite(row).all()
        row[-1] = truncated and not terminated
        return row

    def _scaled(self, action: np.ndarray) -> np.ndarray:
        # From the middle, so that bounds of -1 and 1 leave every bit as it is.
        middle, reach = (self._high + self._low) / 2, (self._high - self._low) / 2
        scaled = middle + reach * np.float64(action)
        scaled = np.minimum(np.maximum(scaled, self._low), self._high)
        return scaled.astype(self._space.dtype)

    def _observed(self, obs: Any) -> np.ndarray:
        if np.shape(obs) != self._obs_shape:
            raise base.EnvError(
                f"the observation has shape {np.shape(obs)}; {self._obs_shape}, as "
                "its space says, is accepted; make both alike"
            )
        return np.asarray(obs, np.float64)

    def _check_deterministic(self) -> None:
        """Plays the same episode on an environment twice and once on another."""
        first, second = self._idle[0], self._construct()
        self._idle.append(second)
        with naming(f"{self._where}: a trial episode"):
            played = [self._trial(env) for env in (first, first, second)]
        if not all(np.array_equal(played[0], again, True) for again in played):
            raise base.EnvError(
                f"{self._where}: two episodes from one seed differ; one that is "
                "deterministic given its seed is accepted, so that a run can resume; "
                "draw from self.np_random only"
            )

    def _trial(self, env: Any) -> np.ndarray:
        shape = (3, *self._space.shape)
        actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        rows = [np.append(self._observed(env.reset(seed=0)[0]), np.zeros(3))]
        for action in actions:
            if not rows[-1][-2]:
                rows.append(self._played(env, action))
        return np.stack(rows)


def _call(function: Callable, result: Any, *arguments: jax.Array) -> jax.Array:
    """One call on the host for all lanes of a vmap."""
    # The type is told: the callback's thread may not know that 64 bits are on.
    told = functools.partial(function, result.dtype)
    return jax.pure_callback(told, result, *arguments, vmap_method="broadcast_all")


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Makes any exception one line that says where it comes from.

    Args:
      what: the environment and what was done with it.

    Yields:
      Nothing.

    Raises:
      EnvError: in place of any exception.
    """
    try:
        yield
    except Exception as error:
        is_ours = isinstance(error, base.EnvError)
        text = str(error) if is_ours else f"{base.one_line(error)}; repair it"
        raise base.EnvError(f"{what} raised {text}") from error


def _check_spaces(env: Any, where: str) -> None:
    spaces = {"observation": env.observation_space, "action": env.action_space}
    remedies = {
        "observation": "wrap it in gymnasium.wrappers.FlattenObservation",
        "action": "take a version of the task with continuous actions",
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
            f"{where}: the bounds of its action space are not finite; finite ones are "
            "accepted, which [-1, 1] is scaled to; state them"
        )


def _check_host(where: str) -> None:
    platforms = jax.config.jax_platforms
    if platforms and "cpu" not in platforms.split(","):
        raise base.EnvError(
            f"{where}: JAX_PLATFORMS={platforms}; its steps run on the host, for which "
            f"JAX needs cpu, too; set JAX_PLATFORMS={platforms},cpu"
        )
