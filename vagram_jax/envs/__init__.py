"""Where experience comes from: environments by name, checked, with their options.

Comes in: a name and options. Goes out: an environment that training can step. A new
task is one row of `ENVS`; a task of the user's needs no row, only an import path.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from typing import Any

from flax import struct

from vagram_jax.config import ConfigError, from_mapping, static
from vagram_jax.envs.base import Env, EnvError, State, check_env, one_line
from vagram_jax.envs.distractors import KINDS, Distractors
from vagram_jax.envs.episodes import Paced
from vagram_jax.envs.mujoco import physics

__all__ = [
    "ENVS",
    "Distractors",
    "Env",
    "EnvConfig",
    "EnvError",
    "Paced",
    "State",
    "check_env",
    "from_config",
    "make",
    "resolved",
]

# Paths and not classes: what a task needs is imported when it is asked for.
ENVS = {
    "ant": "vagram_jax.envs.mujoco.tasks:ant",
    "cartpole_swingup": "vagram_jax.envs.classic:CartpoleSwingup",
    "halfcheetah": "vagram_jax.envs.mujoco.tasks:halfcheetah",
    "hopper": "vagram_jax.envs.mujoco.tasks:hopper",
    "humanoid": "vagram_jax.envs.mujoco.tasks:humanoid",
    "inverted_double_pendulum": "vagram_jax.envs.mujoco.tasks:inverted_double_pendulum",
    "inverted_pendulum": "vagram_jax.envs.mujoco.tasks:inverted_pendulum",
    "pendulum": "vagram_jax.envs.classic:Pendulum",
    "walker2d": "vagram_jax.envs.mujoco.tasks:walker2d",
}
"""The environments by name, each as `"path.module:attribute"`."""

_UNSET = ("", "auto")

COLLECTIONS = {
    "brax": "vagram_jax.envs.adapters.foreign:brax_env",
    "gymnasium": "vagram_jax.envs.adapters.foreign:gymnasium_env",
    "playground": "vagram_jax.envs.adapters.foreign:playground_env",
}
"""Who else has environments; `"<collection>:<name>"` is one of theirs."""


@struct.dataclass(kw_only=True)
class EnvConfig:
    """Which environment, and what is put around it, in the order of the fields.

    Attributes:
      env: one of `ENVS`; one of another collection, such as `"brax:hopper"`; or
        `"path.module:attribute"`, where the attribute is a class or a function that
        makes an environment, or an environment.
      observation: the form of the observation, where an environment offers several;
        empty for its own default.
      physics: what simulates, where an environment offers several; "auto" for the
        quickest here.
      action_repeat: how many steps an action lasts; rewards are summed.
      episode_length: after how many actions an episode is cut; 0 for its own length.
      distractors: how many dimensions to append that don't matter. They move once
        per action, however often that is repeated.
      distractor_kind: one of `distractors.KINDS`.
      distractor_scale: what the appended dimensions are multiplied with.
      distractor_seed: what the dynamics of the appended dimensions are drawn from.
    """

    env: str = static("pendulum")
    observation: str = static("")
    physics: str = static("auto")
    action_repeat: int = static(1, low=1)
    episode_length: int = static(0, low=0)
    distractors: int = static(0, low=0)
    distractor_kind: str = static("chaotic", choices=tuple(KINDS))
    distractor_scale: float = static(1.0, above=0)
    distractor_seed: int = static(0, low=0, high=2**32 - 1)


def make(env: str, **options: Any) -> Env:
    """An environment by name, checked.

    Args:
      env: as in `EnvConfig`.
      **options: the other fields of `EnvConfig`.

    Returns:
      The environment.

    Raises:
      ConfigError: an unknown name or option, or a value out of range.
      EnvError: the environment can't be made or can't be trained on.

    Example:
      >>> make("pendulum", distractors=10).observation_size
      13
    """
    return from_config(from_mapping(EnvConfig, {"env": env, **options}))


def from_config(config: EnvConfig) -> Env:
    """The environment that a config describes, checked.

    Args:
      config: which environment and what is put around it.

    Returns:
      The environment.

    Raises:
      ConfigError: an unknown environment.
      EnvError: the environment can't be made or can't be trained on.
    """
    env = _construct(config)
    check_env(env)
    if config.action_repeat > 1 or config.episode_length:
        env = Paced(env, config.action_repeat, config.episode_length)
    if config.distractors:
        env = Distractors(
            env,
            config.distractors,
            config.distractor_kind,
            scale=config.distractor_scale,
            seed=config.distractor_seed,
        )
    return env


def resolved(config: EnvConfig) -> EnvConfig:
    """A config without "auto" where this package chooses the physics.

    Args:
      config: which environment and what is put around it.

    Returns:
      The config for the record: a comparison or a run that goes on mustn't mix two.
    """
    if ENVS.get(config.env, "").startswith("vagram_jax.envs.mujoco.tasks:"):
        return config.replace(physics=physics.chosen(config.physics))
    return config


def _construct(config: EnvConfig) -> Any:
    options = {"observation": config.observation, "physics": config.physics}
    options = {name: value for name, value in options.items() if value not in _UNSET}
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    target = _find(config.env)
    if hasattr(target, "step") and not isinstance(target, type):
        if options:
            raise EnvError(
                f"env {config.env}: {given}, but it is made already; leave it out, or "
                "name its class"
            )
        return target
    try:
        return target(**options)
    except EnvError:
        raise
    except Exception as error:
        way = f" with {given}" if given else ""
        raise EnvError(
            f"env {config.env}: making it{way} raised {one_line(error)}; a class or "
            "function without needed arguments is accepted; wrap it in a function"
        ) from error


def _find(name: str) -> Any:
    """What a name or an import path stands for."""
    collection, _, inner = name.partition(":")
    if collection in COLLECTIONS:
        return functools.partial(_find(COLLECTIONS[collection]), inner)
    module_name, colon, attribute = ENVS.get(name, name).partition(":")
    if not (module_name and colon and attribute):
        near = difflib.get_close_matches(name, ENVS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        others = ", ".join(f"{collection}:NAME" for collection in COLLECTIONS)
        raise ConfigError(
            f"config: env={name!r}; known: {', '.join(ENVS)}, {others}, or "
            f"path.module:ClassName{hint}"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"config: env={name!r}; {one_line(error)}; an importable module is "
            "accepted; check the spelling and PYTHONPATH"
        ) from error
    except Exception as error:
        raise EnvError(
            f"env {name}: importing {module_name} raised {one_line(error)}; repair it"
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"did you mean {near[0]}?" if near else "check the spelling"
        raise ConfigError(
            f"config: env={name!r}; {module_name} has no {attribute}; {hint}"
        )
    return getattr(module, attribute)
