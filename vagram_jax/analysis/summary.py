"""Final returns, learning curves and summaries of runs.

These functions read the rows of `metrics.csv` and `timing.csv` in memory; none reads or
writes a file. A diverged seed is a failure: it is counted and scored with the lowest
return on its environment, and never left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vagram_jax.analysis import stats
from vagram_jax.storage.results import Run

# A share of dropped transitions that is not worth a warning.
_DROPPED = 0.01


class Finals(NamedTuple):
    """The final return of each seed of a run.

    Attributes:
      seeds: `[num_seeds]`, ascending.
      values: `[num_seeds]` final returns; the floor for a diverged seed.
      diverged: diverged seed to the `env_steps` at which it diverged.
    """

    seeds: np.ndarray
    values: np.ndarray
    diverged: dict[int, int]


class Curve(NamedTuple):
    """The learning curve of a run over its seeds.

    Attributes:
      env_steps: `[T]` steps at which every seed was evaluated.
      value: `[T]` interquartile mean of the returns.
      low: `[T]` lower end of the pointwise interval, NaN with fewer than 3 seeds.
      high: `[T]` upper end, NaN with fewer than 3 seeds.
    """

    env_steps: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def lowest_return(rows: Iterable[Mapping[str, Any]]) -> float:
    """Returns the lowest finite return in rows of `metrics.csv`, NaN if there is none.

    It is the score of a diverged seed, so pass the rows of all runs that are compared.
    """
    returns = (row["return"] for row in rows if row["return"] is not None)
    return min((float(r) for r in returns if math.isfinite(r)), default=math.nan)


def final_returns(
    rows: Sequence[Mapping[str, Any]], *, floor: float, last: float = 0.1
) -> Finals:
    """Returns the final return of each seed: the mean of its last evaluations.

    A seed counts as diverged if one of its rows has a `diverged_at`, or if one of the
    returns that are averaged isn't finite. Its final return is the floor, whatever it
    reached before.

    Args:
      rows: of one run's `metrics.csv`. Rows without a return are ignored.
      floor: the final return of a diverged seed, see `lowest_return`.
      last: the share of a seed's `env_steps` whose evaluations are averaged. The last
        evaluation is always included.

    Raises:
      ValueError: no evaluation, two evaluations of a seed at the same `env_steps`, or
        `last` outside [0, 1].
    """
    if not 0 <= last <= 1:
        raise ValueError(f"final_returns: last={last}; between 0 and 1 is accepted")
    values, diverged = [], {}
    seeds = _by_seed(rows)
    for seed, evaluations in seeds.items():
        end = evaluations[-1]["env_steps"]
        ends = [row for row in evaluations if row["env_steps"] > (1 - last) * end]
        ends = ends or evaluations[-1:]
        failures = [row for row in evaluations if row.get("diverged_at") is not None]
        failures += [row for row in ends if _has_failed(row)]
        if failures:
            at = failures[0].get("diverged_at")
            diverged[seed] = failures[0]["env_steps"] if at is None else int(at)
            values.append(floor)
            continue
        values.append(np.mean([row["return"] for row in ends], dtype=np.float64))
    return Finals(np.array(list(seeds)), np.array(values, dtype=np.float64), diverged)


def curves(
    rows: Sequence[Mapping[str, Any]], *, floor: float, resamples: int = 2000
) -> Curve:
    """Returns the learning curve of one run: IQM and 95% interval at each step.

    A diverged seed counts with the floor from the step at which it diverged. Only steps
    at which every seed was evaluated appear, because an interrupted run may lack the
    last evaluations of some seeds.

    Args:
      rows: of one run's `metrics.csv`.
      floor: the return of a diverged seed, see `lowest_return`.
      resamples: number of bootstrap resamples; every step uses the same draws of seeds.

    Raises:
      ValueError: no evaluation, or no step at which all seeds were evaluated.
    """
    returns = {
        seed: {
            row["env_steps"]: floor if _has_failed(row) else row["return"]
            for row in evaluations
        }
        for seed, evaluations in _by_seed(rows).items()
    }
    steps = sorted(set.intersection(*(set(by_step) for by_step in returns.values())))
    if not steps:
        raise ValueError("curves: the seeds have no env_steps in common")
    values = np.array([[r[step] for r in returns.values()] for step in steps], float)
    intervals = np.array([_interval(v, resamples=resamples) for v in values])
    return Curve(np.array(steps), *intervals.T)


def finals_per_run(runs: Sequence[Run]) -> dict[str, Finals]:
    """Returns the `final_returns` of each run by its name.

    Diverged seeds of all runs on one environment get the same floor.

    Raises:
      ValueError: a run has no evaluation or several environments.
    """
    floors = floor_per_env(runs)
    return {
        run.name: final_returns(run.metrics, floor=floors[env_of(run)]) for run in runs
    }


def summarize(
    runs: Sequence[Run], *, resamples: int = 10_000
) -> dict[str, dict[str, Any]]:
    """Returns the numbers by which runs are compared.

    Args:
      runs: each on one environment.
      resamples: number of bootstrap resamples.

    Returns:
      For each run's name `env`, `loss`, `iqm`, `low` and `high` (interquartile mean of
      the final returns and its 95% interval, whose ends are NaN with fewer than 3
      seeds), `seeds` and `diverged` (numbers of seeds), `warnings` (see `warnings`),
      `seconds` (wall time, None if unknown) and `env_steps`.

    Raises:
      ValueError: a run has no evaluation or several environments.
    """
    finals = finals_per_run(runs)
    summaries = {}
    for run in runs:
        final = finals[run.name]
        interval = _interval(final.values, resamples=resamples)
        summaries[run.name] = {
            "env": env_of(run),
            "loss": run.metrics[0]["loss"],
            "iqm": interval.value,
            "low": interval.low,
            "high": interval.high,
            "seeds": len(final.seeds),
            "diverged": len(final.diverged),
            "warnings": warnings(run),
            "seconds": _seconds(run),
            "env_steps": max(row["env_steps"] for row in run.metrics),
        }
    return summaries


def warnings(run: Run) -> list[str]:
    """Returns short texts about a run that trained on bad data or a bad model.

    "2 untrained": the model of two seeds never improved in any fit. "5% dropped": of
    the seed that lost most transitions, 5% had a number that isn't finite. A share of
    up to 1% is not mentioned.
    """
    improved: dict[int, float] = {}
    for row in run.model:
        count = row.get("improved")
        if count is not None:
            improved[row["seed"]] = max(count, improved.get(row["seed"], 0))
    untrained = sum(count == 0 for count in improved.values())
    dropped = max(
        ((row.get("dropped") or 0) / max(row["env_steps"], 1) for row in run.metrics),
        default=0.0,
    )
    texts = [f"{untrained} untrained"] if untrained else []
    return texts + ([f"{dropped:.0%} dropped"] if dropped > _DROPPED else [])


def env_of(run: Run) -> str:
    """Returns the name of a run's environment.

    Raises:
      ValueError: the run has no row of metrics, or rows of several environments.
    """
    envs = sorted({str(row["env"]) for row in run.metrics})
    if len(envs) != 1:
        raise ValueError(
            f"run {run.name}: environments {envs}; exactly one is accepted"
        )
    return envs[0]


def floor_per_env(runs: Sequence[Run]) -> dict[str, float]:
    """Returns, for each environment's name, the `lowest_return` of its runs.

    Raises:
      ValueError: a run has no row of metrics, or rows of several environments.
    """
    rows: dict[str, list] = {}
    for run in runs:
        rows.setdefault(env_of(run), []).extend(run.metrics)
    return {env: lowest_return(env_rows) for env, env_rows in rows.items()}


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats summaries of runs as an aligned text table, one line per run."""
    lines = [["run", "IQM", "95% interval", "diverged", "seconds"]]
    lines += [[name, *cells(row)] for name, row in summaries.items()]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )


def cells(row: Mapping[str, Any]) -> list[str]:
    """Formats one summary as the cells IQM, interval, diverged seeds and seconds."""
    ends = f"[{format_number(row['low'])}, {format_number(row['high'])}]"
    if not math.isfinite(row["low"]):
        is_few = row["seeds"] < stats.MIN_SEEDS
        ends = f"under {stats.MIN_SEEDS} seeds" if is_few else "-"
    return [
        format_number(row["iqm"]),
        ends,
        f"{row['diverged']}/{row['seeds']}",
        "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
    ]


def format_interval(interval: stats.Interval) -> str:
    """Formats an estimate with its interval, such as `-12.3 [-20.0, -5.00]`."""
    value, low, high = map(format_number, interval)
    return f"{value} [{low}, {high}]"


def format_number(value: float | None) -> str:
    """Formats a number with about four digits, or two if it is below 0.01.

    None and numbers that aren't finite become `-`.
    """
    if value is None or not math.isfinite(value):
        return "-"
    if 0.0 < abs(value) < 0.01:
        return f"{value:.2g}"
    decimals = next((d for d, top in enumerate((1000, 100, 1)) if abs(value) >= top), 3)
    return f"{value:.{decimals}f}"


def _interval(values: np.ndarray, *, resamples: int) -> stats.Interval:
    """Interval of `[num_seeds]` values, NaN ends if they are too few or not finite."""
    if len(values) < stats.MIN_SEEDS or not np.isfinite(values).all():
        return stats.Interval(float(stats.iqm(values)), math.nan, math.nan)
    return stats.interval({"run": values}, resamples=resamples)


def _by_seed(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """Evaluations of each seed, with seeds and `env_steps` ascending."""
    seeds: dict[int, list] = {row["seed"]: [] for row in rows}
    for row in rows:
        if row["return"] is not None or row.get("diverged_at") is not None:
            seeds[row["seed"]].append(row)
    if not seeds:
        raise ValueError("summary: no row of metrics; the run was never evaluated")
    for seed, evaluations in seeds.items():
        if not evaluations:
            raise ValueError(f"summary: seed {seed} was never evaluated")
        evaluations.sort(key=lambda row: row["env_steps"])
        if len({row["env_steps"] for row in evaluations}) != len(evaluations):
            raise ValueError(
                f"summary: seed {seed} has two evaluations at the same env_steps"
            )
    return dict(sorted(seeds.items()))


def _has_failed(row: Mapping[str, Any]) -> bool:
    return row.get("diverged_at") is not None or not math.isfinite(row["return"])


def _seconds(run: Run) -> float | None:
    """Wall time of a run, None if unknown. Chunks of seeds run one after the other."""
    seconds = {row["seed"]: row["wall_time_s"] for row in run.timing}
    return sum(seconds.values()) if seconds else None
