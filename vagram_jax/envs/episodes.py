"""Episodes of an environment: time limits, automatic resets and repeated actions.

These functions replace Brax's wrappers, which store the first observation of the next
episode as the last successor and start every episode from the same state. They are
unbatched; the caller vmaps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from vagram_jax import types
from vagram_jax.envs import base


@struct.dataclass(kw_only=True)
class EpisodeState:
    """An environment within an episode.

    Attributes:
      env_state: state of the environment.
      steps: `[]` int32, number of steps since the reset.
    """

    env_state: Any
    steps: jax.Array  # []


def length(env: base.Env, override: int = 0) -> int:
    """Returns the number of steps after which an episode is truncated.

    Args:
      env: the environment.
      override: replaces the environment's own length, unless it is 0.

    Returns:
      At least 1.

    Raises:
      EnvError: no length is given, or it is not a whole number of at least 1.
    """
    steps = override or getattr(env, "episode_length", None)
    if not base.is_count(steps):
        raise base.EnvError(
            f"env {base.name_of(env)}: episode_length={steps!r}; a whole number of at "
            "least 1 is accepted; state it in the config or as the env's attribute"
        )
    return int(steps)


def reset(key: jax.Array, *, env: base.Env) -> EpisodeState:
    """Returns the start of an episode, without weak types, so that loops can carry it.

    Args:
      key: a typed key; the environment gets the same key.
      env: the environment.
    """
    env_state = jax.tree.map(_without_weak_type, env.reset(key))
    return EpisodeState(env_state=env_state, steps=jnp.zeros((), jnp.int32))


def step(
    key: jax.Array,
    state: EpisodeState,
    action: jax.Array,
    *,
    env: base.Env,
    episode_length: int,
) -> tuple[EpisodeState, types.Transition, jax.Array]:
    """Steps an environment and resets it if the episode is over.

    A step that terminates at the time limit counts as terminated. A step that isn't
    valid also ends the episode.

    Args:
      key: a typed key for the start of the next episode, used if one starts.
      state: as `reset` or the last step returned it.
      action: `[action_dim]`, each in [-1, 1].
      env: the environment.
      episode_length: the number of steps after which an episode is truncated.

    Returns:
      The next state; the transition, whose `next_obs` is the true successor even at
      the end of an episode; and a bool scalar `valid`, which is False if an
      observation or the reward isn't finite. Then the transition must not be stored.
    """
    after, transition, valid = advance(
        state, action, env=env, episode_length=episode_length
    )
    return restart(key, after, state, transition, valid, env=env), transition, valid


def advance(
    state: EpisodeState, action: jax.Array, *, env: base.Env, episode_length: int
) -> tuple[EpisodeState, types.Transition, jax.Array]:
    """Steps an environment without a reset, which `restart` adds.

    Args:
      state: as for `step`, like the other arguments.
      action: `[action_dim]`.
      env: the environment.
      episode_length: the number of steps after which an episode is truncated.

    Returns:
      As `step`, but the state is the one after the step even if the episode is over.
    """
    before = state.env_state
    after = jax.tree.map(_without_weak_type, env.step(before, action))
    steps = state.steps + 1
    ended, at_time_limit = ends(after)
    terminated = ended & ~at_time_limit
    truncated = (at_time_limit | (steps >= episode_length)) & ~terminated
    transition = types.Transition(
        obs=before.obs,
        action=action,
        reward=after.reward.astype(before.reward.dtype),
        next_obs=after.obs.astype(before.obs.dtype),
        terminated=terminated,
        truncated=truncated,
    )
    valid = base.all_finite(before.obs, after.obs, after.reward, after.done)
    return EpisodeState(env_state=after, steps=steps), transition, valid


def restart(
    key: jax.Array,
    after: EpisodeState,
    before: EpisodeState,
    transition: types.Transition,
    valid: jax.Array,
    *,
    env: base.Env,
) -> EpisodeState:
    """Returns the state after a step, or the start of a new episode if it is over.

    Args:
      key: a typed key for the start.
      after: from `advance`, like `transition` and `valid`.
      before: the state before the step.
      transition: the step.
      valid: whether it is finite.
      env: the environment.
    """
    is_over = transition.terminated | transition.truncated | ~valid
    return _reset_if_over(key, is_over, after, before, env)


class EpisodeWrapper:
    """An environment with repeated actions, or with another episode length.

    Each action is repeated and the rewards are summed until the environment is done
    or a number is not finite. `metrics` and `info` are those of the last repetition.

    Args:
      env: the environment.
      action_repeat: number of steps of `env` per action.
      episode_length: number of actions per episode. 0 means as many as fill an episode
        of `env`, if it has a length.

    Attributes:
      observation_size: as in `env`.
      action_size: as in `env`.
      episode_length: in actions, or None.
      termination: as in `env`, or None.
      dt: duration of an action in s, or None.
      recorded_metrics: as in `env`, or None.

    Raises:
      EnvError: a number is out of range.
    """

    def __init__(self, env: base.Env, action_repeat: int = 1, episode_length: int = 0):
        if not base.is_count(action_repeat):
            raise base.EnvError(
                f"EpisodeWrapper: action_repeat={action_repeat!r}; a whole number of "
                "at least 1 is accepted; 1 plays each action once"
            )
        self._env, self._action_repeat = env, action_repeat
        self.observation_size = env.observation_size
        self.action_size = env.action_size
        self.termination = getattr(env, "termination", None)
        self.recorded_metrics = getattr(env, "recorded_metrics", None)
        dt = getattr(env, "dt", None)
        self.dt = dt and dt * action_repeat
        self.episode_length = getattr(env, "episode_length", None)
        if episode_length:
            self.episode_length = length(env, episode_length)
        elif self.episode_length:
            # Rounded up as in Brax: the last action may outlast the episode of env.
            self.episode_length = -(-self.episode_length // action_repeat)

    def reset(self, key: jax.Array) -> base.State:
        """Returns the first state of an episode; `env` gets the same key."""
        inner = jax.tree.map(_without_weak_type, self._env.reset(key))
        return base.wrapper_state(inner, inner, obs=inner.obs, reward=inner.reward)

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """Returns the state after all repetitions of an action; rewards are summed."""

        def repeat(carry, _):
            inner, total, ended = carry
            after = jax.tree.map(_without_weak_type, self._env.step(inner, action))
            total += jnp.where(ended, 0, after.reward).astype(total.dtype)
            inner = jax.tree.map(functools.partial(choose, ended), inner, after)
            is_finite = base.all_finite(inner.obs, inner.reward)
            return (inner, total, ended | ends(inner)[0] | ~is_finite), None

        inner = state.pipeline_state
        start = (inner, jnp.zeros_like(inner.reward), jnp.zeros((), bool))
        (inner, total, _), _ = jax.lax.scan(repeat, start, length=self._action_repeat)
        return base.wrapper_state(inner, inner, obs=inner.obs, reward=total)

    def unwrap(self, state: base.State) -> tuple[base.Env, Any]:
        """Returns the wrapped environment and its state."""
        return self._env, state.pipeline_state


def _reset_if_over(
    key: jax.Array, is_over: jax.Array, after: EpisodeState, before: EpisodeState, env
) -> EpisodeState:
    """Returns `after`, or a new episode if it is over, in the types of `before`."""
    # Keys are passed as their data: JAX's check for key reuse doesn't see that only one
    # branch of a condition uses a key.
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, _keys_to_data(before))

    def reset_from_data(key_data: jax.Array) -> EpisodeState:
        key_again = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(key))
        state = _keys_to_data(reset(key_again, env=env))
        return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), state, dtypes)

    after = _keys_to_data(after)
    after = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), after, dtypes)
    reset_where = _make_reset_where(reset_from_data)
    state = reset_where(is_over, jax.random.key_data(key), after)

    def data_to_key(leaf, like):
        if not _is_key(like):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))

    return jax.tree.map(data_to_key, state, before)


def _make_reset_where(reset: Callable, num_axes: int = 0) -> Callable:
    """Returns `(ended, key, state) -> state`, which resets where `ended` is True.

    Under vmap a condition computes both branches. A reset may cost as much as a step
    and is seldom needed, so the function keeps the axes that vmap adds and computes
    resets only if any episode has ended.

    Args:
      reset: a key to the state of one environment.
      num_axes: number of leading axes of the arguments of the function.
    """

    def pick(ended, key, state):
        return jax.tree.map(functools.partial(choose, ended), reset(key), state)

    for _ in range(num_axes):
        pick = jax.vmap(pick)

    @jax.custom_batching.custom_vmap
    def reset_where(ended, key, state):
        return jax.lax.cond(
            jnp.any(ended), pick, lambda ended, key, state: state, ended, key, state
        )

    @reset_where.def_vmap
    def with_one_more_axis(size, is_batched, *arguments):
        broadcast = functools.partial(_broadcast, size)
        arguments = jax.tree.map(broadcast, arguments, tuple(is_batched))
        state = _make_reset_where(reset, num_axes + 1)(*arguments)
        return state, jax.tree.map(lambda leaf: True, state)

    return reset_where


def _broadcast(size: int, leaf: jax.Array, has_axis: bool) -> jax.Array:
    return leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))


def ends(state: Any) -> tuple[jax.Array, jax.Array]:
    """Returns whether the environment ended the episode, and whether by a time limit.

    Args:
      state: state of an environment after a step.

    Returns:
      Two bool scalars. The second implies the first.
    """
    at_time_limit = jnp.asarray(state.info.get("truncation", False)).astype(bool)
    return state.done.astype(bool) | at_time_limit, at_time_limit


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _keys_to_data(tree: Any) -> Any:
    """Replaces typed keys by their data."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree
    )


def _without_weak_type(leaf: Any) -> jax.Array:
    if _is_key(leaf):
        return leaf
    leaf = jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def choose(condition: jax.Array, on_true: jax.Array, on_false: jax.Array) -> jax.Array:
    """Returns one of two leaves of a state, in the type of `on_true`.

    It is `jnp.where` for typed keys, too.

    Args:
      condition: a bool scalar.
      on_true: an array or a typed key.
      on_false: another, of the same shape.
    """
    if _is_key(on_true):
        # As data, because JAX's check for key reuse counts `where` as a use of a key.
        data = jnp.where(
            condition, jax.random.key_data(on_true), jax.random.key_data(on_false)
        )
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(on_true))
    return jnp.where(condition, on_true, on_false.astype(on_true.dtype))
