"""Environments of other collections: Brax, MuJoCo Playground, Gymnasium.

Comes in: a name of theirs. Goes out: an environment in the form of `base.Env`. Theirs
are taken raw, without their wrappers: those lose the last observation of an episode.
Each library is imported when one of its environments is asked for.

Brax and Playground are JAX already. A Gymnasium environment lives on the host, and a
step of it is a pure function all the same: see `hosted.Gymnasium`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vagram_jax.envs import base
from vagram_jax.envs.adapters import hosted

BRAX_BACKENDS = ("generalized", "spring", "positional", "mjx")
"""What may simulate a Brax environment; not each of them has all four."""

PLAYGROUND_IMPLS = ("jax", "warp")
"""What may simulate a Playground environment; warp is made for NVIDIA's GPUs."""

_BRAX_EPISODE = 1000  # steps, what `brax.envs.create` cuts after unless told


def brax_env(name: str, *, observation: str = "", physics: str = "auto") -> Functional:
    """An environment of Brax, with episodes of 1000 steps.

    Args:
      name: as in `brax.envs`, such as `"hopper"`.
      observation: which entry of the observation, where that is a dict.
      physics: one of `BRAX_BACKENDS`; "auto" for Brax's default.

    Returns:
      The environment.

    Raises:
      EnvError: Brax is missing, or has no such environment, backend or observation.
    """
    where = f"env brax:{name}"
    brax = _import("brax.envs", where, install="brax")
    # Brax lists its environments under a private name only.
    _check_known(name, brax._envs, where)
    options = {}
    if physics != "auto":
        _check_choice(physics, ("auto", *BRAX_BACKENDS), f"{where}: physics")
        options["backend"] = physics
    with hosted.naming(f"{where}: making it with physics={physics!r}"), _maintained():
        env = brax.get_environment(name, **options)
    return Functional(
        env, f"brax:{name}", observation=observation, episode_length=_BRAX_EPISODE
    )


def playground_env(
    name: str, *, observation: str = "", physics: str = "auto"
) -> Functional:
    """An environment of MuJoCo Playground, with episodes as long as its config says.

    Args:
      name: as in `mujoco_playground.registry`, such as `"CartpoleBalance"`. Those of
        robots download their models when one is made for the first time.
      observation: which entry of the observation, where that is a dict.
      physics: one of `PLAYGROUND_IMPLS`; "auto" for Playground's default on a GPU of
        NVIDIA, and jax elsewhere.

    Returns:
      The environment.

    Raises:
      EnvError: Playground is missing, or has no such environment, implementation or
        observation.
    """
    where = f"env playground:{name}"
    install = '"vagram_jax[playground]"'
    playground = _import("mujoco_playground", where, install=install)
    registry = playground.registry
    _check_known(name, registry.ALL_ENVS, where)
    _check_choice(physics, ("auto", *PLAYGROUND_IMPLS), f"{where}: physics")
    config = registry.get_default_config(name)
    impl = "jax" if physics == "auto" and not _on_nvidia() else physics
    if physics != "auto" and "impl" not in config:
        raise base.EnvError(
            f"{where}: physics={physics!r}; Playground's {name} has no choice of "
            "physics; leave it out"
        )
    overrides = {"impl": impl} if impl != "auto" and "impl" in config else {}
    # What it says about a download belongs beside the results, not into them.
    with hosted.naming(f"{where}: making it"), contextlib.redirect_stdout(sys.stderr):
        env = registry.load(name, config_overrides=overrides)
    return Functional(
        env,
        f"playground:{name}",
        observation=observation,
        episode_length=int(config.episode_length),
    )


def gymnasium_env(
    name: str, *, observation: str = "", physics: str = "auto"
) -> hosted.Gymnasium:
    """An environment that is registered with Gymnasium, stepped on the host.

    Args:
      name: what `gymnasium.make` takes, such as `"Hopper-v5"`, or `"module:Name-v0"`
        to import what registers it.
      observation: nothing else than its default; it has one.
      physics: nothing else than its default; it has one.

    Returns:
      The environment.

    Raises:
      EnvError: Gymnasium or what it needs is missing, it has no such environment, the
        spaces don't fit, or it is not deterministic given its seed.
    """
    where = f"env gymnasium:{name}"
    if observation or physics != "auto":
        raise base.EnvError(
            f"{where}: observation={observation!r}, physics={physics!r}; neither can "
            "be chosen here; leave them out"
        )
    gymnasium = _import("gymnasium", where, install='"vagram_jax[gymnasium]"')
    construct = functools.partial(gymnasium.make, name, disable_env_checker=True)
    try:
        return hosted.Gymnasium(construct, f"gymnasium:{name}")
    except base.EnvError as error:
        if not isinstance(error.__cause__, gymnasium.error.UnregisteredEnv):
            raise
        near = _nearest(name.split(":")[-1], gymnasium.registry)
        raise base.EnvError(
            f"{where}: {base.one_line(error.__cause__)}; {near}"
        ) from error


class Functional:
    """An environment that is JAX already, of Brax or Playground, in the form of `Env`.

    It is called with raw keys, on a copy of its state, since it writes into the dicts
    of the state that it is given. An observation that is not finite ends the episode,
    also where the environment calls it healthy, as Brax's Ant and Humanoid do.

    Args:
      env: with `reset(raw key)`, `step(state, action)` and `action_size`.
      name: what messages call it.
      observation: which entry of the observation, where that is a dict.
      episode_length: after how many steps an episode is cut.

    Attributes:
      observation_size: the length of that entry.
      action_size: as the environment has it.
      episode_length: as given.
      dt: the seconds of a step, or None.
      termination: None, since neither Brax nor Playground has such a function.

    Raises:
      EnvError: a reset that fails, or no such entry.
    """

    termination = None

    def __init__(
        self, env: Any, name: str, *, observation: str = "", episode_length: int
    ):
        self._env, self._entry = env, observation
        with hosted.naming(f"env {name}: reset"):
            first = jax.eval_shape(lambda: env.reset(_raw(jax.random.key(0))))
        if isinstance(first.obs, Mapping):
            where = f"env {name}: observation"
            _check_choice(observation, sorted(first.obs), where)
        elif observation:
            raise base.EnvError(
                f"env {name}: observation={observation!r}; it has one; leave it out"
            )
        (self.observation_size,) = self._observe(first).shape
        self.action_size = env.action_size
        self.episode_length = episode_length
        dt = getattr(env, "dt", None)
        self.dt = None if dt is None else float(dt)

    def reset(self, key: jax.Array) -> base.State:
        """The first state of an episode.

        Args:
          key: a typed key.

        Returns:
          A `State` around that of the environment.
        """
        return self._around(self._env.reset(_raw(key)))

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """One step of the environment.

        Args:
          state: as `reset` or the last step returned it.
          action: `[action_dim]`, each in [-1, 1].

        Returns:
          The next `State`.
        """
        copy = jax.tree.map(lambda leaf: leaf, state.pipeline_state)
        return self._around(self._env.step(copy, action))

    def unwrap(self, state: base.State) -> tuple[Any, Any]:
        """The environment of the other library, and its state.

        Args:
          state: as `reset` or `step` returned it.

        Returns:
          `(env, state)`.
        """
        return self._env, state.pipeline_state

    def _observe(self, inner: Any) -> Any:
        return inner.obs[self._entry] if self._entry else inner.obs

    def _around(self, inner: Any) -> base.State:
        obs = self._observe(inner)
        state = base.around(inner, inner, obs=obs, reward=inner.reward)
        done = jnp.asarray(inner.done).astype(obs.dtype)
        return state.replace(done=jnp.where(base.all_finite(obs), done, 1))


def _raw(key: jax.Array) -> jax.Array:
    """A typed key as the old kind, the only one that these libraries know."""
    return jax.random.key_data(key)


def _import(module: str, where: str, *, install: str) -> Any:
    try:
        # MJX prints where Warp is missing, which no one here needs.
        with contextlib.redirect_stdout(io.StringIO()), _maintained():
            return importlib.import_module(module)
    except ImportError as error:
        raise base.EnvError(
            f"{where}: {base.one_line(error)}; pip install {install}"
        ) from error


@contextlib.contextmanager
def _maintained() -> Iterator[None]:
    """Without the warnings that Brax and what it uses are no longer maintained."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Brax System", UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def _check_known(name: str, known: Iterable[str], where: str) -> None:
    if name not in known:
        raise base.EnvError(f"{where}: no such environment; {_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower)
    listed = ", ".join([by_lower[each] for each in near] or sorted(known))
    return f"{'near' if near else 'known'}: {listed}"


def _check_choice(value: str, choices: Iterable[str], what: str) -> None:
    if value not in choices:
        raise base.EnvError(f"{what}={value!r}; accepted: {', '.join(choices)}")


def _on_nvidia() -> bool:
    return "nvidia" in jax.devices()[0].device_kind.lower()
