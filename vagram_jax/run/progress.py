"""What a run tells after each epoch: rows of its tables, and a line for a person.

Comes in: numbers of all lanes. Goes out: rows of `metrics.csv`, `model.csv` and
`timing.csv`, and text. The clock stands in `timing.csv` alone: the other tables of a
run that is repeated are the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# The agent's metrics that a row of metrics.csv has.
_AGENT_METRICS = (
    "sac/actor_loss",
    "sac/critic_loss",
    "sac/entropy",
    "sac/q_max",
    "sac/q_mean",
    "sac/temperature",
)
# The stages whose metrics a row of model.csv has, and what their columns begin with:
# there is a column `loss` already, which says what the model was trained for.
_MODEL_STAGES = {"model": "", "imagine": "", "termination": "termination_"}


class Progress(NamedTuple):
    """Where lanes stand.

    Attributes:
      env_steps: steps of each lane so far.
      returns: `[L]`, mean over an evaluation's episodes, NaN for a diverged lane;
        empty at epochs without an evaluation.
      lengths: `[L]` or empty, mean length of its episodes.
      metrics: of the last epoch, `[L, ...]`; empty before the first.
      diverged_at: `[L]`, the step, or -1.
      dropped: `[L]`, transitions so far that were left out as not finite.
      seconds: since the start.
    """

    env_steps: int
    returns: np.ndarray
    lengths: np.ndarray
    metrics: Mapping[str, np.ndarray]
    diverged_at: np.ndarray
    dropped: np.ndarray
    seconds: float


def of_lanes(progress: Progress, lanes: slice) -> Progress:
    """The part of the lanes of one run.

    Args:
      progress: of all lanes.
      lanes: which.

    Returns:
      Their progress.
    """
    return progress._replace(
        returns=progress.returns[lanes],
        lengths=progress.lengths[lanes],
        metrics={name: values[lanes] for name, values in progress.metrics.items()},
        diverged_at=progress.diverged_at[lanes],
        dropped=progress.dropped[lanes],
    )


def metric_rows(
    progress: Progress, seeds: Sequence[int], constant: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of `metrics.csv`.

    Args:
      progress: of the seeds' lanes, with an evaluation.
      seeds: one per lane.
      constant: columns that are the same in all rows; they come first.

    Returns:
      One row per seed: the return, and the agent's metrics of the last epoch.
    """
    rows = []
    for i, seed in enumerate(seeds):
        at = int(progress.diverged_at[i])
        rows.append(
            {
                **constant,
                "seed": int(seed),
                "env_steps": progress.env_steps,
                "return": float(progress.returns[i]),
                "length": float(progress.lengths[i]),
                "diverged_at": at if at >= 0 else None,
                "dropped": int(progress.dropped[i]),
            }
            | {name: _number(progress, name, i) for name in _AGENT_METRICS}
        )
    return rows


def model_rows(
    progress: Progress, seeds: Sequence[int], constant: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of `model.csv`.

    Args:
      progress: of the seeds' lanes, after an epoch.
      seeds: one per lane.
      constant: columns that are the same in all rows; they come first.

    Returns:
      One row per seed; the entries of a vector get columns of their own.
    """
    rows = []
    for i, seed in enumerate(seeds):
        row = {**constant, "seed": int(seed), "env_steps": progress.env_steps}
        for name, values in progress.metrics.items():
            stage, _, quantity = name.partition("/")
            if stage in _MODEL_STAGES:
                row |= _columns(_MODEL_STAGES[stage] + quantity, values[i])
        rows.append(row)
    return rows


def timing_row(progress: Progress, seeds: Sequence[int]) -> dict[str, Any]:
    """The row of `timing.csv`.

    Args:
      progress: of the program.
      seeds: one per lane of the run.

    Returns:
      The first seed, the steps and the seconds.
    """
    return {
        "seed": int(seeds[0]),
        "env_steps": progress.env_steps,
        "wall_time_s": round(progress.seconds, 3),
    }


def line(name: str, progress: Progress, *, first: int, last: int) -> str:
    """Where a run stands: steps, returns over seeds, time spent and time left.

    Args:
      name: of the run.
      progress: of its lanes, with an evaluation.
      first: the step at which training began.
      last: the step at which it will end.

    Returns:
      One line.
    """
    alive = progress.returns[np.isfinite(progress.returns)]
    done = progress.env_steps - first
    text = f"{name}: step {progress.env_steps} of {last}"
    if alive.size:
        text += (
            f", return {np.median(alive):.0f} ({alive.min():.0f} to {alive.max():.0f})"
        )
    if alive.size < progress.returns.size:
        text += f", {progress.returns.size - alive.size} diverged"
    text += f", {progress.seconds:.0f} s"
    if done > 0:
        left = progress.seconds / done * (last - progress.env_steps)
        text += f", {left:.0f} s left"
    return text


def _number(progress: Progress, name: str, lane: int) -> float | None:
    return float(progress.metrics[name][lane]) if progress.metrics else None


def _columns(name: str, value: np.ndarray) -> dict[str, Any]:
    if np.ndim(value) == 0:
        return {name: np.asarray(value).item()}
    return {f"{name}_{j}": entry for j, entry in enumerate(value.tolist())}
