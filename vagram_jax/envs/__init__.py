"""Environments by name, with wrappers and checks.

To add a task to this package, write its class or function and add a row to `ENVS`. To
add a library of environments, add a file to `adapters` and a row to `LIBRARIES`. A task
of the user needs neither: its import path is its name.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from typing import Any

from flax import struct

from vagram_jax import config as configs
from vagram_jax import user_code
from vagram_jax.config import ConfigError, check_fields, from_mapping, static
from vagram_jax.envs import distractors
from vagram_jax.envs.base import BrokenEnvError, Env, EnvError, State, check_env
from vagram_jax.envs.distractors import KINDS, Distractors
from vagram_jax.envs.episodes import EpisodeWrapper
from vagram_jax.envs.mujoco import physics

__all__ = [
    "ENVS",
    "LIBRARIES",
    "BrokenEnvError",
    "Distractors",
    "Env",
    "EnvConfig",
    "EnvError",
    "EpisodeWrapper",
    "State",
    "check_env",
    "from_config",
    "make",
    "resolved",
]

# Import paths, so that a task's dependencies are imported only if it is used.
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

LIBRARIES = {
    "brax": "vagram_jax.envs.adapters.brax:make",
    "dmc": "vagram_jax.envs.adapters.dmc:make",
    "gymnasium": "vagram_jax.envs.adapters.gymnasium:make",
    "playground": "vagram_jax.envs.adapters.playground:make",
}
"""Other libraries; `"<library>:<name>"` is one of their environments."""

_UNSET = ("", "auto")


@struct.dataclass(kw_only=True)
class EnvConfig:
    """Config of the environment and its wrappers, in the order of their application.

    Attributes:
      env: the name of a task; an environment of another library, such as
        `"brax:hopper"`; or `"path.module:attribute"`, where the attribute is an
        environment, or a class or function that makes one.
      observation: the form of the observation, if the environment has several: "vector"
        or "state" for pendulum, "truncated" or "full" for ant and humanoid. Empty means
        its default.
      physics: the simulator, if the environment has several; "auto" means the fastest.
      action_repeat: number of steps per action; their rewards are summed.
      episode_length: number of actions per episode; 0 means the environment's own.
      distractors: number of distracting dimensions to append. They change once per
        action, even if it is repeated.
      distractor_kind: kind of dynamics of the distracting dimensions, see
        `Distractors`; or `"path.module:attribute"`, where the attribute is a
        `distractors.Kind`.
      distractor_scale: factor of the distracting dimensions.
      distractor_seed: seed of the distractors' dynamics.
    """

    env: str = static("pendulum", known=ENVS)
    observation: str = static("")
    physics: str = static("auto", known=physics.CHOICES)
    action_repeat: int = static(1, low=1)
    episode_length: int = static(0, low=0)
    distractors: int = static(0, low=0, high=10_000)
    distractor_kind: str = static("chaotic", known=KINDS)
    distractor_scale: float = static(1.0, above=0)
    distractor_seed: int = static(0, low=0, high=2**32 - 1)


def make(env: str, **options: Any) -> Env:
    """Returns an environment by name, checked.

    Args:
      env: as in `EnvConfig`.
      **options: the other fields of `EnvConfig`.

    Raises:
      ConfigError: an unknown name or option, or a value out of range.
      EnvError: the environment can't be made or can't be trained on.
      UserCodeError: a module of the user's own can't be imported.

    Example:
      >>> make("pendulum", distractors=10).observation_size
      13
    """
    return from_config(from_mapping(EnvConfig, {"env": env, **options}))


def from_config(config: EnvConfig) -> Env:
    """Returns the environment that a config describes, checked.

    Raises:
      ConfigError: the environment is unknown, or a value is out of range.
      EnvError: the environment can't be made or can't be trained on.
      UserCodeError: a module of the user's own can't be imported.
    """
    check_fields(config)
    distractors.kind_of(config.distractor_kind)
    env = _construct(config)
    check_env(env)
    if config.action_repeat > 1 or config.episode_length:
        env = EpisodeWrapper(env, config.action_repeat, config.episode_length)
    if config.distractors:
        env = Distractors(
            env,
            config.distractors,
            config.distractor_kind,
            scale=config.distractor_scale,
            seed=config.distractor_seed,
        )
        if config.distractor_kind not in KINDS:
            check_env(env)
    return env


def resolved(config: EnvConfig) -> EnvConfig:
    """Returns a config for the record, with the physics that "auto" stands for.

    A comparison, or a run that is resumed, must not mix two kinds of physics.
    """
    if ENVS.get(config.env, "").startswith("vagram_jax.envs.mujoco.tasks:"):
        return config.replace(physics=physics.resolve(config.physics))
    return config


def _construct(config: EnvConfig) -> Any:
    options = {"observation": config.observation, "physics": config.physics}
    options = {name: value for name, value in options.items() if value not in _UNSET}
    text = ", ".join(f"{name}={value!r}" for name, value in options.items())
    target = _import_target(config.env)
    if hasattr(target, "step") and not isinstance(target, type):
        if options:
            raise EnvError(
                f"env {config.env}: {text}, but it is an instance; leave the option "
                "out, or name its class"
            )
        return target
    if options:
        _check_options(config.env, target, options)
    try:
        return target(**options)
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        with_options = f" with {text}" if text else ""
        raise BrokenEnvError(
            f"env {config.env}: making it{with_options} raised "
            f"{user_code.one_line(error)}; a class or function without required "
            "arguments is accepted; wrap it in a function"
        ) from error


def _check_options(name: str, target: Any, options: dict[str, str]) -> None:
    """Refuses options that the environment doesn't take."""
    try:
        inspect.signature(target).bind_partial(**options)
    except ValueError:  # it has no signature
        return
    except TypeError:
        text = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise EnvError(
            f"env {name}: {text}, which it doesn't take; leave it out"
        ) from None


def _import_target(name: str) -> Any:
    """Returns the object that a name or an import path stands for."""
    library, _, inner = name.partition(":")
    if library in LIBRARIES:
        return functools.partial(_import_target(LIBRARIES[library]), inner)
    module_name, colon, attribute = ENVS.get(name, name).partition(":")
    if not (module_name and colon and attribute):
        near = difflib.get_close_matches(name, ENVS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        others = ", ".join(f"{library}:NAME" for library in LIBRARIES)
        raise ConfigError(
            f"config: env={name!r}; known: {', '.join(ENVS)}, {others}, or "
            f"path.module:ClassName{hint}"
        )
    setting = f"env={name!r}"
    module = configs.imported(setting, module_name)
    return configs.attribute(setting, module, attribute)
