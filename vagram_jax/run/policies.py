"""Loads the policy that a run has trained.

Only the actor and two counters are read from a checkpoint, whose SHA-256 is checked.

    policy = load_policy("results/hopper/vagram", seed=0)
    action = policy.act(obs)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vagram_jax import config, envs, sac
from vagram_jax.config import ConfigError
from vagram_jax.envs import EnvConfig
from vagram_jax.mbpo import MBPOConfig, MBPOState
from vagram_jax.run import loop, states
from vagram_jax.run.loop import RunConfig
from vagram_jax.sac import SACConfig, SACState
from vagram_jax.storage import checkpoint, records
from vagram_jax.storage.checkpoint import CheckpointError
from vagram_jax.storage.files import ResultsError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """The deterministic policy of one seed of a run.

    Attributes:
      env: the environment of the run, with its wrappers.
      seed: the seed.
      env_steps: environment steps that it was trained for.
      diverged_at: the step at which the seed diverged, or None. The policy of a
        diverged seed is the last one before.
      agent: the part of the agent that acts; its other fields are None.
      config: config of the agent.
      matmul_precision: precision of matrix products in the run's evaluations.
    """

    env: Any
    seed: int
    env_steps: int
    diverged_at: int | None
    agent: SACState
    config: SACConfig
    matmul_precision: str

    def act(self, obs: jax.Array) -> jax.Array:
        """The action of the policy, without noise. Works under jit and vmap.

        Args:
          obs: `[..., obs_dim]`.

        Returns:
          `[..., action_dim]`, each in (-1, 1).

        Raises:
          ValueError: `obs` has another number of dimensions.
        """
        obs = jnp.asarray(obs)
        size = self.env.observation_size
        if obs.shape[-1:] != (size,):
            raise ValueError(
                f"act: obs has shape {obs.shape}; (..., {size}) is accepted"
            )
        with jax.default_matmul_precision(self.matmul_precision):
            return sac.act_mean(self.agent, obs, config=self.config)


def load_policy(
    run: str | os.PathLike,
    seed: int | None = None,
    *,
    report: Callable[[str], None] = print,
) -> Policy:
    """Loads a policy from the newest undamaged checkpoint of a run.

    This imports and runs the code of the environment that `config.json` names: load
    only runs of people whom you trust.

    Args:
      run: the folder, `results/<study>/<run>`.
      seed: the seed; None means the first one of the run.
      report: takes a line for each damaged checkpoint.

    Returns:
      The policy, on JAX's default device.

    Raises:
      ResultsError: the folder is no run, or can't be read.
      CheckpointError: the seed has no usable checkpoint.
      ConfigError: the run has no such seed, or a config of another version.
      EnvError: the environment can't be made.
    """
    folder = Path(run).resolve()
    env_config, algorithm, run_config = _configs(folder)
    seeds = loop.seeds_of(run_config)
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ConfigError(
            f"{folder}: seed={seed!r}; the run has {seeds[0]} to {seeds[-1]}"
        )
    step = checkpoint.newest([(folder, [seed])], report=report)
    if step is None:
        raise CheckpointError(
            f"{folder}: no undamaged checkpoint of seed {seed}; train the run first, "
            "or continue it with --resume"
        )
    env = envs.from_config(env_config)
    shapes = _shapes(env, algorithm.sac)
    names = states.named(shapes)
    arrays = checkpoint.load(folder, step, [seed], names=names)
    state = jax.tree.map(lambda x: x[0], states.arrange(arrays, shapes))
    return Policy(
        env=env,
        seed=seed,
        env_steps=int(state.env_steps),
        diverged_at=None if state.diverged_at < 0 else int(state.diverged_at),
        agent=jax.tree.map(jnp.asarray, state.agent),
        config=algorithm.sac,
        matmul_precision=run_config.matmul_precision,
    )


def _configs(folder: Path) -> tuple[EnvConfig, MBPOConfig, RunConfig]:
    """The settings of a run; unknown keys are refused."""
    if not os.path.lexists(folder / "config.json"):
        runs = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f"it is a study with {', '.join(runs)}" if runs else "check the path"
        raise ResultsError(
            f"{folder}: no run; a run is a folder with config.json, such as "
            f"results/pendulum/vagram; {hint}"
        )
    record = records.read(folder)
    try:
        return config.split(record["config"], *loop.CONFIGS)
    except ConfigError as error:
        versions = record.get("versions")
        version = versions.get("vagram_jax") if isinstance(versions, dict) else None
        raise ConfigError(
            f"{folder / 'config.json'}: {error}; this run was made with vagram_jax "
            f"{version or '(unknown)'}; load it with that version"
        ) from error


def _shapes(env: Any, config: SACConfig) -> MBPOState:
    """Shapes of the leaves that are read, for one lane; all other leaves are None."""
    sizes = {"obs_dim": env.observation_size, "action_dim": env.action_size}
    init = jax.vmap(partial(sac.init, **sizes, config=config))
    agent = jax.eval_shape(lambda: init(jax.random.split(jax.random.key(0), 1)))
    count = jax.ShapeDtypeStruct((1,), jnp.int32)
    return _only(
        MBPOState,
        agent=_only(
            SACState,
            actor=agent.actor,
            obs_mean=agent.obs_mean,
            obs_std=agent.obs_std,
        ),
        env_steps=count,
        diverged_at=count,
    )


def _only(state_type: type, **fields: Any) -> Any:
    """A state in which all other fields are None."""
    names = [field.name for field in dataclasses.fields(state_type)]
    return state_type(**dict.fromkeys(names) | fields)
