"""The host's side of training: compile, repeat the epoch, evaluate, tell.

Comes in: an environment and configs. Goes out: states and numbers after every epoch;
nothing is written. What an epoch is, is decided in `mbpo`, where lanes run in
`devices`; here is only when things happen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import struct

from vagram_jax import training
from vagram_jax.config import ConfigError, static
from vagram_jax.envs import base, episodes
from vagram_jax.run import devices, programs, progress
from vagram_jax.run.programs import Lanes, Programs
from vagram_jax.run.progress import Progress
from vagram_jax.storage import checkpoint
from vagram_jax.training import MBPOConfig, MBPOState


@struct.dataclass(kw_only=True)
class RunConfig:
    """How long, how many, and how often.

    Attributes:
      num_seeds: how many seeds train.
      first_seed: they are numbered from here.
      total_steps: environment steps of each seed.
      eval_every: epochs between two evaluations.
      eval_episodes: episodes of an evaluation.
      matmul_precision: of float32 matrix products; an accelerator's default has fewer
        digits, and squared value gradients need them.
    """

    num_seeds: int = static(4, low=1)
    first_seed: int = static(0, low=0, high=2**31)
    total_steps: int = static(10_000, low=1)
    eval_every: int = static(1, low=1)
    eval_episodes: int = static(10, low=1)
    matmul_precision: str = static("highest", choices=("default", "high", "highest"))


class Begin(NamedTuple):
    """Where training goes on.

    Attributes:
      env_steps: steps of each lane so far.
      arrays: of this process's lanes, as `checkpoint.pack` names them.
      seconds: how long it has taken so far.
    """

    env_steps: int
    arrays: dict[str, np.ndarray]
    seconds: float


def check(
    run: RunConfig, config: MBPOConfig, env: base.Env
) -> tuple[RunConfig, MBPOConfig]:
    """The configs, checked against each other, before anything is compiled.

    Args:
      run: how long, how many, how often.
      config: the algorithm.
      env: the environment.

    Returns:
      Both, with "auto" settings resolved.

    Raises:
      ConfigError: as `training.check`, or steps that are no whole number of epochs.
      EnvError: no episode length is known.
    """
    episodes.length(env)
    config = training.check(config, env)
    rest = run.total_steps - config.warmup_steps
    if rest <= 0 or rest % config.steps_per_epoch:
        fitting = config.warmup_steps + config.steps_per_epoch * max(
            1, round(rest / config.steps_per_epoch)
        )
        raise ConfigError(
            f"config: total_steps={run.total_steps}; warmup_steps="
            f"{config.warmup_steps} plus a whole number of epochs of steps_per_epoch="
            f"{config.steps_per_epoch}, such as {fitting}"
        )
    return run, config


def seeds_of(run: RunConfig) -> range:
    """The numbers of a run's seeds.

    Args:
      run: how many, from where on.

    Returns:
      Consecutive numbers.
    """
    return range(run.first_seed, run.first_seed + run.num_seeds)


def train(
    run: RunConfig,
    config: MBPOConfig,
    env: base.Env,
    *,
    layout: devices.Layout | None = None,
) -> Iterator[tuple[MBPOState, Progress]]:
    """Trains, and yields after the warm-up and after every epoch; writes nothing.

    In a notebook: `for state, progress in runner.train(run, config, env): ...`.

    Args:
      run: how long, how many, how often.
      config: the algorithm.
      env: the environment.
      layout: where seeds run; by default side by side on all devices.

    Yields:
      The states of all seeds, `[S, ...]`, valid until the next turn, and the progress.
      If the devices can't share the seeds evenly, lanes without meaning stand after
      them in the states.

    Raises:
      ConfigError: as `check`.
      EnvError: as `check`.
      DeviceError: more than a device holds.
    """
    run, config = check(run, config, env)
    layout = layout or devices.Layout()
    lanes = programs.lanes(seeds_of(run), [config] * run.num_seeds)
    yield from train_lanes(run, lanes, compiled(run, env, layout), layout=layout)


def compiled(run: RunConfig, env: base.Env, layout: devices.Layout) -> Programs:
    """The programs of a run; each compiles at its first call.

    Args:
      run: how many episodes an evaluation has, and the precision.
      env: the environment.
      layout: where lanes run.

    Returns:
      The programs.
    """
    return programs.make(
        env,
        eval_episodes=run.eval_episodes,
        matmul_precision=run.matmul_precision,
        layout=layout,
    )


def train_lanes(
    run: RunConfig,
    lanes: Lanes,
    compiled: Programs,
    *,
    layout: devices.Layout,
    padded: int | None = None,
    begin: Begin | None = None,
) -> Iterator[tuple[MBPOState, Progress]]:
    """As `train`, for seeds of configs that share their programs.

    Args:
      run: how long and how often.
      lanes: on the host.
      compiled: their programs.
      layout: where they run, the same that the programs were made for.
      padded: how many lanes the programs have; the least that is possible if None.
      begin: where to go on; it is yielded first, without an evaluation.

    Yields:
      As `train`.

    Raises:
      CheckpointError: `begin` has the arrays of other states.
      DeviceError: more than a device holds.
    """
    config, began = lanes.configs, time.monotonic() - (begin.seconds if begin else 0.0)
    padded = padded or layout.padded(len(lanes.seeds))
    spread = _spread(lanes, layout, padded)
    states, first = _first(compiled, spread, config, begin, layout)
    num_epochs = (run.total_steps - config.warmup_steps) // config.steps_per_epoch
    lives = True
    for index in range(first, num_epochs + 1):
        metrics, returns, lengths = {}, np.empty(0), np.empty(0)
        # Where every lane has diverged nothing can change any more.
        if index > first and lives:
            states, metrics = programs.epoch(compiled, states, spread)
        is_due = index % run.eval_every == 0 or index == num_epochs
        if is_due and lives and (index > first or begin is None):
            returns, lengths = programs.returns(compiled, states, spread, index)
        elif is_due and not lives:
            returns = lengths = np.full(padded, np.nan)
        told = Progress(
            env_steps=config.warmup_steps + index * config.steps_per_epoch,
            returns=returns,
            lengths=lengths,
            metrics=devices.fetch_all(metrics),
            diverged_at=devices.fetch_all(states.diverged_at),
            dropped=devices.fetch_all(states.dropped),
            seconds=time.monotonic() - began,
        )
        lives = bool(np.any(told.diverged_at < 0))
        yield states, progress.of_lanes(told, slice(len(lanes.seeds)))


def _first(compiled, spread, config, begin, layout) -> tuple[MBPOState, int]:
    """The states to start from and the number of their epoch, if memory holds them."""

    def shapes_of(program, *args):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding),
            jax.eval_shape(program, *args),
        )

    states = shapes_of(compiled.initialise, spread)
    fitted, _ = shapes_of(compiled.learn_model, states, spread)
    settings = {"num_lanes": len(spread.seeds), "layout": layout}
    devices.check_memory(compiled.learn_model, states, spread, **settings)
    devices.check_memory(compiled.learn_policy, states, fitted, spread, **settings)
    if begin is None:
        return programs.start(compiled, spread), 0
    number = (begin.env_steps - config.warmup_steps) // config.steps_per_epoch
    return checkpoint.unpack(begin.arrays, states, layout), number


def _spread(lanes: Lanes, layout: devices.Layout, padded: int) -> Lanes:
    """Lanes on their devices; the last one is repeated until all devices have some."""
    mine = np.minimum(devices.own_lanes(layout, padded), len(lanes.seeds) - 1)
    return devices.put(jax.tree.map(lambda x: x[mine], lanes), layout, padded)
