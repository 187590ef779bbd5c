"""Distractors: observation dimensions that no action influences and no reward reads.

A dynamics model that spends capacity on them has less left for the dimensions that the
value depends on. To add a kind of distractor, add a row to `KINDS`. The import path of
a `Kind` in a module of the user's own is its name.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax import config
from vagram_jax.envs import base

# Folded into the reset key. It is large because fold_in(key, i) for a small i equals
# split(key)[i], which the environment may draw from.
_FOLD = 1_684_632_436

# Below 2 many matrices converge to a point or a cycle. At 2.5 a network of two layers
# of 64 units explains 99% of the variance of 10 dimensions and 92% of 20, and one of
# two layers of 8 units only 68% and 31%. At 3 the larger one explains 88% of 10.
_CHAOTIC_GAIN = 2.5

_SWITCHING_LIMIT = 20.0

Parameters = dict[str, np.ndarray]


class Kind(NamedTuple):
    """One kind of distractor, with D dimensions.

    Attributes:
      parameters: `(key, D)` to the float32 constants of the dynamics.
      start: `(key, D, dtype)` to the first values `[D]`.
      advance: `(constants, values [D], key)` to the next values `[D]`; the key is None
        unless `draws`.
      draws: whether `advance` draws random numbers.
    """

    parameters: Callable[[jax.Array, int], Parameters]
    start: Callable[[jax.Array, int, Any], jax.Array]
    advance: Callable[[Parameters, jax.Array, Any], jax.Array]
    draws: bool = False


@struct.dataclass(kw_only=True)
class DistractorState:
    """The state of an environment with distractors.

    Attributes:
      inner: state of the environment without distractors, of any class.
      values: `[num_dims]`, before scaling.
      key: `[]`, a typed key, or None for a kind that draws nothing.
    """

    inner: Any
    values: jax.Array  # [num_dims]
    key: jax.Array | None  # []


class Distractors:
    """An environment with distracting dimensions appended to its observation.

    The observation is that of `env` followed by `scale * x`, where x has D dimensions.
    All kinds but `"switching"` have a standard deviation of about 0.7 to 1:

    - `"chaotic"`: x' = sin(A x), A Gaussian with standard deviation 2.5 / sqrt(D).
      Deterministic and smooth, within [-1, 1], so that a network can learn it and needs
      capacity for it. Matrices with a stable point or cycle are rejected and drawn
      again; they are common for D = 1 and 2 and rare above 5. A single dimension still
      enters a cycle after hundreds to thousands of steps, because float32 is finite.
    - `"linear"`: x' = Q x, Q orthogonal. Easy to predict; neither grows nor decays.
    - `"noise"`: standard normal and independent at each step. Impossible to predict.
    - `"switching"`: the distractors in the code of Voelcker et al. 2022 (arXiv
      2204.01464): y = A x, x' = y + 0.1 sin(W y), and each component beyond 20 is set
      to its constant. A and the constants are standard normal, W holds squares of
      normal numbers of standard deviation 10, and the start has standard deviation 0.1.
      The values have a standard deviation of about 8, and a third of the components or
      more jump at each step. Use it to compare with the paper; `scale` can shrink it.

    The constants depend only on `seed`, so that training and evaluation share them, and
    not on whether 64-bit types are enabled. The start of x is drawn with the key of
    `reset`. `env` gets the same key, and its part of an episode is bit for bit that of
    `env` without distractors.

    Args:
      env: the environment.
      num_dims: number D of dimensions to append.
      kind: one of `KINDS`, or `"path.module:attribute"` of a `Kind`.
      scale: factor of x in the observation.
      seed: seed of the constants.

    Attributes:
      observation_size: that of `env` plus `num_dims`.
      action_size: as in `env`.
      episode_length: as in `env`, or None.
      termination: that of `env` applied to its dimensions, or None.
      dt: as in `env`, or None.
      recorded_metrics: as in `env`, or None.
      parameters: the constants by name.

    Raises:
      ConfigError: the kind is unknown.
      EnvError: a number is out of range, or the kind's code raises an exception.
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
        _check(num_dims, scale)
        self._env, self._num_dims, self._scale = env, num_dims, scale
        self._kind = kind_of(kind)
        self.observation_size = env.observation_size + num_dims
        self.action_size = env.action_size
        self.episode_length = getattr(env, "episode_length", None)
        self.dt = getattr(env, "dt", None)
        self.recorded_metrics = getattr(env, "recorded_metrics", None)
        has_termination = getattr(env, "termination", None) is not None
        self.termination = self._termination if has_termination else None
        # Computed now even while JAX traces, so that the constants aren't tracers.
        with jax.ensure_compile_time_eval(), _explained(kind):
            self.parameters = self._kind.parameters(jax.random.key(seed), num_dims)

    def reset(self, key: jax.Array) -> base.State:
        """Returns the first state of an episode; `env` gets the same key."""
        distractor_key = jax.random.fold_in(key, _FOLD)
        inner = self._env.reset(key)
        step_key = None
        if self._kind.draws:
            distractor_key, step_key = jax.random.split(distractor_key)
        values = self._kind.start(distractor_key, self._num_dims, inner.obs.dtype)
        return self._state(inner, values, step_key)

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """Steps the environment and, independently, the distractors."""
        before = state.pipeline_state
        inner = self._env.step(before.inner, action)
        key, draw_key = before.key, None
        if self._kind.draws:
            key, draw_key = jax.random.split(before.key)
        values = self._kind.advance(self.parameters, before.values, draw_key)
        return self._state(inner, values, key)

    def unwrap(self, state: base.State) -> tuple[base.Env, Any]:
        """Returns the environment without distractors, and its state."""
        return self._env, state.pipeline_state.inner

    def _state(
        self, inner: Any, values: jax.Array, key: jax.Array | None
    ) -> base.State:
        obs = jnp.concatenate([inner.obs, self._scale * values])
        pipeline_state = DistractorState(inner=inner, values=values, key=key)
        return base.wrapper_state(inner, pipeline_state, obs=obs, reward=inner.reward)

    def _termination(
        self, obs: jax.Array, action: jax.Array, next_obs: jax.Array
    ) -> jax.Array:
        size = self._env.observation_size
        is_broken = ~base.all_finite(obs, action, next_obs)
        return self._env.termination(obs[:size], action, next_obs[:size]) | is_broken


def kind_of(name: str) -> Kind:
    """Returns the kind of distractor with that name.

    Args:
      name: one of `KINDS`, or `"path.module:attribute"` of a `Kind`.

    Raises:
      ConfigError: there is no such kind.
      UserCodeError: importing its module raised an exception.
    """
    if name in KINDS:
        return KINDS[name]
    setting = f"distractor_kind={name!r}"
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        near = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise config.ConfigError(
            f"config: {setting}; known: {', '.join(KINDS)}, or path.module:NAME of a "
            f"Kind{hint}"
        )
    kind = config.attribute(setting, config.imported(setting, module), attribute)
    if not isinstance(kind, Kind):
        raise config.ConfigError(
            f"config: {setting}; it is of type {type(kind).__name__}; a "
            "vagram_jax.envs.distractors.Kind is accepted; make one of its functions"
        )
    return kind


def _explained(kind: str) -> contextlib.AbstractContextManager:
    """Explains the exceptions of a kind of the user's own."""
    if kind in KINDS:
        return contextlib.nullcontext()
    return base.as_env_error(f"Distractors: kind={kind!r}: its parameters")


def _check(num_dims: int, scale: float) -> None:
    if not base.is_count(num_dims):
        raise base.EnvError(
            f"Distractors: num_dims={num_dims!r}; a whole number of at least 1 is "
            "accepted; for none, use the environment itself"
        )
    if not 0 < scale < math.inf:
        raise base.EnvError(
            f"Distractors: scale={scale!r}; a finite number above 0 is accepted"
        )


def _normal(key: jax.Array, *shape: int) -> np.ndarray:
    """Draws standard normal float32 constants, also if 64-bit types are enabled."""
    return np.asarray(jax.random.normal(key, shape, jnp.float32))


def _times(matrix: np.ndarray, values: jax.Array) -> jax.Array:
    # In full precision on all devices, because TF32 changes a chaotic system.
    return jnp.matmul(matrix.astype(values.dtype), values, precision="highest")


def _chaotic_parameters(key: jax.Array, num_dims: int) -> Parameters:
    for trial in range(1000):
        normal = _normal(jax.random.fold_in(key, trial), num_dims, num_dims)
        matrix = np.float32(_CHAOTIC_GAIN / np.sqrt(num_dims)) * normal
        if _is_chaotic(matrix.astype(np.float64)):
            return {"matrix": matrix}
    raise base.EnvError(
        f"Distractors: no chaotic dynamics of num_dims={num_dims} in 1000 trials; "
        "choose another seed or kind"
    )


def _is_chaotic(matrix: np.ndarray) -> bool:
    """Returns whether close trajectories diverge in every dimension, after a burn-in.

    With a stable point or cycle, a small difference vanishes instead.
    """
    values = np.random.default_rng(0).uniform(-1, 1, (16, len(matrix)))  # [starts, D]
    for _ in range(3000):
        values = np.sin(values @ matrix.T)
    neighbors, largest = values + 1e-6, np.zeros_like(values)
    for _ in range(200):
        values, neighbors = np.sin(values @ matrix.T), np.sin(neighbors @ matrix.T)
        largest = np.maximum(largest, np.abs(values - neighbors))
    return bool(largest.min() > 0.1)


def _chaotic_start(key: jax.Array, num_dims: int, dtype: Any) -> jax.Array:
    return jax.random.uniform(key, (num_dims,), dtype, minval=-1, maxval=1)


def _chaotic(parameters: Parameters, values: jax.Array, key: None) -> jax.Array:
    del key  # Deterministic.
    return jnp.sin(_times(parameters["matrix"], values))


def _linear_parameters(key: jax.Array, num_dims: int) -> Parameters:
    normal = _normal(key, num_dims, num_dims).astype(np.float64)
    orthogonal, triangular = np.linalg.qr(normal)
    orthogonal *= np.sign(np.diag(triangular))  # Uniform over orthogonal matrices.
    # An eigenvalue of 1 would leave a direction constant. With this determinant none is
    # forced: eigenvalues come in rotating pairs, and in odd dimensions one is -1.
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
