"""Environments of Brax."""

from __future__ import annotations

from vagram_jax.envs import base
from vagram_jax.envs.adapters import brax_like, imports

BACKENDS = ("generalized", "spring", "positional", "mjx")
"""The physics of Brax. Some environments don't support all of them."""

_EPISODE_LENGTH = 1000  # steps, the default of `brax.envs.create`


def make(
    name: str, *, observation: str = "", physics: str = "auto"
) -> brax_like.BraxLikeEnv:
    """Returns an environment of Brax, with episodes of 1000 steps.

    Args:
      name: as in `brax.envs`, such as `"hopper"`.
      observation: the entry of the observation to use, if it is a dict.
      physics: one of `BACKENDS`, or "auto" for Brax's default.

    Raises:
      EnvError: Brax isn't installed, or has no such environment, backend or
        observation.
    """
    where = f"env brax:{name}"
    brax_envs = imports.library("brax.envs", where, install="brax")
    # Brax lists its environments under a private name only.
    imports.check_known(name, brax_envs._envs, where)
    options = {}
    if physics != "auto":
        base.check_choice(f"{where}: physics", physics, ("auto", *BACKENDS))
        options["backend"] = physics
    with (
        base.as_env_error(f"{where}: making it with physics={physics!r}"),
        imports.no_deprecation_warnings(),
    ):
        env = brax_envs.get_environment(name, **options)
    return brax_like.BraxLikeEnv(
        env, f"brax:{name}", observation=observation, episode_length=_EPISODE_LENGTH
    )
