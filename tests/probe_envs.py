"""Toy environments whose numbers are known, and broken environments."""

# ruff: noqa: D102  (the methods are the protocol's, described there)

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax.envs import base


def counter_state(count, reward=1.0, done=0.0, info=None, key=None) -> base.State:
    """A state that observes a count and two numbers drawn with a key."""
    count = jnp.asarray(count, jnp.float32)
    drawn = jnp.zeros((2,)) if key is None else jax.random.uniform(key, (2,))
    return base.State(
        pipeline_state=drawn,
        obs=jnp.stack([count, *drawn]),
        reward=jnp.asarray(reward, jnp.float32),
        done=jnp.asarray(done, jnp.float32),
        metrics={},
        info={} if info is None else info,
    )


class Counter:
    """Observes the number of steps so far and two numbers drawn at reset.

    `info` has another count and a typed key that changes, so that tests notice a reset
    that leaves one of them. The episode terminates after `ends_after` steps, if not 0.
    """

    observation_size = 3
    action_size = 1

    def __init__(self, ends_after: int = 0, nan_at: int = 0, nan_in: str = "obs"):
        self._ends_after, self._nan_at, self._nan_in = ends_after, nan_at, nan_in

    def reset(self, key):
        key, key_info = jax.random.split(key)
        info = {"count": jnp.zeros((), jnp.int32), "key": key_info, "seen": {"x": 0.0}}
        return counter_state(0, reward=0.0, info=info, key=key)

    def step(self, state, action):
        count = state.obs[0] + 1
        key, _ = jax.random.split(state.info["key"])
        info = {"count": state.info["count"] + 1, "key": key, "seen": {"x": count}}
        done = (count == self._ends_after).astype(jnp.float32)
        obs = jnp.concatenate([count[None], state.obs[1:]])
        state = state.replace(obs=obs, reward=jnp.ones(()), done=done, info=info)
        bad = jnp.where(count == self._nan_at, jnp.nan, 0.0)
        return state.replace(
            **{self._nan_in: getattr(state, self._nan_in) + bad} if self._nan_at else {}
        )

    def termination(self, obs, action, next_obs):
        return ~(next_obs[0] != self._ends_after)


class Flagged:
    """Sets done if action[0] > 0 and truncation if action[1] > 0."""

    observation_size = 3
    action_size = 2

    def reset(self, key):
        return counter_state(0, info={"truncation": jnp.zeros(())}, key=key)

    def step(self, state, action):
        done, truncation = (action > 0).astype(jnp.float32)
        info = {"truncation": truncation}
        return counter_state(state.obs[0] + 1, done=done, info=info).replace(
            pipeline_state=state.pipeline_state
        )


class Salary:
    """Pays a reward of one for each step, so that values are geometric sums.

    If it terminates, after `ends_after` steps, it observes the fraction of them that is
    over. If not (0), the observation is always zero.
    """

    observation_size = 1
    action_size = 1

    def __init__(self, ends_after: int = 0):
        self._step = 1.0 / ends_after if ends_after else 0.0

    def reset(self, key):
        return base.State(
            pipeline_state=(),
            obs=jnp.zeros(1),
            reward=jnp.zeros(()),
            done=jnp.zeros(()),
            metrics={},
            info={},
        )

    def step(self, state, action):
        obs = state.obs + self._step
        # Half a step below the end: sums of fifths are rounded.
        is_over = obs[0] > 1.0 - 0.5 * self._step if self._step else False
        return state.replace(obs=obs, reward=jnp.ones(()), done=jnp.float32(is_over))


@struct.dataclass
class ForeignState:
    """A state of another package: other fields and no pipeline_state."""

    data: Any
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class Foreign:
    """An environment of another package: weak types, a bool done, its own state."""

    observation_size = 2
    action_size = 1

    def reset(self, key):
        obs = jax.random.normal(key, (2,))
        return ForeignState({"t": 0}, obs, 0.0, False, {"height": 0.0}, {})

    def step(self, state, action):
        height = jnp.sum(action)
        data = {"t": state.data["t"] + 1}
        return ForeignState(
            data, state.obs + action, height, False, {"height": 1.0}, {}
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["obs", "reward", "done", "metrics", "info"],
    meta_fields=[],
)
class BraxStubState(types.SimpleNamespace):
    """A state as in Brax."""


class BraxStub:
    """Has Brax's interface: it takes raw keys and writes into the state it is given."""

    action_size = 2

    def __init__(self, as_dict=False):
        self._as_dict = as_dict

    def _state(self, obs, key, count):
        return BraxStubState(
            obs={"state": obs, "privileged": obs[:1]} if self._as_dict else obs,
            reward=obs.sum(),
            done=0.0,
            metrics={"count": count},
            info={"key": key},
        )

    def reset(self, key):
        return self._state(jax.random.normal(key, (2,)), key, 0)

    def step(self, state, action):
        obs = state.obs["state"] if self._as_dict else state.obs
        state.metrics["count"] += 1
        return self._state(obs + action, state.info["key"], state.metrics["count"])


class Broken(Counter):
    """A `Counter` whose reset and step return a state with some fields replaced."""

    def __init__(self, both=None, only_step=None, **attributes):
        super().__init__()
        self._both, self._only_step = both or {}, only_step or {}
        for name, value in attributes.items():
            setattr(self, name, value)

    def reset(self, key):
        return super().reset(key).replace(**self._both)

    def step(self, state, action):
        return counter_state(1.0, info=state.info).replace(
            **(self._both | self._only_step)
        )


class Gymnasium:
    """An environment with Gymnasium's interface, a likely mistake."""

    observation_size = 3
    action_size = 1

    def reset(self, *, seed=None, options=None):
        return np.zeros(3), {}

    def step(self, action):
        return np.zeros(3), 0.0, False, False, {}


class TupleState(Counter):
    """`reset` returns a tuple instead of a state."""

    def reset(self, key):
        return jnp.zeros(3), {}


class PythonIf(Counter):
    """`step` branches on a traced number."""

    def step(self, state, action):
        return state if float(action[0]) > 0 else super().step(state, action)


class HostNoise(Counter):
    """`reset` draws from NumPy's global generator."""

    def reset(self, key):
        state = super().reset(key)
        noise = np.random.normal(size=3).astype(np.float32)  # noqa: NPY002
        return state.replace(obs=state.obs + noise)


class Exits(Counter):
    """`step` ends the process, with the exit status of success."""

    def step(self, state, action):
        sys.exit(0)


class Costly(Counter):
    """Its constructor fails, as if a model file were missing."""

    def __init__(self):
        raise FileNotFoundError("model.xml is missing\nand more")


instance = Counter()


def factory():
    """An environment, made by a function."""
    return Counter(ends_after=4)
