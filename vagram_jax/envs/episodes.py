"""Episodes on top of an environment: time limit, fresh starts, repeated actions.

Comes in: an environment and actions. Goes out: transitions as they are stored. These
wrappers are our own because Brax's put the first observation of the next episode
where the last successor belongs, and start each episode from the same state.

All functions are for one environment; the caller vmaps.
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
      env_state: the environment's own state.
      steps: `[]` int32, how many steps the episode has had.
    """

    env_state: Any
    steps: jax.Array  # []


def length(env: base.Env, override: int = 0) -> int:
    """After how many steps an episode of an environment is cut.

    Args:
      env: the environment.
      override: the number that a config states; 0 leaves it to the environment.

    Returns:
      At least 1.

    Raises:
      EnvError: neither states it, or it is no whole number of at least 1.
    """
    steps = override or getattr(env, "episode_length", None)
    if not base.is_count(steps):
        raise base.EnvError(
            f"env {base.name_of(env)}: episode_length={steps!r}; a whole number of at "
            "least 1 is accepted; state it in the config or as the env's attribute"
        )
    return int(steps)


def reset(key: jax.Array, *, env: base.Env) -> EpisodeState:
    """The start of an episode.

    Args:
      key: a typed key, all of it for the environment.
      env: the environment.

    Returns:
      A state without weak types, so that a loop may carry it.
    """
    return EpisodeState(
        env_state=jax.tree.map(_strong, env.reset(key)), steps=jnp.zeros((), jnp.int32)
    )


def step(
    key: jax.Array,
    state: EpisodeState,
    action: jax.Array,
    *,
    env: base.Env,
    episode_length: int,
) -> tuple[EpisodeState, types.Transition, jax.Array]:
    """One step, and where it ends the episode, the start of the next one.

    Where a time limit and a termination fall together, the step has terminated. A
    step that is not valid also ends the episode.

    Args:
      key: a typed key for the start of the next episode, used if one starts.
      state: as `reset` or the last step returned it.
      action: `[action_dim]`, each in [-1, 1].
      env: the environment.
      episode_length: after how many steps an episode is truncated.

    Returns:
      The next state; the transition, whose `next_obs` is the true successor even at
      the end of an episode; and a bool scalar, False where a number of the
      transition's observations or reward is not finite: then it must not be stored.
    """
    before = state.env_state
    after = jax.tree.map(_strong, env.step(before, action))
    steps = state.steps + 1
    ended, cut = ends(after)
    terminated = ended & ~cut
    truncated = (cut | (steps >= episode_length)) & ~terminated
    transition = types.Transition(
        obs=before.obs,
        action=action,
        reward=after.reward.astype(before.reward.dtype),
        next_obs=after.obs.astype(before.obs.dtype),
        terminated=terminated,
        truncated=truncated,
    )
    valid = base.all_finite(before.obs, after.obs, after.reward, after.done)
    after = EpisodeState(env_state=after, steps=steps)
    is_over = terminated | truncated | ~valid
    return _go_on(key, is_over, after, state, env), transition, valid


class Paced:
    """An environment with another pace: how long an action lasts, and an episode.

    Each action is repeated and the rewards are summed until the environment is done
    or a number is not finite. `metrics` and `info` are those of the last repetition.

    Args:
      env: the environment.
      action_repeat: how many steps of `env` an action lasts.
      episode_length: the number of actions of an episode; 0 for as many as fill the
        episode of `env`, if it has a length.

    Attributes:
      observation_size: as that of `env`.
      action_size: as that of `env`.
      episode_length: in actions, or None.
      termination: that of `env`, or None.
      dt: the seconds of an action, or None.

    Raises:
      EnvError: a number out of range.
    """

    def __init__(self, env: base.Env, action_repeat: int = 1, episode_length: int = 0):
        if not base.is_count(action_repeat):
            raise base.EnvError(
                f"Paced: action_repeat={action_repeat!r}; a whole number of at least 1 "
                "is accepted; 1 leaves the environment as it is"
            )
        self._env, self._action_repeat = env, action_repeat
        self.observation_size = env.observation_size
        self.action_size = env.action_size
        self.termination = getattr(env, "termination", None)
        dt = getattr(env, "dt", None)
        self.dt = dt and dt * action_repeat
        self.episode_length = getattr(env, "episode_length", None)
        if episode_length:
            self.episode_length = length(env, episode_length)
        elif self.episode_length:
            # Rounded up, as Brax does: the last action may outlast the episode of env.
            self.episode_length = -(-self.episode_length // action_repeat)

    def reset(self, key: jax.Array) -> base.State:
        """The first state of an episode, as `env` draws it from the same key.

        Args:
          key: a typed key.

        Returns:
          A `State` around that of the environment.
        """
        inner = jax.tree.map(_strong, self._env.reset(key))
        return base.around(inner, inner, obs=inner.obs, reward=inner.reward)

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """The state after the last repetition of an action.

        Args:
          state: as `reset` or the last step returned it.
          action: `[action_dim]`, each in [-1, 1].

        Returns:
          The next `State`; its reward is the sum over the repetitions.
        """

        def repeat(carry, _):
            inner, total, ended = carry
            after = jax.tree.map(_strong, self._env.step(inner, action))
            total += jnp.where(ended, 0, after.reward).astype(total.dtype)
            inner = jax.tree.map(functools.partial(choose, ended), inner, after)
            is_finite = base.all_finite(inner.obs, inner.reward)
            return (inner, total, ended | ends(inner)[0] | ~is_finite), None

        inner = state.pipeline_state
        start = (inner, jnp.zeros_like(inner.reward), jnp.zeros((), bool))
        (inner, total, _), _ = jax.lax.scan(repeat, start, length=self._action_repeat)
        return base.around(inner, inner, obs=inner.obs, reward=total)

    def unwrap(self, state: base.State) -> tuple[base.Env, Any]:
        """The environment that is paced, and its state.

        Args:
          state: as `reset` or `step` returned it.

        Returns:
          `(env, state)`.
        """
        return self._env, state.pipeline_state


def _go_on(
    key: jax.Array, is_over: jax.Array, after: EpisodeState, before: EpisodeState, env
) -> EpisodeState:
    """The state after a step, or the start of the next episode; `before` has types."""
    # Keys go through it as their data: JAX's check for reuse doesn't see that a
    # condition takes a key in one branch only.
    kinds = jax.tree.map(lambda leaf: leaf.dtype, _without_keys(before))

    def first(key_data: jax.Array) -> EpisodeState:
        key_again = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(key))
        state = _without_keys(reset(key_again, env=env))
        return jax.tree.map(lambda leaf, kind: leaf.astype(kind), state, kinds)

    after = _without_keys(after)
    after = jax.tree.map(lambda leaf, kind: leaf.astype(kind), after, kinds)
    state = _renewing(first)(is_over, jax.random.key_data(key), after)

    def with_key(leaf, like):
        if not _is_key(like):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))

    return jax.tree.map(with_key, state, before)


def _renewing(reset: Callable, num_axes: int = 0) -> Callable:
    """A function that starts the next episode where one has ended.

    Under vmap a condition computes both its branches. A reset may cost as much as a
    step, and few steps need one, so the function takes the axes that vmap makes as
    they are, and resets only when an episode has ended along any of them.

    Args:
      reset: a key to the state of one environment.
      num_axes: how many leading axes the function's arguments have.

    Returns:
      `(ended, key, state)` to the state to go on from.
    """

    def pick(ended, key, state):
        return jax.tree.map(functools.partial(choose, ended), reset(key), state)

    for _ in range(num_axes):
        pick = jax.vmap(pick)

    @jax.custom_batching.custom_vmap
    def renew(ended, key, state):
        return jax.lax.cond(
            jnp.any(ended), pick, lambda ended, key, state: state, ended, key, state
        )

    @renew.def_vmap
    def along_one_more_axis(size, is_batched, *arguments):
        spread = functools.partial(_spread, size)
        arguments = jax.tree.map(spread, arguments, tuple(is_batched))
        state = _renewing(reset, num_axes + 1)(*arguments)
        return state, jax.tree.map(lambda leaf: True, state)

    return renew


def _spread(size: int, leaf: jax.Array, has_axis: bool) -> jax.Array:
    return leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))


def ends(state: Any) -> tuple[jax.Array, jax.Array]:
    """Whether the environment says that it ended, and that a time limit is why.

    Args:
      state: of an environment, after a step.

    Returns:
      Two bool scalars; where the second holds, the first does.
    """
    cut = jnp.asarray(state.info.get("truncation", False)).astype(bool)
    return state.done.astype(bool) | cut, cut


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _without_keys(tree: Any) -> Any:
    """`tree` with the data of typed keys in their place."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree
    )


def _strong(leaf: Any) -> jax.Array:
    """`leaf` as an array without weak type."""
    if _is_key(leaf):
        return leaf
    leaf = jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def choose(condition: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """One leaf of a state or another, typed keys included.

    Args:
      condition: a bool scalar.
      yes: what holds if the condition does.
      no: what holds otherwise.

    Returns:
      `yes` or `no`, in the type of `yes`.
    """
    if _is_key(yes):
        # By the data of the keys: JAX's check for reuse calls a key from `where` used.
        data = jnp.where(condition, jax.random.key_data(yes), jax.random.key_data(no))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(yes))
    return jnp.where(condition, yes, no.astype(yes.dtype))
