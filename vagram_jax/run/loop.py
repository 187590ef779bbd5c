"""The host loop: compiles the programs of a run, repeats the epoch and evaluates.

It writes no files. A lane is one seed of one config; configs that differ only in
numbers share the compiled programs. The initial state is separate from the warm-up
because it takes longer to compile than to run. An epoch is two programs because its
second half is the same for all losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vagram_jax import evaluate, mbpo, sac
from vagram_jax.config import ConfigError, check_fields, static
from vagram_jax.envs import EnvConfig, base, episodes
from vagram_jax.mbpo import Fitted, MBPOConfig, MBPOState
from vagram_jax.run import datasets, devices, failures, memory, rows, states
from vagram_jax.run.datasets import Dataset
from vagram_jax.run.memory import Shapes
from vagram_jax.run.rows import Progress
from vagram_jax.types import Metrics, Transition

# Folded into the seed's key for evaluations, apart from the keys of training.
_EVALUATION_STREAM = 2**31 - 1


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


class Lanes(NamedTuple):
    """Seeds and configs of the lanes of a program. L is the number of lanes.

    Attributes:
      seeds: `[L]` uint32.
      configs: the algorithm, its numbers `[L]`; shapes and branches are the same in all
        lanes.
    """

    seeds: jax.Array | np.ndarray
    configs: MBPOConfig


class Programs(NamedTuple):
    """The programs of a run, each over all lanes. Each compiles at its first call.

    Attributes:
      env: the environment.
      data: what the lanes start from, or None.
      init: lanes to states before the first step.
      add_data: `(states, transitions)` to states with these rows; donates `states`.
      warm_up: `(states, lanes)` to states after the random steps; donates `states`.
      fit_model: `(states, lanes)` to fitted models and metrics.
      improve_policy: `(states, fitted, lanes)` to states and metrics; donates `states`.
      evaluate: `(states, lanes, index)` to returns and lengths, `[L, num_episodes]`
        each, and the environment's metrics, `[L, num_episodes, ...]`; `index` is the
        number of the evaluation.
    """

    env: base.Env
    data: Dataset | None
    init: Callable[[Lanes], MBPOState]
    add_data: Callable[[MBPOState, Transition], MBPOState]
    warm_up: Callable[[MBPOState, Lanes], MBPOState]
    fit_model: Callable[[MBPOState, Lanes], tuple[Fitted, Metrics]]
    improve_policy: Callable[[MBPOState, Fitted, Lanes], tuple[MBPOState, Metrics]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array, Metrics]]


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
    lanes, limit = _put_padded(lanes, layout, num_padded), devices.memory_limit()
    shapes, _ = memory.shapes_of(programs, lanes, layout)
    memory.check_epoch(programs, shapes, lanes, layout, limit)


def seeds_of(run_config: RunConfig) -> range:
    """The seeds of a run, consecutive numbers."""
    first = run_config.first_seed
    return range(first, first + run_config.num_seeds)


def stack_lanes(seeds: Sequence[int], configs: Sequence[MBPOConfig]) -> Lanes:
    """The lanes of a program, in NumPy.

    Args:
      seeds: one per lane.
      configs: one per lane, equal in all that decides a shape or a branch.

    Returns:
      The lanes.

    Raises:
      ValueError: the configs can't share a program.
    """
    if len({jax.tree.structure(config) for config in configs}) > 1:
        raise ValueError("lanes: configs differ in more than numbers; train them apart")
    stacked = jax.tree.map(lambda *x: np.array(x, np.float32), *configs)
    return Lanes(np.array(seeds, np.uint32), stacked)


def make_programs(
    run_config: RunConfig,
    env: base.Env,
    layout: devices.Layout,
    data: Dataset | None = None,
) -> Programs:
    """The programs of a run.

    Configs are arguments of the programs, so that a sweep of their numbers doesn't
    compile again.

    Args:
      run_config: gives the episodes of an evaluation and the precision.
      env: the environment.
      layout: the devices.
      data: what the lanes start from, or are trained on alone.

    Returns:
      The programs.
    """

    def over_lanes(function, in_axes, **options):
        precise = jax.default_matmul_precision(run_config.matmul_precision)(function)
        return devices.over_lanes(precise, layout, in_axes=in_axes, **options)

    def play(state, lane, index):
        return _play(state, lane, index, env, run_config.eval_episodes)

    offline = data is not None and data.offline
    return Programs(
        env=env,
        data=data,
        init=over_lanes(
            lambda lane: mbpo.init(
                jax.random.key(lane.seeds), env=env, config=lane.configs
            ),
            (0,),
            compile_fast=True,
        ),
        add_data=over_lanes(mbpo.add_data, (0, None), donate=(0,)),
        warm_up=over_lanes(
            lambda state, lane: mbpo.warm_up(state, env=env, config=lane.configs),
            (0, 0),
            donate=(0,),
        ),
        fit_model=over_lanes(
            lambda state, lane: mbpo.fit_model(state, config=lane.configs), (0, 0)
        ),
        improve_policy=over_lanes(
            lambda state, fitted, lane: mbpo.improve_policy(
                state, fitted, env=env, config=lane.configs, offline=offline
            ),
            (0, 0, 0),
            donate=(0,),
        ),
        evaluate=over_lanes(play, (0, 0, None)),
    )


def _play(state, lane, index, env: base.Env, num_episodes: int):
    """Returns, lengths and metrics of the episodes of one lane's evaluation."""
    key = jax.random.fold_in(jax.random.key(lane.seeds), _EVALUATION_STREAM)
    act = jax.tree_util.Partial(
        lambda agent, key, obs: sac.act_mean(agent, obs, config=lane.configs.sac),
        state.agent,
    )
    key = jax.random.fold_in(key, index)
    return evaluate.returns(key, act, env=env, num_episodes=num_episodes)


def start(programs: Programs, lanes: Lanes) -> MBPOState:
    """The states of all lanes after the warm-up, which follows the rows of the data."""
    state = programs.init(lanes)
    if programs.data is not None:
        state = programs.add_data(state, programs.data.transitions)
    return programs.warm_up(state, lanes)


def epoch(
    programs: Programs, state: MBPOState, lanes: Lanes
) -> tuple[MBPOState, Metrics]:
    """One epoch of all lanes: states and metrics, `[L, ...]`. Donates `state`."""
    return mbpo.epoch(
        state,
        env=programs.env,
        config=lanes.configs,
        fit_model=lambda state, **_: programs.fit_model(state, lanes),
        improve_policy=lambda state, fitted, **_: programs.improve_policy(
            state, fitted, lanes
        ),
    )


def mean_returns(
    programs: Programs,
    state: MBPOState,
    lanes: Lanes,
    index: int,
    *,
    any_alive: bool = True,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Evaluates the policy of each lane.

    Args:
      programs: from `make_programs`.
      state: of all lanes.
      lanes: of the programs.
      index: number of the evaluation; each plays other episodes.
      any_alive: False plays nothing, and returns NaN and no metrics.

    Returns:
      `([L], [L], metrics)`: mean return, NaN for a diverged lane, mean episode length,
      and means of the environment's metrics by name, `[L, ...]`.
    """
    if not any_alive:
        nothing = np.full(len(lanes.seeds), np.nan)
        return nothing, nothing, {}
    played = devices.fetch_all(programs.evaluate(state, lanes, jnp.uint32(index)))
    returns, lengths, metrics = jax.tree.map(lambda x: x.mean(axis=1), played)
    alive = devices.fetch_all(state.alive)
    return np.where(alive, returns, np.nan), lengths, metrics


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
    lanes = stack_lanes(seeds_of(run_config), [config] * run_config.num_seeds)
    programs = make_programs(run_config, env, layout, data)
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
      announce: is called with the first states and progress before they are yielded,
        because compiling the programs of an epoch comes in between and takes long.

    Yields:
      As `train`.

    Raises:
      CheckpointError: `restored` belongs to other states.
      DeviceError: as `train`.
      RunError: as `train`.
    """
    num_lanes, steps = len(lanes.seeds), _steps(run_config, lanes.configs)
    began = time.monotonic() - (restored.seconds if restored else 0.0)
    lanes = _put_padded(lanes, layout, num_padded or layout.padded(num_lanes))
    limit = devices.memory_limit()
    shapes, metric_shapes = memory.shapes_of(programs, lanes, layout)
    state = _first_states(programs, lanes, shapes, layout, restored)
    first = steps.index(restored.env_steps) if restored else 0
    any_alive, speed = True, rows.Speed()
    for index in range(first, len(steps)):
        metrics, played = {}, (np.empty(0), np.empty(0), {})
        # Diverged lanes are frozen, so there is nothing to compute if all are.
        if index > first and any_alive:
            state, metrics = epoch(programs, state, lanes)
        is_due = index % run_config.eval_every == 0 or index == len(steps) - 1
        if is_due and (index > first or restored is None):
            played = mean_returns(programs, state, lanes, index, any_alive=any_alive)
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
            memory.check_epoch(programs, shapes, lanes, layout, limit)
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
    shapes: Shapes,
    layout: devices.Layout,
    restored: Restored | None,
) -> MBPOState:
    """The states to start from."""
    if restored is not None:
        return states.unpack(restored.arrays, shapes.state, layout)
    state = start(programs, lanes)
    _check_stored(state)
    return state


def _put_padded(lanes: Lanes, layout: devices.Layout, num_padded: int) -> Lanes:
    """Moves lanes to the devices; copies of the last one fill up the devices."""
    own = np.minimum(devices.own_lanes(layout, num_padded), len(lanes.seeds) - 1)
    return devices.put(jax.tree.map(lambda x: x[own], lanes), layout, num_padded)
