"""The environment protocol, and `check_env`, which checks an environment against it.

The protocol has the shape of Brax's, without inheritance. `check_env` traces an
environment of this package, of another library or of the user, and compiles nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import numbers
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax import user_code

# Half precision would round observations that tasks compute in single precision.
_FLOATS = (jnp.float32, jnp.float64)
_ACCEPTED_STATE = "a State with obs, reward, done, metrics and info"


class EnvError(ValueError):
    """An environment that can't be used. The message is one line.

    Attributes:
      status: the exit status of a command that fails with this error.
    """

    status = 2


class BrokenEnvError(EnvError):
    """The code of an environment raises an exception or breaks the protocol."""

    status = user_code.STATUS


@struct.dataclass(kw_only=True)
class State:
    """The state of an environment between two steps.

    Attributes:
      pipeline_state: any pytree; only the environment reads it.
      obs: `[obs_dim]`, in the units of the task.
      reward: `[]`, of the step that led here; 0 after a reset.
      done: `[]` float, 1 if the episode ended at this step, else 0.
      metrics: scalars or vectors by name, for people to look at; see
        `recorded_metrics` of `Env`.
      info: arrays by name. This package reads only Brax's `"truncation"`, which is 1
        if a time limit is why the episode ended.
    """

    pipeline_state: Any
    obs: jax.Array  # [obs_dim]
    reward: jax.Array  # []
    done: jax.Array  # []
    metrics: dict[str, jax.Array]
    info: dict[str, Any]


class Env(Protocol):
    """An environment. Its functions are unbatched; the caller vmaps them.

    `step` may be called after the end of an episode. Three attributes are optional and
    may be None:

    - `termination(obs, action, next_obs)`: a `types.TerminationFn`, which ends imagined
      rollouts. Without it the config must choose another way to end them.
    - `episode_length`: the number of steps after which an episode is truncated.
    - `recorded_metrics`: names of entries of the state's `metrics` that evaluations sum
      over an episode, for columns `env/NAME` of `metrics.csv`; None means all.

    Films (see `render`) use three more: `unwrap(state)` of a wrapper returns the
    wrapped environment and its state; `dt` is the duration of a step in s;
    `outline(state)` returns the points of a drawing.

    Attributes:
      observation_size: number of dimensions of an observation.
      action_size: number of dimensions of an action. Each is in [-1, 1]; the
        environment scales it to torques or forces.
    """

    observation_size: int
    action_size: int

    def reset(self, key: jax.Array) -> State:
        """Returns the first state of an episode, drawn with a typed key."""
        ...

    def step(self, state: State, action: jax.Array) -> State:
        """Returns the state after an action `[action_dim]` in [-1, 1]."""
        ...


def wrapper_state(
    inner: Any, pipeline_state: Any, *, obs: jax.Array, reward: jax.Array
) -> State:
    """Returns the state of a wrapper.

    Args:
      inner: state of the wrapped environment, of any class; its `done`, `metrics` and
        `info` are kept.
      pipeline_state: what the wrapper needs for its next step, including `inner`.
      obs: `[obs_dim]`, the wrapper's observation.
      reward: `[]`, the wrapper's reward.
    """
    return State(
        pipeline_state=pipeline_state,
        obs=obs,
        reward=reward,
        done=inner.done,
        metrics=inner.metrics,
        info=inner.info,
    )


def recorded_metrics(env: Env, state: Any) -> dict[str, jax.Array]:
    """Returns the metrics of a state that evaluations record.

    Args:
      env: the environment.
      state: one of its states.

    Returns:
      Names to scalars or vectors.
    """
    names = getattr(env, "recorded_metrics", None)
    return {
        name: state.metrics[name]
        for name in (state.metrics if names is None else names)
    }


def unwrapped(env: Any, state: Any) -> tuple[Any, Any]:
    """Returns the environment inside all wrappers, and its state.

    Args:
      env: an environment, or a wrapper with `unwrap(state)`.
      state: a state of `env`.
    """
    while hasattr(env, "unwrap"):
        env, state = env.unwrap(state)
    return env, state


def all_finite(*arrays: jax.Array) -> jax.Array:
    """Returns a bool scalar: no array contains NaN or infinity."""
    return jnp.array([jnp.isfinite(array).all() for array in arrays]).all()


def check_env(env: Any) -> None:
    """Raises an error if an environment can't be trained on.

    It traces `reset`, `step` and `termination` and compiles nothing.

    Args:
      env: any object that should conform to `Env`.

    Raises:
      BrokenEnvError: an attribute or method is missing or unsuitable, a function
        can't be traced, or a shape, a type or the structure of the state is wrong.
    """
    where = f"env {name_of(env)}"
    _check_attributes(env, where)
    key = jax.eval_shape(lambda: jax.random.key(0))
    action = jax.ShapeDtypeStruct((env.action_size,), jnp.result_type(float))
    first = _trace(env.reset, (key,), f"{where}: reset")
    _check_state(first, env.observation_size, f"{where}: reset")
    # A loop that carries the state drops weak types, so they are dropped here, too.
    first = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first
    )
    second = _trace(env.step, (first, action), f"{where}: step")
    _check_state(second, env.observation_size, f"{where}: step")
    _check_same_tree(first, second, where)
    _check_metrics(env, second, where)
    if getattr(env, "termination", None) is not None:
        _check_termination(env.termination, (first.obs, action, second.obs), where)


def name_of(env: Any) -> str:
    """Returns the class name of an environment (or of a class), for messages.

    With this package's wrappers around it, it is the name of what they wrap.
    """
    while hasattr(env, "unwrap") and hasattr(env, "_env"):
        env = env._env
    return env.__name__ if isinstance(env, type) else type(env).__name__


@contextlib.contextmanager
def as_env_error(action: str) -> Iterator[None]:
    """Turns an exception inside the block into a `BrokenEnvError` of one line.

    Args:
      action: the environment and what is done with it, which begins the message.

    Raises:
      BrokenEnvError: the block raised an exception.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        is_ours = isinstance(error, EnvError)
        text = str(error) if is_ours else f"{user_code.one_line(error)}; repair it"
        raise BrokenEnvError(f"{action} raised {text}") from error


def is_count(value: Any) -> TypeGuard[int]:
    """Returns whether a value is a whole number of at least 1 (and not True)."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_whole and int(value) > 0


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises an error that lists the accepted values if a value isn't one of them.

    Args:
      name: where the value is set and what it is called, as in `"env ant: physics"`.
      value: the value.
      choices: the accepted values.

    Raises:
      EnvError: `value` is not one of `choices`.
    """
    if value not in choices:
        raise EnvError(f"{name}={value!r}; accepted: {', '.join(choices)}")


def _check_attributes(env: Any, where: str) -> None:
    if isinstance(env, type):
        raise BrokenEnvError(
            f"{where}: it is a class; an instance is accepted; construct it"
        )
    for name in ("reset", "step", "observation_size", "action_size"):
        try:
            getattr(env, name)
        except (Exception, SystemExit) as error:
            raise BrokenEnvError(
                f"{where}: {name} can't be read ({user_code.one_line(error)}); "
                "reset(key), step(state, action), observation_size and action_size are "
                "needed"
            ) from error
    for name in ("observation_size", "action_size", "episode_length"):
        value = getattr(env, name, None)
        if not is_count(value) and not (name == "episode_length" and value is None):
            raise BrokenEnvError(
                f"{where}: {name}={value!r}; a whole number of at least 1 is accepted; "
                "an observation or an action is one vector, not pixels or a dict"
            )
    _check_call(env.reset, ("key",), f"{where}: reset")
    _check_call(env.step, ("state", "action"), f"{where}: step")


def _check_call(function: Any, arguments: tuple[str, ...], where: str) -> None:
    accepted = f"({', '.join(arguments)}) is accepted"
    if not callable(function):
        raise BrokenEnvError(f"{where} is not a function; {accepted}; make it a method")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # Some callables have no signature; tracing reports a wrong call.
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise BrokenEnvError(
            f"{where} takes {signature}; {accepted}; {user_code.one_line(error)}"
        ) from None


def _trace(function: Callable, arguments: tuple[Any, ...], where: str) -> Any:
    """Returns the shapes of what `function` returns; raises a failure as one line."""
    before = _host_generators()
    try:
        # A new function each time, because JAX caches traces by function.
        result = jax.eval_shape(lambda *inner: function(*inner), *arguments)
    except (Exception, SystemExit) as error:
        raise BrokenEnvError(
            f"{where} fails when JAX traces it: {user_code.one_line(error)}; a pure "
            "function of its arguments is accepted; use jax.numpy and jax.lax in place "
            "of Python's if, float() and NumPy"
        ) from error
    if _host_generators() != before:
        raise BrokenEnvError(
            f"{where} draws from a global generator of Python or NumPy, which would "
            "happen only once, at compilation; use jax.random and the key of reset"
        )
    return result


def _host_generators() -> tuple[Any, ...]:
    """Returns the states of the global generators; no pure function changes them."""
    _, words, *position = np.random.get_state()  # noqa: NPY002 - it is only compared
    return words.tobytes(), position, random.getstate()


def _check_state(state: Any, observation_size: int, where: str) -> None:
    for name in ("obs", "reward", "done", "metrics", "info"):
        if not hasattr(state, name):
            raise BrokenEnvError(
                f"{where} returned {type(state).__name__} without {name}; "
                f"{_ACCEPTED_STATE} is accepted; return vagram_jax.envs.State"
            )
    accepted = (
        f"a float32 vector [{observation_size}], as observation_size says, is accepted"
    )
    if not hasattr(state.obs, "shape"):
        raise BrokenEnvError(
            f"{where} returned obs of type {type(state.obs).__name__}; {accepted}; "
            "concatenate its parts into one vector"
        )
    if state.obs.shape != (observation_size,):
        raise BrokenEnvError(
            f"{where} returned obs {_text(state.obs)}; {accepted}; reshape it"
        )
    if state.obs.dtype not in _FLOATS:
        raise BrokenEnvError(
            f"{where} returned obs {_text(state.obs)}; {accepted}; cast it"
        )
    _check_scalar(state.reward, _FLOATS, f"{where} returned reward")
    _check_scalar(state.done, (jnp.floating, jnp.bool_), f"{where} returned done")
    for name in ("metrics", "info"):
        kind = type(getattr(state, name)).__name__
        if not isinstance(getattr(state, name), Mapping):
            raise BrokenEnvError(
                f"{where} returned {name} of type {kind}; a dict is accepted"
            )
    if "truncation" in state.info:
        kinds = (jnp.number, jnp.bool_)
        truncation = state.info["truncation"]
        _check_scalar(truncation, kinds, f"{where} returned info['truncation']")


def _check_scalar(value: Any, kinds: tuple[Any, ...], where: str) -> None:
    has_kind = hasattr(value, "dtype") and any(
        jnp.issubdtype(value.dtype, kind) for kind in kinds
    )
    if not has_kind or value.shape != ():
        raise BrokenEnvError(
            f"{where} {_text(value)}; a float scalar, shape (), is accepted; "
            "index or sum an axis away, and cast with astype(jnp.float32)"
        )


def _check_same_tree(first: Any, second: Any, where: str) -> None:
    before, after = _leaves(first), _leaves(second)
    for path in before | after:
        if before.get(path) != after.get(path):
            raise BrokenEnvError(
                f"{where}: state{path} is {before.get(path, 'absent')} after reset and "
                f"{after.get(path, 'absent')} after step; one of the two is accepted; "
                "make reset and step return the same shape and type"
            )
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise BrokenEnvError(
            f"{where}: the state's structure after step differs from that after reset; "
            "the same in both is accepted; make them return the same classes and dicts"
        )


def _check_metrics(env: Any, state: Any, where: str) -> None:
    """Refuses recorded metrics that can't become columns of a table."""
    for name in getattr(env, "recorded_metrics", None) or ():
        if name not in state.metrics:
            known = ", ".join(state.metrics) or "none"
            raise BrokenEnvError(
                f"{where}: recorded_metrics has {name!r}; the state's metrics are: "
                f"{known}; correct the name"
            )
    for name, value in recorded_metrics(env, state).items():
        if not hasattr(value, "dtype") or len(value.shape) > 1:
            raise BrokenEnvError(
                f"{where}: step returned metrics[{name!r}] {_text(value)}; a scalar or "
                "a vector is accepted; reduce it, or leave it out of recorded_metrics"
            )


def _leaves(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): _text(leaf) for path, leaf in leaves}


def _check_termination(function: Any, arguments: tuple[Any, ...], where: str) -> None:
    where = f"{where}: termination"
    _check_call(function, ("obs", "action", "next_obs"), where)
    result = _trace(function, arguments, where)
    if getattr(result, "shape", None) != () or result.dtype != jnp.bool_:
        raise BrokenEnvError(
            f"{where} returned {_text(result)}; a bool scalar, shape (), is accepted; "
            "compare numbers, and reduce with all() or any()"
        )


def _text(value: Any) -> str:
    if not hasattr(value, "dtype"):
        return f"of type {type(value).__name__}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
