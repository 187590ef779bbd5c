"""Environments of MuJoCo Playground."""

from __future__ import annotations

import contextlib
import sys

import jax

from vagram_jax.envs import base
from vagram_jax.envs.adapters import brax_like, imports

IMPLEMENTATIONS = ("jax", "warp")
"""The implementations of MJX; Warp requires an NVIDIA GPU to be fast."""


def make(
    name: str, *, observation: str = "", physics: str = "auto"
) -> brax_like.BraxLikeEnv:
    """Returns an environment of MuJoCo Playground, with episodes of its own length.

    Args:
      name: as in `mujoco_playground.registry`, such as `"CartpoleBalance"`. Robots
        download their models when one is made for the first time.
      observation: the entry of the observation to use, if it is a dict.
      physics: one of `IMPLEMENTATIONS`; "auto" means Playground's default on an NVIDIA
        GPU, and "jax" elsewhere.

    Raises:
      EnvError: Playground isn't installed, or has no such environment, implementation
        or observation.
    """
    where = f"env playground:{name}"
    install = '"vagram_jax[playground]"'
    registry = imports.library("mujoco_playground", where, install=install).registry
    imports.check_known(name, registry.ALL_ENVS, where)
    base.check_choice(f"{where}: physics", physics, ("auto", *IMPLEMENTATIONS))
    config = registry.get_default_config(name)
    if physics != "auto" and "impl" not in config:
        raise base.EnvError(
            f"{where}: physics={physics!r}; Playground's {name} has no choice of "
            "physics; leave it out"
        )
    impl = "jax" if physics == "auto" and not _is_on_nvidia() else physics
    overrides = {"impl": impl} if impl != "auto" and "impl" in config else {}
    # Messages about downloads go to standard error; standard output is for results.
    with (
        base.as_env_error(f"{where}: making it"),
        contextlib.redirect_stdout(sys.stderr),
    ):
        env = registry.load(name, config_overrides=overrides)
    return brax_like.BraxLikeEnv(
        env,
        f"playground:{name}",
        observation=observation,
        episode_length=int(config.episode_length),
    )


def _is_on_nvidia() -> bool:
    return "nvidia" in jax.devices()[0].device_kind.lower()
