"""The protocol of an environment and its checker: the first stop of the flow.

Comes in: an environment of this package, of Brax, of MuJoCo Playground or of the
user's own. Goes out: nothing where it can be trained on, else one line that says why
not, before anything is compiled.

The protocol is Brax's, by shape and not by inheritance. What an environment keeps in
its state beside the named fields is its own business: nothing here looks inside.
"""

from __future__ import annotations

import inspect
import numbers
import os
import random
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

_ACCEPTED_STATE = "a State with obs, reward, done, metrics and info"
_JAX_FOLDER = os.path.dirname(jax.__file__)


class EnvError(ValueError):
    """An environment that can't be used. The message is one line, with the remedy."""


@struct.dataclass(kw_only=True)
class State:
    """An environment between two steps: all that the next step depends on.

    Attributes:
      pipeline_state: any pytree, the environment's own.
      obs: `[obs_dim]`, in the units of the task.
      reward: `[]`, of the step that led here; 0 after a reset.
      done: `[]` float, 1 where the episode ended for good, else 0.
      metrics: names to scalars that a person may want to see.
      info: names to arrays that wrappers may read; Brax's `"truncation"`, 1 where a
        time limit is why `done` is 1, is the only one that this package reads.
    """

    pipeline_state: Any
    obs: jax.Array  # [obs_dim]
    reward: jax.Array  # []
    done: jax.Array  # []
    metrics: dict[str, jax.Array]
    info: dict[str, Any]


class Env(Protocol):
    """What can be trained on: one environment, unbatched; the caller vmaps.

    `step` may be called beyond the end of an episode. Two attributes are optional, and
    None stands for their absence:

    - `termination(obs, action, next_obs)`: a `types.TerminationFn`, what imagined
      rollouts end by. Without it the config must say what else they end by.
    - `episode_length`: after how many steps an episode is cut.

    Pictures read three more, see `render`: a wrapper's `unwrap(state)`, which returns
    the wrapped environment and its state; `dt`, the seconds of a step; and
    `outline(state)`, the points of a drawing.

    Attributes:
      observation_size: the number of dimensions of an observation.
      action_size: the number of dimensions of an action, each in [-1, 1]; scaling to
        torques or forces is up to the environment.
    """

    observation_size: int
    action_size: int

    def reset(self, key: jax.Array) -> State:
        """A typed key to the first state of an episode."""

    def step(self, state: State, action: jax.Array) -> State:
        """A state and `[action_dim]`, each in [-1, 1], to the next state."""


def around(
    inner: Any, pipeline_state: Any, *, obs: jax.Array, reward: jax.Array
) -> State:
    """The state of a wrapper: its own where it differs, the wrapped one's elsewhere.

    Args:
      inner: the state of the wrapped environment, of any class.
      pipeline_state: what the wrapper needs for its next step, `inner` included.
      obs: `[obs_dim]`, as the wrapper shows it.
      reward: `[]`, as the wrapper counts it.

    Returns:
      A `State` with `done`, `metrics` and `info` of `inner`.
    """
    return State(
        pipeline_state=pipeline_state,
        obs=obs,
        reward=reward,
        done=inner.done,
        metrics=inner.metrics,
        info=inner.info,
    )


def unwrapped(env: Any, state: Any) -> tuple[Any, Any]:
    """The environment inside all wrappers, and its part of a state.

    Args:
      env: an environment, or a wrapper with `unwrap(state)`.
      state: of `env`.

    Returns:
      `(env, state)` of the innermost one.
    """
    while hasattr(env, "unwrap"):
        env, state = env.unwrap(state)
    return env, state


def all_finite(*arrays: jax.Array) -> jax.Array:
    """Whether no number is NaN or infinite.

    Args:
      *arrays: any shapes.

    Returns:
      A bool scalar.
    """
    return jnp.array([jnp.isfinite(array).all() for array in arrays]).all()


def check_env(env: Any) -> None:
    """Raises where an environment can't be trained on; traces it, compiles nothing.

    Args:
      env: any object in the form of `Env`.

    Raises:
      EnvError: a missing or unfit attribute or method, a step that doesn't trace, an
        unfit shape or type, or a state that changes its structure from reset to step.
    """
    where = f"env {name_of(env)}"
    _check_attributes(env, where)
    key = jax.eval_shape(lambda: jax.random.key(0))
    action = jax.ShapeDtypeStruct((env.action_size,), jnp.result_type(float))
    first = _trace(env.reset, (key,), f"{where}: reset")
    _check_state(first, env.observation_size, f"{where}: reset")
    # Weak types are forgotten: a loop that carries the state forgets them too.
    first = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first
    )
    second = _trace(env.step, (first, action), f"{where}: step")
    _check_state(second, env.observation_size, f"{where}: step")
    _check_same_tree(first, second, where)
    if getattr(env, "termination", None) is not None:
        _check_termination(env.termination, (first.obs, action, second.obs), where)


def name_of(env: Any) -> str:
    """What messages call an environment.

    Args:
      env: an environment or, by mistake, its class.

    Returns:
      The name of its class.
    """
    return env.__name__ if isinstance(env, type) else type(env).__name__


def one_line(error: Exception) -> str:
    """What an exception says, cut to its first line.

    Args:
      error: any exception.

    Returns:
      Its class and the first line of its message.
    """
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least one, and not True.

    Args:
      value: anything.

    Returns:
      The answer.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_whole and value > 0


def _check_attributes(env: Any, where: str) -> None:
    if isinstance(env, type):
        raise EnvError(f"{where}: it is a class; an instance is accepted; construct it")
    for name in ("reset", "step", "observation_size", "action_size"):
        try:
            getattr(env, name)
        except Exception as error:
            raise EnvError(
                f"{where}: {name} can't be read ({one_line(error)}); reset(key), "
                "step(state, action), observation_size and action_size are needed"
            ) from error
    for name in ("observation_size", "action_size", "episode_length"):
        value = getattr(env, name, None)
        if not is_count(value) and not (name == "episode_length" and value is None):
            raise EnvError(
                f"{where}: {name}={value!r}; a whole number of at least 1 is accepted; "
                "an observation or an action is one vector, not pixels or a dict"
            )
    _check_call(env.reset, ("key",), f"{where}: reset")
    _check_call(env.step, ("state", "action"), f"{where}: step")


def _check_call(function: Any, arguments: tuple[str, ...], where: str) -> None:
    accepted = f"({', '.join(arguments)}) is accepted"
    if not callable(function):
        raise EnvError(f"{where} is no function; {accepted}; make it a method")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # Not every callable can say what it takes; tracing finds out.
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise EnvError(
            f"{where} takes {signature}; {accepted}; {one_line(error)}"
        ) from None


def _trace(function: Callable, arguments: tuple[Any, ...], where: str) -> Any:
    """What `function` returns, as shapes; a failure becomes one line."""
    before = _host_generators()
    try:
        # A fresh function each time: JAX remembers the traces of the others.
        result = jax.eval_shape(lambda *inner: function(*inner), *arguments)
    except Exception as error:
        raise EnvError(
            f"{where} fails when JAX traces it{_place(error)}: "
            f"{one_line(error)}; a pure function of its arguments is accepted; use "
            "jax.numpy and jax.lax in place of Python's if, float() and NumPy"
        ) from error
    if _host_generators() != before:
        raise EnvError(
            f"{where} draws from a global generator of Python or NumPy, which would be "
            "done once and compiled in; draw with jax.random from the key of reset"
        )
    return result


def _host_generators() -> tuple[Any, ...]:
    """Where the global generators stand, which no pure function moves."""
    _, words, *position = np.random.get_state()  # noqa: NPY002  (it is watched, not used)
    return words.tobytes(), position, random.getstate()


def _place(error: Exception) -> str:
    """The last line of code outside JAX and this file that an error passed through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith(_JAX_FOLDER)
    ]
    last = frames[-1:]
    return "".join(f" ({os.path.basename(f.filename)}:{f.lineno})" for f in last)


def _check_state(state: Any, observation_size: int, where: str) -> None:
    for name in ("obs", "reward", "done", "metrics", "info"):
        if not hasattr(state, name):
            raise EnvError(
                f"{where} returned {type(state).__name__} without {name}; "
                f"{_ACCEPTED_STATE} is accepted; return vagram_jax.envs.State"
            )
    wanted = (
        f"a float vector [{observation_size}], as observation_size says, is accepted"
    )
    if not hasattr(state.obs, "shape"):
        raise EnvError(
            f"{where} returned obs of type {type(state.obs).__name__}; {wanted}; "
            "concatenate its parts to one vector"
        )
    if state.obs.shape != (observation_size,):
        raise EnvError(f"{where} returned obs {_text(state.obs)}; {wanted}; reshape it")
    if not jnp.issubdtype(state.obs.dtype, jnp.floating):
        raise EnvError(f"{where} returned obs {_text(state.obs)}; {wanted}; cast it")
    _check_scalar(state.reward, (jnp.floating,), f"{where} returned reward")
    _check_scalar(state.done, (jnp.floating, jnp.bool_), f"{where} returned done")
    for name in ("metrics", "info"):
        kind = type(getattr(state, name)).__name__
        if not isinstance(getattr(state, name), Mapping):
            raise EnvError(
                f"{where} returned {name} of type {kind}; a dict is accepted"
            )
    if "truncation" in state.info:
        accepted = (jnp.number, jnp.bool_)
        truncation = state.info["truncation"]
        _check_scalar(truncation, accepted, f"{where} returned info['truncation']")


def _check_scalar(value: Any, kinds: tuple[Any, ...], where: str) -> None:
    has_kind = hasattr(value, "dtype") and any(
        jnp.issubdtype(value.dtype, kind) for kind in kinds
    )
    if not has_kind or value.shape != ():
        raise EnvError(
            f"{where} {_text(value)}; a float scalar, shape (), is accepted; "
            "index or sum an axis away, and cast with astype(jnp.float32)"
        )


def _check_same_tree(first: Any, second: Any, where: str) -> None:
    before, after = _leaves(first), _leaves(second)
    for path in before | after:
        if before.get(path) != after.get(path):
            raise EnvError(
                f"{where}: state{path} is {before.get(path, 'absent')} after reset and "
                f"{after.get(path, 'absent')} after step; one of both is accepted; "
                "make reset and step return it alike"
            )
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise EnvError(
            f"{where}: the state's structure after step differs from that after reset; "
            "the same in both is accepted; make them return the same classes and dicts"
        )


def _leaves(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): _text(leaf) for path, leaf in leaves}


def _check_termination(function: Any, arguments: tuple[Any, ...], where: str) -> None:
    where = f"{where}: termination"
    _check_call(function, ("obs", "action", "next_obs"), where)
    result = _trace(function, arguments, where)
    if getattr(result, "shape", None) != () or result.dtype != jnp.bool_:
        raise EnvError(
            f"{where} returned {_text(result)}; a bool scalar, shape (), is accepted; "
            "compare numbers, and reduce with all() or any()"
        )


def _text(value: Any) -> str:
    if not hasattr(value, "dtype"):
        return f"of type {type(value).__name__}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
