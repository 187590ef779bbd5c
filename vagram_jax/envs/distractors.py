"""Observations that don't matter: dimensions beside a task's own.

Comes in: an environment. Goes out: the same environment with more dimensions, which
no action influences and no reward reads. A model that spends its capacity on them has
less left for what the value depends on. A new kind is one more row of `KINDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax.envs import base

# What the distractors' key is folded from the reset key with. It is large because
# fold_in(key, i) is the same key as split(key)[i], which the environment may draw from.
_FOLD = 1_684_632_436

# Below 2 many matrices settle on a point or a cycle. At 2.5 a network of two layers
# of 64 explains 99% of the variance of 10 dimensions and 92% of that of 20, one of
# two layers of 8 only 68% and 31%; at 3 the larger one explains 88% of 10.
_CHAOTIC_GAIN = 2.5

_SWITCHING_LIMIT = 20.0

Parameters = dict[str, np.ndarray]


class Kind(NamedTuple):
    """One kind of distractor.

    Attributes:
      parameters: a typed key and D to the constants of the dynamics, float32.
      start: a typed key, D and a float type to the first values `[D]`.
      advance: constants, values `[D]` and a typed key, None unless `draws`, to the
        next values `[D]`.
      draws: whether `advance` needs a key.
    """

    parameters: Callable[[jax.Array, int], Parameters]
    start: Callable[[jax.Array, int, Any], jax.Array]
    advance: Callable[[Parameters, jax.Array, jax.Array | None], jax.Array]
    draws: bool = False


@struct.dataclass(kw_only=True)
class DistractorState:
    """What the next step of an environment with distractors depends on.

    Attributes:
      inner: the state of the environment without them, of any class.
      values: `[num_dims]`, before scaling.
      key: `[]`, a typed key, or None for a kind that draws nothing.
    """

    inner: Any
    values: jax.Array  # [num_dims]
    key: jax.Array | None  # []


class Distractors:
    """An environment with dimensions that don't matter behind those of its own.

    The observation is that of `env` and then `scale * x`. Of the kinds of x, all but
    `"switching"` have a standard deviation of about 0.7 to 1:

    - `"chaotic"`: x' = sin(A x), A Gaussian with standard deviation 2.5 / sqrt(D).
      Deterministic, within [-1, 1], never at rest, and smooth, so that a network
      can learn it and needs capacity for it. Most matrices of one or two dimensions,
      and few of more than five, have a stable cycle; they are passed over for the
      next that is drawn. A single dimension still closes a cycle after hundreds to
      thousands of steps, because float32 has only so many numbers.
    - `"linear"`: x' = Q x, Q orthogonal: easy to predict, neither grows nor fades.
    - `"noise"`: standard normal, independent of everything: impossible to predict.
    - `"switching"`: the distractors of the code of Voelcker et al. 2022 (arXiv
      2204.01464): y = A x, x' = y + 0.1 sin(W y), components beyond 20 set to a
      constant each; A standard normal, W the squares of normal numbers of standard
      deviation 10, the constants standard normal, the start of standard deviation
      0.1. Their standard deviation is about 8, and there a third of the components
      or more jump at each step: use it to stay comparable, with `scale` if need be.

    The constants come from `seed` alone, so that training and evaluation share them,
    and don't depend on whether 64-bit types are on. The start of x comes from the
    key of `reset`. `env` gets that key itself: its part of the episode is bit for bit
    that of `env` alone.

    Args:
      env: the environment.
      num_dims: how many dimensions to append, D.
      kind: one of `KINDS`.
      scale: what x is multiplied with in the observation.
      seed: what the constants are drawn from.

    Attributes:
      observation_size: that of `env` and `num_dims`.
      action_size: as that of `env`.
      episode_length: as that of `env`, or None.
      termination: that of `env` on its own dimensions, or None.
      dt: as that of `env`, or None.
      parameters: the constants by name.

    Raises:
      EnvError: an unknown kind or a number out of range.
    """

    def __init__(
        self,
        env: base.Env,
        num_dims: int,
        kind: str = "chaotic",
        *,
        scale: float = 1.0,
        seed: int = 0,
    ):
        _check(num_dims, kind, scale)
        self._env, self._num_dims, self._scale = env, num_dims, scale
        self._kind = KINDS[kind]
        self.observation_size = env.observation_size + num_dims
        self.action_size = env.action_size
        self.episode_length = getattr(env, "episode_length", None)
        self.dt = getattr(env, "dt", None)
        has_termination = getattr(env, "termination", None) is not None
        self.termination = self._termination if has_termination else None
        # Drawn now even if a trace is going on: tracers mustn't stay behind.
        with jax.ensure_compile_time_eval():
            self.parameters = self._kind.parameters(jax.random.key(seed), num_dims)

    def reset(self, key: jax.Array) -> base.State:
        """The first state of an episode, as `env` draws it from the same key.

        Args:
          key: a typed key.

        Returns:
          A `State` around that of the environment.
        """
        own_key = jax.random.fold_in(key, _FOLD)
        inner = self._env.reset(key)
        step_key = None
        if self._kind.draws:
            own_key, step_key = jax.random.split(own_key)
        values = self._kind.start(own_key, self._num_dims, inner.obs.dtype)
        return self._state(inner, values, step_key)

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """The next state of the environment and, apart from it, of the distractors.

        Args:
          state: as `reset` or the last step returned it.
          action: `[action_dim]`, each in [-1, 1].

        Returns:
          The next `State`.
        """
        before = state.pipeline_state
        inner = self._env.step(before.inner, action)
        key, draw_key = before.key, None
        if self._kind.draws:
            key, draw_key = jax.random.split(before.key)
        values = self._kind.advance(self.parameters, before.values, draw_key)
        return self._state(inner, values, key)

    def unwrap(self, state: base.State) -> tuple[base.Env, Any]:
        """The environment without distractors, and its state.

        Args:
          state: as `reset` or `step` returned it.

        Returns:
          `(env, state)`.
        """
        return self._env, state.pipeline_state.inner

    def _state(
        self, inner: Any, values: jax.Array, key: jax.Array | None
    ) -> base.State:
        obs = jnp.concatenate([inner.obs, self._scale * values])
        own = DistractorState(inner=inner, values=values, key=key)
        return base.around(inner, own, obs=obs, reward=inner.reward)

    def _termination(
        self, obs: jax.Array, action: jax.Array, next_obs: jax.Array
    ) -> jax.Array:
        size = self._env.observation_size
        is_broken = ~base.all_finite(obs, action, next_obs)
        return self._env.termination(obs[:size], action, next_obs[:size]) | is_broken


def _check(num_dims: int, kind: str, scale: float) -> None:
    if not base.is_count(num_dims):
        raise base.EnvError(
            f"Distractors: num_dims={num_dims!r}; a whole number of at least 1 is "
            "accepted; use the environment itself for none"
        )
    if kind not in KINDS:
        raise base.EnvError(f"Distractors: kind={kind!r}; accepted: {', '.join(KINDS)}")
    if not 0 < scale < math.inf:
        raise base.EnvError(
            f"Distractors: scale={scale!r}; a finite number above 0 is accepted"
        )


def _normal(key: jax.Array, *shape: int) -> np.ndarray:
    """Standard normal constants, the same whether 64-bit types are on or not."""
    return np.asarray(jax.random.normal(key, shape, jnp.float32))


def _times(matrix: np.ndarray, values: jax.Array) -> jax.Array:
    # In full precision everywhere: a chaotic system is another one with TF32.
    return jnp.matmul(matrix.astype(values.dtype), values, precision="highest")


def _chaotic_parameters(key: jax.Array, num_dims: int) -> Parameters:
    for trial in range(1000):
        normal = _normal(jax.random.fold_in(key, trial), num_dims, num_dims)
        matrix = np.float32(_CHAOTIC_GAIN / np.sqrt(num_dims)) * normal
        if _is_lively(matrix.astype(np.float64)):
            return {"matrix": matrix}
    raise base.EnvError(
        f"Distractors: no chaotic dynamics of num_dims={num_dims} in 1000 trials; "
        "take another seed or kind"
    )


def _is_lively(matrix: np.ndarray) -> bool:
    """Whether, long after the start, neighbours still part in each dimension.

    Where there is a stable point or cycle, a small difference vanishes instead.
    """
    values = np.random.default_rng(0).uniform(-1, 1, (16, len(matrix)))  # [starts, D]
    for _ in range(3000):
        values = np.sin(values @ matrix.T)
    neighbours, furthest = values + 1e-6, np.zeros_like(values)
    for _ in range(200):
        values, neighbours = np.sin(values @ matrix.T), np.sin(neighbours @ matrix.T)
        furthest = np.maximum(furthest, np.abs(values - neighbours))
    return bool(furthest.min() > 0.1)


def _chaotic_start(key: jax.Array, num_dims: int, dtype: Any) -> jax.Array:
    return jax.random.uniform(key, (num_dims,), dtype, minval=-1, maxval=1)


def _chaotic(parameters: Parameters, values: jax.Array, key: None) -> jax.Array:
    del key  # Deterministic.
    return jnp.sin(_times(parameters["matrix"], values))


def _linear_parameters(key: jax.Array, num_dims: int) -> Parameters:
    normal = _normal(key, num_dims, num_dims).astype(np.float64)
    orthogonal, triangular = np.linalg.qr(normal)
    orthogonal *= np.sign(np.diag(triangular))  # Uniform over orthogonal matrices.
    # An eigenvalue of 1 would let a direction stand still. With this determinant
    # none is forced: pairs turn, and in odd dimensions the one left over alternates.
    if np.linalg.det(orthogonal) * (-1) ** num_dims < 0:
        orthogonal[0] *= -1
    return {"matrix": orthogonal.astype(np.float32)}


def _normal_start(key: jax.Array, num_dims: int, dtype: Any) -> jax.Array:
    return jax.random.normal(key, (num_dims,), dtype)


def _linear(parameters: Parameters, values: jax.Array, key: None) -> jax.Array:
    del key  # Deterministic.
    return _times(parameters["matrix"], values)


def _no_parameters(key: jax.Array, num_dims: int) -> Parameters:
    del key, num_dims  # Noise has none.
    return {}


def _noise(parameters: Parameters, values: jax.Array, key: jax.Array) -> jax.Array:
    del parameters  # Noise has none.
    return jax.random.normal(key, values.shape, values.dtype)


def _switching_parameters(key: jax.Array, num_dims: int) -> Parameters:
    key_matrix, key_frequencies, key_constants = jax.random.split(key, 3)
    return {
        "matrix": _normal(key_matrix, num_dims, num_dims),
        "frequencies": (10 * _normal(key_frequencies, num_dims, num_dims)) ** 2,
        "constants": _normal(key_constants, num_dims),
    }


def _switching_start(key: jax.Array, num_dims: int, dtype: Any) -> jax.Array:
    return 0.1 * jax.random.normal(key, (num_dims,), dtype)


def _switching(parameters: Parameters, values: jax.Array, key: None) -> jax.Array:
    del key  # Deterministic.
    moved = _times(parameters["matrix"], values)
    moved += 0.1 * jnp.sin(_times(parameters["frequencies"], moved))
    constants = parameters["constants"].astype(moved.dtype)
    return jnp.where(jnp.abs(moved) > _SWITCHING_LIMIT, constants, moved)


KINDS = {
    "chaotic": Kind(_chaotic_parameters, _chaotic_start, _chaotic),
    "switching": Kind(_switching_parameters, _switching_start, _switching),
    "noise": Kind(_no_parameters, _normal_start, _noise, draws=True),
    "linear": Kind(_linear_parameters, _normal_start, _linear),
}
