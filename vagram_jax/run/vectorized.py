"""The compiled programs of a run, vectorized over its lanes.

A lane is one seed of one config; configs that differ only in numbers share the compiled
programs. The initial state is separate from the warm-up because it takes longer to
compile than to run. An epoch is two programs because its second half is the same for
all losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import evaluate, mbpo, sac
from vagram_jax.envs import base
from vagram_jax.mbpo import Fitted, MBPOConfig, MBPOState
from vagram_jax.run import devices
from vagram_jax.run.datasets import Dataset
from vagram_jax.types import Metrics, Transition

# Folded into the seed's key for evaluations, apart from the keys of training.
_EVALUATION_STREAM = 2**31 - 1


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


def put_padded(lanes: Lanes, layout: devices.Layout, num_padded: int) -> Lanes:
    """Moves lanes to the devices; copies of the last one follow up to `num_padded`."""
    own = np.minimum(devices.own_lanes(layout, num_padded), len(lanes.seeds) - 1)
    return devices.put(jax.tree.map(lambda x: x[own], lanes), layout, num_padded)


def make_programs(
    env: base.Env,
    layout: devices.Layout,
    *,
    eval_episodes: int,
    matmul_precision: str,
    data: Dataset | None = None,
) -> Programs:
    """The programs of a run.

    Configs are arguments of the programs, so that a sweep of their numbers doesn't
    compile again.

    Args:
      env: the environment.
      layout: the devices.
      eval_episodes: as in `RunConfig`.
      matmul_precision: as in `RunConfig`.
      data: what the lanes start from, or are trained on alone.

    Returns:
      The programs.
    """

    def over_lanes(function, in_axes, **options):
        precise = jax.default_matmul_precision(matmul_precision)(function)
        return devices.over_lanes(precise, layout, in_axes=in_axes, **options)

    def init(lane):
        return mbpo.init(jax.random.key(lane.seeds), env=env, config=lane.configs)

    play = partial(_play, env=env, num_episodes=eval_episodes)
    offline = data is not None and data.offline
    return Programs(
        env=env,
        data=data,
        init=over_lanes(init, (0,), compile_fast=True),
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


def _play(state, lane, index, *, env: base.Env, num_episodes: int):
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
    programs: Programs, state: MBPOState, lanes: Lanes, index: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Evaluates the policy of each lane.

    Args:
      programs: from `make_programs`.
      state: of all lanes.
      lanes: of the programs.
      index: number of the evaluation; each plays other episodes.

    Returns:
      `([L], [L], metrics)`: mean return, NaN for a diverged lane, mean episode length,
      and means of the environment's metrics by name, `[L, ...]`. If all lanes have
      diverged, nothing is played: NaN and no metrics.
    """
    alive = devices.fetch_all(state.alive)
    if not alive.any():
        nothing = np.full(len(alive), np.nan)
        return nothing, nothing, {}
    played = devices.fetch_all(programs.evaluate(state, lanes, jnp.uint32(index)))
    returns, lengths, metrics = jax.tree.map(lambda x: x.mean(axis=1), played)
    return np.where(alive, returns, np.nan), lengths, metrics
