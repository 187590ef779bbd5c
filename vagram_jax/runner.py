"""The host's side of training: compile, repeat the epoch, evaluate, write, tell.

Comes in: an environment and configs. Goes out: the files of one run, row by row. All
seeds are in one program. What a run means is decided in `mbpo`; here is only when
things happen and where they are written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import struct
from tqdm import tqdm

from vagram_jax import evaluate, files, mbpo, sac
from vagram_jax.config import ConfigError, static
from vagram_jax.envs import base, episodes
from vagram_jax.mbpo import MBPOConfig, MBPOState
from vagram_jax.types import Metrics

# Evaluations draw from the seed's key folded with this, apart from training's keys.
_EVALUATION_STREAM = 2**31 - 1
# The agent's metrics that a row of metrics.csv has.
_AGENT_METRICS = (
    "sac/actor_loss",
    "sac/critic_loss",
    "sac/entropy",
    "sac/q_max",
    "sac/q_mean",
    "sac/temperature",
)


@struct.dataclass(kw_only=True)
class RunConfig:
    """How long, how many, and how often.

    Attributes:
      num_seeds: how many seeds train side by side.
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


class Programs(NamedTuple):
    """The programs of a run, made by `jax.jit`, each over all seeds at once.

    Attributes:
      start: `(seeds [S], config)` to states that are warmed up.
      epoch: `(states, config)` to states and metrics, `[S, ...]`; takes the memory of
        the old states.
      evaluate: `(states, seeds, index, config)` to returns and lengths,
        `[S, num_episodes]` each; `index` numbers the evaluation.
    """

    start: Callable[[jax.Array, MBPOConfig], MBPOState]
    epoch: Callable[[MBPOState, MBPOConfig], tuple[MBPOState, Metrics]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]


class Progress(NamedTuple):
    """What a run tells after each evaluation.

    Attributes:
      env_steps: steps of each seed so far.
      returns: `[S]`, mean over an evaluation's episodes, NaN for a diverged seed;
        empty at epochs without an evaluation.
      lengths: `[S]` or empty, mean length of its episodes.
      metrics: of the last epoch, `[S, ...]`; empty before the first.
      diverged_at: `[S]`, the step, or -1.
      seconds: since the start.
    """

    env_steps: int
    returns: np.ndarray
    lengths: np.ndarray
    metrics: dict[str, np.ndarray]
    diverged_at: np.ndarray
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
      ConfigError: as `mbpo.check`, or steps that are no whole number of epochs.
      EnvError: no episode length is known.
    """
    episodes.length(env)
    config = mbpo.check(config, env)
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


def programs(
    env: base.Env, *, eval_episodes: int, matmul_precision: str = "highest"
) -> Programs:
    """The programs of a run. Each compiles at its first call.

    The config is an argument of each, so that its numbers are no constants in them.

    Args:
      env: the environment.
      eval_episodes: episodes of an evaluation.
      matmul_precision: of float32 matrix products.

    Returns:
      The programs.
    """
    shared = {"env": env, "episode_length": episodes.length(env)}

    def start(seed, config):
        state = mbpo.init(jax.random.key(seed), env=env, config=config)
        return mbpo.warm_up(state, config=config, **shared)

    def epoch(state, config):
        return mbpo.epoch(state, config=config, **shared)

    def play(state, seed, index, config):
        key = jax.random.fold_in(jax.random.key(seed), _EVALUATION_STREAM)
        act = jax.tree_util.Partial(
            lambda actor, key, obs: sac.act_mean(actor, obs, config=config.sac),
            state.agent.actor,
        )
        return evaluate.returns(
            jax.random.fold_in(key, index), act, num_episodes=eval_episodes, **shared
        )

    precise = jax.default_matmul_precision(matmul_precision)
    return Programs(
        start=jax.jit(precise(jax.vmap(start, in_axes=(0, None)))),
        epoch=jax.jit(precise(jax.vmap(epoch, in_axes=(0, None))), donate_argnums=0),
        evaluate=jax.jit(precise(jax.vmap(play, in_axes=(0, 0, None, None)))),
    )


def seeds_of(run: RunConfig) -> np.ndarray:
    """The numbers of a run's seeds.

    Args:
      run: how many, from where on.

    Returns:
      `[S]` uint32.
    """
    return np.arange(run.first_seed, run.first_seed + run.num_seeds, dtype=np.uint32)


def train(
    run: RunConfig, config: MBPOConfig, env: base.Env
) -> Iterator[tuple[MBPOState, Progress]]:
    """Trains, and yields after the warm-up and after every epoch.

    In a notebook: `for state, progress in runner.train(run, config, env): ...`.

    Args:
      run: how long, how many, how often.
      config: the algorithm.
      env: the environment.

    Yields:
      The states of all seeds, `[S, ...]`, valid until the next turn, and the progress.

    Raises:
      ConfigError: as `check`.
      EnvError: as `check`.
    """
    run, config = check(run, config, env)
    compiled = programs(
        env, eval_episodes=run.eval_episodes, matmul_precision=run.matmul_precision
    )
    seeds = seeds_of(run)
    began = time.monotonic()
    num_epochs = (run.total_steps - config.warmup_steps) // config.steps_per_epoch
    states, metrics = compiled.start(seeds, config), {}
    for index in range(num_epochs + 1):
        if index:
            states, metrics = compiled.epoch(states, config)
        steps = config.warmup_steps + index * config.steps_per_epoch
        returns = lengths = np.empty(0)
        if index % run.eval_every == 0 or index == num_epochs:
            played = compiled.evaluate(states, seeds, np.uint32(index), config)
            returns, lengths = (np.asarray(x).mean(axis=1) for x in played)
            returns = np.where(np.asarray(states.alive), returns, np.nan)
        yield (
            states,
            Progress(
                env_steps=steps,
                returns=returns,
                lengths=lengths,
                metrics={k: np.asarray(v) for k, v in metrics.items()},
                diverged_at=np.asarray(states.diverged_at),
                seconds=time.monotonic() - began,
            ),
        )


def train_to_files(
    run: RunConfig,
    config: MBPOConfig,
    env: base.Env,
    *,
    folder: Path,
    env_name: str,
    tell: Callable[[str], None] = print,
) -> dict[int, int]:
    """Trains and writes what happens as it happens.

    Args:
      run: how long, how many, how often.
      config: the algorithm.
      env: the environment.
      folder: of the run, from `results.create_run`.
      env_name: what the rows call the environment.
      tell: takes a line of text after each evaluation.

    Returns:
      The seeds that diverged, each with the environment step.

    Raises:
      ConfigError: as `check`.
      ResultsError: a file can't be written.
    """
    constant = {"env": env_name, "loss": config.loss}
    bar = tqdm(
        total=run.total_steps, unit="step", leave=False, disable=not sys.stderr.isatty()
    )
    with bar:
        for _, progress in train(run, config, env):
            bar.update(progress.env_steps - bar.n)
            if progress.metrics and config.loss != mbpo.NO_MODEL:
                rows = _model_rows(progress, constant, run.first_seed)
                files.append_rows(folder / "model.csv", rows)
            if progress.returns.size:
                rows = _metric_rows(progress, constant, run.first_seed)
                files.append_rows(folder / "metrics.csv", rows)
                tell(_line(folder.name, progress, run, config))
    return {
        run.first_seed + i: int(step)
        for i, step in enumerate(progress.diverged_at)
        if step >= 0
    }


def _metric_rows(progress: Progress, constant, first_seed: int) -> list[dict]:
    """One row per seed: the return, and the agent's metrics of the last epoch."""
    rows = []
    for i, value in enumerate(progress.returns):
        at = int(progress.diverged_at[i])
        rows.append(
            constant
            | {
                "seed": first_seed + i,
                "env_steps": progress.env_steps,
                "wall_time_s": round(progress.seconds, 3),
                "return": float(value),
                "length": float(progress.lengths[i]),
                "diverged_at": at if at >= 0 else None,
            }
            | {name: _number(progress, name, i) for name in _AGENT_METRICS}
        )
    return rows


def _number(progress: Progress, name: str, seed: int) -> float | None:
    return float(progress.metrics[name][seed]) if progress.metrics else None


def _model_rows(progress: Progress, constant, first_seed: int) -> list[dict]:
    """One row per seed; the entries of a vector get columns of their own."""
    rows = []
    for i in range(len(progress.diverged_at)):
        row = constant | {"seed": first_seed + i, "env_steps": progress.env_steps}
        for name, values in progress.metrics.items():
            if name.startswith(("model/", "imagine/")):
                short = name.partition("/")[2]
                entries = np.atleast_1d(values[i])
                columns = (
                    [short]
                    if values.ndim == 1
                    else [f"{short}_{j}" for j in range(len(entries))]
                )
                row |= dict(zip(columns, entries.tolist(), strict=True))
        rows.append(row)
    return rows


def _line(name: str, progress: Progress, run: RunConfig, config: MBPOConfig) -> str:
    """Where a run stands: steps, returns over seeds, time spent and time left."""
    alive = progress.returns[np.isfinite(progress.returns)]
    done = progress.env_steps - config.warmup_steps
    text = f"{name}: step {progress.env_steps} of {run.total_steps}"
    if alive.size:
        text += (
            f", return {np.median(alive):.0f} ({alive.min():.0f} to {alive.max():.0f})"
        )
    if alive.size < progress.returns.size:
        text += f", {progress.returns.size - alive.size} diverged"
    text += f", {progress.seconds:.0f} s"
    if done:
        left = progress.seconds / done * (run.total_steps - progress.env_steps)
        text += f", {left:.0f} s left"
    return text
