"""The config of a run, and the host loop, which repeats the epoch and evaluates.

It writes no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from vagram_jax import mbpo
from vagram_jax.config import ConfigError, check_fields, static
from vagram_jax.envs import EnvConfig, base, episodes
from vagram_jax.mbpo import MBPOConfig, MBPOState
from vagram_jax.run import (
    datasets,
    devices,
    failures,
    memory,
    rows,
    states,
    vectorized,
)
from vagram_jax.run.datasets import Dataset
from vagram_jax.run.rows import Progress
from vagram_jax.run.vectorized import Lanes, Programs
from vagram_jax.types import Metrics


@struct.dataclass(kw_only=True)
class RunConfig:
    """Config of a run: its length, seeds and evaluations.

    Attributes:
      num_seeds: number of seeds.
      first_seed: the first seed; the others follow it.
      total_steps: environment steps of each seed.
      eval_every: epochs between two evaluations.
      eval_episodes: episodes of an evaluation.
      matmul_precision: precision of float32 matrix products; the default of an
        accelerator has too few digits for squared value gradients.
    """

    num_seeds: int = static(4, low=1)
    first_seed: int = static(0, low=0, high=2**31)
    total_steps: int = static(10_000, low=1)
    eval_every: int = static(1, low=1)
    eval_episodes: int = static(10, low=1)
    matmul_precision: str = static("highest", choices=("default", "high", "highest"))


CONFIGS = (EnvConfig, MBPOConfig, RunConfig)
"""The configs of a run. Their keys share one flat namespace."""


class Restored(NamedTuple):
    """The content of a checkpoint that training resumes from.

    Attributes:
      env_steps: environment steps of each lane.
      arrays: of this process's lanes, as from `states.pack`.
      seconds: time that training had taken, in s.
    """

    env_steps: int
    arrays: dict[str, np.ndarray]
    seconds: float


def check(
    run_config: RunConfig,
    config: MBPOConfig,
    env: base.Env,
    data: Dataset | None = None,
) -> MBPOConfig:
    """Checks the configs against each other and the environment; compiles nothing.

    Args:
      run_config: the run.
      config: the algorithm.
      env: the environment.
      data: what the run starts from.

    Returns:
      The algorithm with "auto" settings resolved.

    Raises:
      ConfigError: as `mbpo.check` and `datasets.check`, a value out of range, or
        `total_steps` isn't the warm-up plus a whole number of epochs.
      EnvError: the episode length is unknown.
    """
    episodes.length(env)
    check_fields(run_config)
    config = mbpo.check(config, env, num_rows=data.num_rows if data else 0)
    if data is not None:
        datasets.check(data, env, config)
    rest = run_config.total_steps - config.warmup_steps
    if rest <= 0 or rest % config.steps_per_epoch:
        num_epochs = max(1, round(rest / config.steps_per_epoch))
        raise ConfigError(
            f"config: total_steps={run_config.total_steps}; warmup_steps="
            f"{config.warmup_steps} plus a whole number of epochs of steps_per_epoch="
            f"{config.steps_per_epoch}, such as "
            f"{config.warmup_steps + config.steps_per_epoch * num_epochs}"
        )
    return config


def check_memory(
    programs: Programs, lanes: Lanes, *, layout: devices.Layout, num_padded: int
) -> None:
    """Compiles the programs of some lanes and refuses what memory can't hold.

    Args:
      programs: made for `layout`.
      lanes: in NumPy.
      layout: the devices.
      num_padded: number of lanes of the programs.

    Raises:
      DeviceError: the lanes need more memory than a device has.
    """
    limit = devices.memory_limit()
    lanes = vectorized.put_padded(lanes, layout, num_padded)
    memory.check_epoch(programs, lanes, layout, limit)


def seeds_of(run_config: RunConfig) -> range:
    """The seeds of a run, consecutive numbers."""
    first = run_config.first_seed
    return range(first, first + run_config.num_seeds)


def train(
    run_config: RunConfig,
    config: MBPOConfig,
    env: base.Env,
    *,
    data: Dataset | None = None,
    layout: devices.Layout | None = None,
) -> Iterator[tuple[MBPOState, Progress]]:
    """Trains all seeds of a run without writing files, for instance in a notebook.

    Args:
      run_config: the run.
      config: the algorithm.
      env: the environment.
      data: what to start from, or to train on alone.
      layout: the devices; None means all of them.

    Yields:
      After the warm-up and every epoch: the states of all seeds `[S, ...]`, valid until
      the next iteration, and the progress. If the devices can't share the seeds evenly,
      copies of the last seed follow them in the states.

    Raises:
      ConfigError: as `check`.
      EnvError: as `check`.
      DeviceError: the seeds need more memory than a device has.
      RunError: no step of the warm-up was finite.
    """
    config, layout = check(run_config, config, env, data), layout or devices.Layout()
    seeds = seeds_of(run_config)
    lanes = vectorized.stack_lanes(seeds, [config] * len(seeds))
    programs = vectorized.make_programs(
        env,
        layout,
        eval_episodes=run_config.eval_episodes,
        matmul_precision=run_config.matmul_precision,
        data=data,
    )
    yield from train_lanes(run_config, lanes, programs, layout=layout)


def train_lanes(
    run_config: RunConfig,
    lanes: Lanes,
    programs: Programs,
    *,
    layout: devices.Layout,
    num_padded: int | None = None,
    restored: Restored | None = None,
    announce: Callable[[MBPOState, Progress], None] = lambda state, progress: None,
) -> Iterator[tuple[MBPOState, Progress]]:
    """As `train`, for lanes of several configs that share their programs.

    Args:
      run_config: the run.
      lanes: in NumPy.
      programs: made for `layout`.
      layout: the devices.
      num_padded: number of lanes of the programs; None means the smallest possible.
      restored: the checkpoint to resume from; its step is yielded first, without an
        evaluation.
      announce: is called with the first states and progress, without the shapes of
        the metrics, before they are yielded, because tracing and compiling the programs
        of an epoch come in between and take long.

    Yields:
      As `train`.

    Raises:
      CheckpointError: `restored` belongs to other states.
      DeviceError: as `train`.
      RunError: as `train`.
    """
    num_lanes, steps = len(lanes.seeds), _steps(run_config, lanes.configs)
    began = time.monotonic() - (restored.seconds if restored else 0.0)
    lanes = vectorized.put_padded(lanes, layout, num_padded or layout.padded(num_lanes))
    limit = devices.memory_limit()
    state = _first_states(programs, lanes, layout, restored)
    first = steps.index(restored.env_steps) if restored else 0
    any_alive, speed, metric_shapes = True, rows.Speed(), {}
    for index in range(first, len(steps)):
        metrics, played = {}, (np.empty(0), np.empty(0), {})
        # Diverged lanes are frozen, so there is nothing to compute if all are.
        if index > first and any_alive:
            state, metrics = vectorized.epoch(programs, state, lanes)
        is_due = index % run_config.eval_every == 0 or index == len(steps) - 1
        if is_due and (index > first or restored is None):
            played = vectorized.mean_returns(programs, state, lanes, index)
        progress = _progress(
            state,
            metrics,
            played,
            env_steps=steps[index],
            metric_shapes=metric_shapes,
            seconds=time.monotonic() - began,
            seconds_per_step=speed(steps[index]) if index > first else None,
        )
        any_alive = bool(np.any(progress.diverged_at < 0))
        progress = rows.of_lanes(progress, slice(num_lanes))
        if index == first:
            announce(state, progress)
            metric_shapes = memory.check_epoch(programs, lanes, layout, limit)
            progress = progress._replace(metric_shapes=metric_shapes)
        yield state, progress


def _steps(run_config: RunConfig, config: MBPOConfig) -> range:
    """The environment steps after the warm-up and after each epoch."""
    last = run_config.total_steps
    return range(config.warmup_steps, last + 1, config.steps_per_epoch)


def _progress(state: MBPOState, metrics: Metrics, played, **rest: Any) -> Progress:
    returns, lengths, own = played
    return Progress(
        returns=returns,
        lengths=lengths,
        metrics=devices.fetch_all(metrics) | own,
        diverged_at=devices.fetch_all(state.diverged_at),
        diverged_by=devices.fetch_all(state.diverged_by),
        dropped=devices.fetch_all(state.dropped),
        memory=devices.peak_memory(),
        **rest,
    )


def _check_stored(state: MBPOState) -> None:
    """Refuses to train without data: the environment returns NaN from the start."""
    if not np.any(devices.fetch_all(state.replay.size)):
        steps = int(np.max(devices.fetch_all(state.env_steps)))
        raise failures.RunError(
            f"the environment returned no finite transition in {steps} steps; check "
            "what its reset and step return for NaN and infinity",
            3,
        )


def _first_states(
    programs: Programs,
    lanes: Lanes,
    layout: devices.Layout,
    restored: Restored | None,
) -> MBPOState:
    """The states to start from."""
    if restored is not None:
        shapes = memory.state_shapes(programs, lanes, layout)
        return states.unpack(restored.arrays, shapes, layout)
    state = vectorized.start(programs, lanes)
    _check_stored(state)
    return state
