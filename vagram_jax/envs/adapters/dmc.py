"""Environments of dm_control's suite, stepped on the host like those of Gymnasium."""

from __future__ import annotations

import functools
import warnings
from importlib import metadata
from typing import Any

import numpy as np

from vagram_jax import user_code
from vagram_jax.envs import base
from vagram_jax.envs.adapters import gymnasium, imports

_INSTALL = '"vagram_jax[dmc]"'
_EPISODE_LENGTH = 1000  # steps, as in all tasks of the suite that have a limit


def make(
    name: str, *, observation: str = "", physics: str = "auto"
) -> gymnasium.GymnasiumEnv:
    """Returns a task of dm_control's suite, with episodes of at most 1000 steps.

    The entries of an observation are flattened and concatenated in their order. An
    episode that ends with a discount of 0 has terminated, any other was truncated.

    Args:
      name: `"DOMAIN-TASK"`, such as `"cartpole-swingup"`.
      observation: only the default is accepted.
      physics: only the default is accepted.

    Raises:
      EnvError: dm_control isn't installed or doesn't work with this MuJoCo, it has no
        such task, or as `GymnasiumEnv`.
    """
    where = f"env dmc:{name}"
    gymnasium.refuse_options(where, observation, physics)
    with warnings.catch_warnings():
        # Without a screen, GLFW warns; nothing is drawn here.
        warnings.simplefilter("ignore", UserWarning)
        suite = imports.library("dm_control.suite", where, install=_INSTALL)
    spaces = imports.library("gymnasium.spaces", where, install=_INSTALL)
    tasks = {f"{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}
    imports.check_known(name, tasks, where)
    load = functools.partial(suite.load, *tasks[name])
    construct = functools.partial(_Task, load, spaces.Box)
    try:
        return gymnasium.GymnasiumEnv(
            construct, f"dmc:{name}", episode_length=_EPISODE_LENGTH
        )
    except base.EnvError as error:
        cause = error.__cause__
        if not isinstance(cause, AttributeError):
            raise
        # dm_control looks up every field of MuJoCo's structures by its name.
        versions = [f"{x} {metadata.version(x)}" for x in ("dm_control", "mujoco")]
        raise base.EnvError(
            f"{where}: {user_code.reason(cause)}; "
            f"{' may be too old for '.join(versions)}; pip install {_INSTALL}"
        ) from error


class _Task:
    """A task with the methods and attributes of `gymnasium.Env` that the adapter uses.

    It draws from a generator of its own, which a reset seeds. A model that is drawn, as
    that of `lqr`, is always the one of seed 0.
    """

    spec = None

    def __init__(self, load: Any, box: Any):
        # The suite takes no `numpy.random.Generator`.
        self._random = np.random.RandomState(0)
        self._env = load(task_kwargs={"random": self._random})
        shapes = (each.shape for each in self._env.observation_spec().values())
        size = sum(int(np.prod(shape)) for shape in shapes)
        self.observation_space = box(-np.inf, np.inf, (size,), np.float64)
        action = self._env.action_spec()
        low, high = (
            np.broadcast_to(bound, action.shape).astype(action.dtype)
            for bound in (action.minimum, action.maximum)
        )
        self.action_space = box(low, high, action.shape, action.dtype)

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self._random.seed(seed)
        return _flat(self._env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        after = self._env.step(action)
        terminated = after.last() and after.discount == 0
        truncated = after.last() and not terminated
        return _flat(after.observation), after.reward, terminated, truncated, {}


def _flat(observation: Any) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()])
