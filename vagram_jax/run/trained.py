"""Loads what a run has trained: policy, dynamics model and value function.

Only these and two counters are read from a checkpoint, whose SHA-256 is checked;
`load_transitions` reads the replay buffer.

    trained = load("results/hopper/vagram", seed=0)
    action = trained.act(obs)
    next_obs, reward = trained.predict(obs, action)
    gradient = jax.grad(trained.value_fn)(obs)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vagram_jax import config, dynamics, envs, mbpo, replay, sac
from vagram_jax import fit as fitting
from vagram_jax.config import ConfigError
from vagram_jax.dynamics import DynamicsParams
from vagram_jax.envs import EnvConfig
from vagram_jax.fit import DynamicsState
from vagram_jax.mbpo import MBPOConfig, MBPOState
from vagram_jax.run import datasets, exports, loop, states
from vagram_jax.run.loop import RunConfig
from vagram_jax.sac import SACState
from vagram_jax.storage import checkpoint, records
from vagram_jax.storage.checkpoint import CheckpointError
from vagram_jax.storage.files import ResultsError
from vagram_jax.types import Transition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What one seed of a run has learned, as plain functions.

    All of them work under `jit`, `vmap` and `grad`, and compute with the precision of
    the run's evaluations.

    Attributes:
      env: the environment of the run, with its wrappers.
      seed: the seed.
      state: networks of the agent and of the model, and counters; all else is None.
      config: config of the algorithm.
      matmul_precision: precision of matrix products.
    """

    env: Any
    seed: int
    state: MBPOState
    config: MBPOConfig
    matmul_precision: str

    @property
    def env_steps(self) -> int:
        """The number of environment steps that the seed was trained for."""
        return int(self.state.env_steps)

    @property
    def diverged_at(self) -> int | None:
        """The step at which the seed diverged, or None; the state is the one before."""
        return None if self.state.diverged_at < 0 else int(self.state.diverged_at)

    @property
    def dynamics(self) -> DynamicsParams | None:
        """The ensemble, as every loss takes it, or None for a run without a model."""
        return None if self.state.dynamics is None else self.state.dynamics.params

    def act(self, obs: jax.Array) -> jax.Array:
        """The action of the policy, without noise.

        Args:
          obs: `[..., obs_dim]`.

        Returns:
          `[..., action_dim]`, each in (-1, 1).

        Raises:
          ValueError: `obs` has another number of dimensions.
        """
        obs = _checked("act: obs", obs, self.env.observation_size)
        with jax.default_matmul_precision(self.matmul_precision):
            return sac.act_mean(self.state.agent, obs, config=self.config.sac)

    def predict(self, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next observation and the reward that the model expects.

        Args:
          obs: `[..., obs_dim]`, in the units of the task.
          action: `[..., action_dim]`, each in [-1, 1], with the leading axes of `obs`.

        Returns:
          `(next_obs [..., obs_dim], reward [...])`, the means over the elites.

        Raises:
          ValueError: the run has no model, or an argument has another shape.
        """
        if self.dynamics is None:
            raise ValueError(
                "predict: this run has no model (loss=none, plain SAC); load a run "
                "that was trained with a model loss, such as vagram"
            )
        obs = _checked("predict: obs", obs, self.env.observation_size)
        action = _checked("predict: action", action, self.env.action_size)
        if obs.shape[:-1] != action.shape[:-1]:
            raise ValueError(
                f"predict: obs has shape {obs.shape} and action {action.shape}; the "
                "same leading axes are accepted"
            )
        with jax.default_matmul_precision(self.matmul_precision):
            elites = self.state.dynamics.elites
            return dynamics.predict_mean(self.dynamics, elites, obs, action)

    def values(self, state: jax.Array) -> jax.Array:
        """The values of one state by each critic, with which the loss was weighted.

        Args:
          state: `[obs_dim]`.

        Returns:
          `[K]`, in units of return, see `sac.value_fn`.

        Raises:
          ValueError: `state` isn't one state.
        """
        state = _checked("value_fn: state", state, self.env.observation_size, one=True)
        with jax.default_matmul_precision(self.matmul_precision):
            return sac.value_fn(self.state.agent, config=self.config.sac)(state)

    def value_fn(self, state: jax.Array) -> jax.Array:
        """The value of one state, the mean of `values`, as `jax.grad` takes it.

        Args:
          state: `[obs_dim]`.

        Returns:
          A scalar, in units of return.

        Raises:
          ValueError: `state` isn't one state.
        """
        return jnp.mean(self.values(state))


def load(
    run: str | os.PathLike,
    seed: int | None = None,
    *,
    report: Callable[[str], None] = print,
) -> Trained:
    """Loads what a run has trained, from its newest undamaged checkpoint.

    This imports and runs the code of the environment that `config.json` names: load
    only runs of people whom you trust. Nothing is unpickled.

    Args:
      run: the folder of a run, `results/<study>/<run>`, or one that `vagram export`
        wrote.
      seed: the seed; None means the first one of the run.
      report: takes a line for each damaged checkpoint.

    Returns:
      Policy, model and value function, on JAX's default device.

    Raises:
      ResultsError: the folder is no run, or can't be read.
      CheckpointError: the seed has no usable checkpoint, or the export is damaged.
      ConfigError: the run has no such seed, or a config of another version; or
        safetensors isn't installed for an export.
      EnvError: the environment can't be made.
    """
    folder = Path(run).resolve()
    record = _record(folder)
    env_config, algorithm, run_config = _configs(folder, record)
    seeds = [*loop.seeds_of(run_config)]
    if is_export := exports.is_export(folder):
        seeds = [exports.seed_of(folder, record)]
    seed = _one_seed(folder, seed, seeds)
    env = envs.from_config(env_config)
    shapes = shapes_of(env, algorithm)
    if is_export:
        arrays = exports.read(folder, record, shapes)
    else:
        arrays = _from_checkpoint(folder, seed, shapes, report)
    state = jax.tree.map(lambda x: jnp.asarray(x[0]), states.arrange(arrays, shapes))
    return Trained(
        env=env,
        seed=seed,
        state=state,
        config=algorithm,
        matmul_precision=run_config.matmul_precision,
    )


def load_transitions(
    run: str | os.PathLike,
    seed: int | None = None,
    *,
    report: Callable[[str], None] = print,
) -> Transition:
    """Loads the replay buffer of a run, from its newest undamaged checkpoint.

    A buffer that was full has lost its oldest rows, and steps that weren't finite were
    not stored. No code of the environment runs.

    Args:
      run: the folder of a run, `results/<study>/<run>`.
      seed: as for `load`.
      report: as for `load`.

    Returns:
      `[N, ...]` NumPy arrays, the oldest first, in the units of the environment.

    Raises:
      ResultsError: as `load`.
      CheckpointError: the seed has no usable checkpoint.
      ConfigError: as `load`, or the folder was exported, without the buffer.
    """
    folder = Path(run).resolve()
    record = _record(folder)
    if exports.is_export(folder):
        raise ConfigError(
            f"{folder}: an export has no replay buffer; name the folder of the run"
        )
    seeds = [*loop.seeds_of(_configs(folder, record)[2])]
    any_sizes = {"obs_dim": 1, "action_dim": 1, "capacity": 1}
    buffer = jax.eval_shape(partial(replay.init, **any_sizes))
    names = _only(MBPOState, replay=buffer)
    arrays = _from_checkpoint(folder, _one_seed(folder, seed, seeds), names, report)
    leaves = [arrays[name][0] for name in states.named(names)]
    return replay.in_order(jax.tree.unflatten(jax.tree.structure(buffer), leaves))


def shapes_of(env: Any, config: MBPOConfig) -> MBPOState:
    """Shapes of the leaves that are read, for one lane; all other leaves are None.

    Args:
      env: the environment.
      config: the algorithm.
    """
    sizes = {"obs_dim": env.observation_size, "action_dim": env.action_size}
    agent = _shapes(partial(sac.init, **sizes, config=config.sac))
    model = None
    if config.loss != mbpo.NO_MODEL:
        options = {"dynamics_config": config.dynamics, "config": config.fit}
        fitted = _shapes(partial(fitting.init, **sizes, **options))
        model = _only(DynamicsState, params=fitted.params, elites=fitted.elites)
    count = jax.ShapeDtypeStruct((1,), jnp.int32)
    return _only(
        MBPOState,
        agent=_only(
            SACState,
            actor=agent.actor,
            critics=agent.critics,
            target_critics=agent.target_critics,
            obs_mean=agent.obs_mean,
            obs_std=agent.obs_std,
        ),
        dynamics=model,
        env_steps=count,
        diverged_at=count,
    )


def _checked(name: str, array: Any, size: int, *, one: bool = False) -> jax.Array:
    """An argument as an array, if its last axis has the size of the task."""
    array = jnp.asarray(array)
    if array.shape[-1:] != (size,) or (one and array.ndim > 1):
        accepted = f"({size},)" if one else f"(..., {size})"
        hint = "; jax.vmap takes a batch" if one else ""
        raise ValueError(
            f"{name} has shape {array.shape}; {accepted} is accepted{hint}"
        )
    return array


def _one_seed(folder: Path, seed: int | None, seeds: list[int]) -> int:
    """The seed that is asked for, by default the first; raises if the run lacks it."""
    if seed is None or seed in seeds:
        return seeds[0] if seed is None else seed
    have = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    raise ConfigError(f"{folder}: seed={seed!r}; the run has {have}")


def _from_checkpoint(
    folder: Path, seed: int, shapes: MBPOState, report: Callable[[str], None]
) -> Mapping[str, Any]:
    """The arrays of one seed in the newest undamaged checkpoint of a run."""
    step = checkpoint.newest([(folder, [seed])], report=report)
    if step is None:
        raise CheckpointError(
            f"{folder}: no undamaged checkpoint of seed {seed}; train the run first, "
            "or continue it with --resume"
        )
    return checkpoint.load(folder, step, [seed], names=states.named(shapes))


def _record(folder: Path) -> dict[str, Any]:
    """The record of a run."""
    if not os.path.lexists(folder / records.NAME):
        runs = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f"it is a study with {', '.join(runs)}" if runs else "check the path"
        raise ResultsError(
            f"{folder}: no run; a run is a folder with config.json, such as "
            f"results/pendulum/vagram; {hint}"
        )
    return records.read(folder)


def _configs(
    folder: Path, record: Mapping[str, Any]
) -> tuple[EnvConfig, MBPOConfig, RunConfig]:
    """The settings of a run; unknown keys are refused."""
    try:
        settings = {k: v for k, v in record["config"].items() if k != datasets.KEY}
        return config.split(settings, *loop.CONFIGS)
    except ConfigError as error:
        versions = record.get("versions")
        version = versions.get("vagram_jax") if isinstance(versions, dict) else None
        raise ConfigError(
            f"{folder / records.NAME}: {error}; this run was made with vagram_jax "
            f"{version or '(unknown)'}; load it with that version"
        ) from error


def _shapes(init: Callable[[jax.Array], Any]) -> Any:
    """Shapes of what a function of a key returns, of one lane."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    return jax.eval_shape(jax.vmap(init), keys)


def _only(state_type: type, **fields: Any) -> Any:
    """A state in which all other fields are None."""
    names = [field.name for field in dataclasses.fields(state_type)]
    return state_type(**dict.fromkeys(names) | fields)
