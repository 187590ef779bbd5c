"""The programs of a run over all lanes: start, the halves of an epoch, evaluation.

Comes in: an environment. Goes out: five programs on all devices. A lane is one seed
with one config, so configs that differ in numbers only share a program. The start is
two programs because the first takes longer to compile than to run, an epoch because its
second half is the same whatever the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import evaluate, mbpo, sac, training
from vagram_jax.envs import base, episodes
from vagram_jax.mbpo import Fitted
from vagram_jax.run import devices
from vagram_jax.training import MBPOConfig, MBPOState
from vagram_jax.types import Metrics

# Evaluations draw from the seed's key folded with this, apart from training's keys.
_EVALUATION_STREAM = 2**31 - 1


class Lanes(NamedTuple):
    """What the lanes of a program are.

    Attributes:
      seeds: `[L]` uint32.
      configs: the algorithm of each, its numbers `[L]`; what decides a shape or a
        branch is the same in all.
    """

    seeds: jax.Array
    configs: MBPOConfig


class Programs(NamedTuple):
    """The programs of a run, each over all lanes. Each compiles at its first call.

    Attributes:
      initialise: lanes to states before the first step.
      warm_up: `(states, lanes)` to states after the random steps; takes the memory of
        the old ones.
      learn_model: `(states, lanes)` to fitted models and metrics, `[L, ...]`.
      learn_policy: `(states, fitted, lanes)` to states and metrics, `[L, ...]`; takes
        the memory of the old states.
      evaluate: `(states, lanes, index)` to returns and lengths, `[L, num_episodes]`
        each; `index` numbers the evaluation.
    """

    initialise: Callable[[Lanes], MBPOState]
    warm_up: Callable[[MBPOState, Lanes], MBPOState]
    learn_model: Callable[[MBPOState, Lanes], tuple[Fitted, Metrics]]
    learn_policy: Callable[[MBPOState, Fitted, Lanes], tuple[MBPOState, Metrics]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]


def lanes(seeds: Sequence[int], configs: Sequence[MBPOConfig]) -> Lanes:
    """Lanes on the host.

    Args:
      seeds: one per lane.
      configs: one per lane, alike in all that decides a shape or a branch.

    Returns:
      The lanes, in NumPy.

    Raises:
      ValueError: the configs can't share a program.
    """
    kinds = {jax.tree.structure(config) for config in configs}
    if len(kinds) > 1:
        raise ValueError("lanes: configs differ in more than numbers; run them apart")
    stacked = jax.tree.map(lambda *x: np.array(x, np.float32), *configs)
    return Lanes(np.array(seeds, np.uint32), stacked)


def make(
    env: base.Env,
    *,
    eval_episodes: int,
    matmul_precision: str = "highest",
    layout: devices.Layout | None = None,
) -> Programs:
    """The programs of a run.

    Configs are arguments of each, so that their numbers are no constants in them.

    Args:
      env: the environment.
      eval_episodes: episodes of an evaluation.
      matmul_precision: of float32 matrix products.
      layout: where lanes run; by default side by side on all devices.

    Returns:
      The programs.
    """
    shared = {"env": env, "episode_length": episodes.length(env)}
    layout = layout or devices.Layout()

    def initialise(lane):
        return training.init(jax.random.key(lane.seeds), env=env, config=lane.configs)

    def warm_up(state, lane):
        return mbpo.warm_up(state, config=lane.configs, **shared)

    def learn_model(state, lane):
        return mbpo.learn_model(state, config=lane.configs)

    def learn_policy(state, fitted, lane):
        return mbpo.learn_policy(state, fitted, config=lane.configs, **shared)

    def play(state, lane, index):
        key = jax.random.fold_in(jax.random.key(lane.seeds), _EVALUATION_STREAM)
        act = jax.tree_util.Partial(
            lambda actor, key, obs: sac.act_mean(actor, obs, config=lane.configs.sac),
            state.agent.actor,
        )
        return evaluate.returns(
            jax.random.fold_in(key, index), act, num_episodes=eval_episodes, **shared
        )

    precise = jax.default_matmul_precision(matmul_precision)
    over = devices.over_lanes
    return Programs(
        initialise=over(precise(initialise), layout, in_axes=(0,), runs_once=True),
        warm_up=over(precise(warm_up), layout, in_axes=(0, 0), donate=(0,)),
        learn_model=over(precise(learn_model), layout, in_axes=(0, 0)),
        learn_policy=over(
            precise(learn_policy), layout, in_axes=(0, 0, 0), donate=(0,)
        ),
        evaluate=over(precise(play), layout, in_axes=(0, 0, None)),
    )


def start(programs: Programs, lanes: Lanes) -> MBPOState:
    """The states that training starts from, warmed up.

    Args:
      programs: from `make`.
      lanes: what they are.

    Returns:
      States, `[L, ...]`.
    """
    return programs.warm_up(programs.initialise(lanes), lanes)


def epoch(
    programs: Programs, states: MBPOState, lanes: Lanes
) -> tuple[MBPOState, Metrics]:
    """Both halves of an epoch.

    Args:
      programs: from `make`.
      states: of all lanes; their memory is taken.
      lanes: what they are.

    Returns:
      States and metrics, `[L, ...]`, as `mbpo.epoch`.
    """
    fitted, model_metrics = programs.learn_model(states, lanes)
    states, metrics = programs.learn_policy(states, fitted, lanes)
    return states, model_metrics | metrics


def returns(
    programs: Programs, states: MBPOState, lanes: Lanes, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """How well each lane's policy does now.

    Args:
      programs: from `make`.
      states: of all lanes.
      lanes: what they are.
      index: numbers the evaluation; each has episodes of its own.

    Returns:
      `([L], [L])`: mean return, NaN for a diverged lane, and mean episode length.
    """
    played = programs.evaluate(states, lanes, jnp.uint32(index))
    values, lengths = (x.mean(axis=1) for x in devices.fetch_all(played))
    alive = devices.fetch_all(states.alive)
    return np.where(alive, values, np.nan), lengths
