"""What runs reached: from rows of `metrics.csv` to final returns, curves and a table.

Comes in: `Run`s or their rows. Goes out: what each seed reached, learning curves, and
the numbers by which runs are compared, with the intervals of `stats`. Nothing here
reads or writes a file.

A seed that diverged is a failure. It is counted and scored with the lowest return of
the study; it is never left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vagram_jax.analysis import stats
from vagram_jax.storage.results import Run


class Finals(NamedTuple):
    """What each seed reached.

    Attributes:
      seeds: [num_seeds] the seeds, ascending.
      values: [num_seeds] return at the end of training, the floor where it diverged.
      diverged: the seeds that diverged, to the env_steps at which they did.
    """

    seeds: np.ndarray
    values: np.ndarray
    diverged: dict[int, int]


class Curve(NamedTuple):
    """Return along training, over the seeds of one run.

    Attributes:
      env_steps: [T] steps at which every seed was evaluated.
      value: [T] interquartile mean.
      low: [T] lower end of the pointwise interval, NaN with too few seeds.
      high: [T] upper end, likewise.
    """

    env_steps: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def lowest_return(rows: Iterable[Mapping[str, Any]]) -> float:
    """The lowest finite return in any row: what a failed seed is scored with.

    Args:
      rows: of `metrics.csv`, of all runs that are compared on one environment.

    Returns:
      A return, NaN if no row has a finite one.
    """
    returns = (row["return"] for row in rows if row["return"] is not None)
    return min((float(r) for r in returns if math.isfinite(r)), default=math.nan)


def final_returns(
    rows: Sequence[Mapping[str, Any]], *, floor: float, last: float = 0.1
) -> Finals:
    """What each seed reached: the mean return of its last evaluations.

    A seed has failed if any of its rows says `diverged_at` or has a return that isn't
    finite; it counts with `floor`, whatever it reached before.

    Args:
      rows: of one run's `metrics.csv`; a row without a return is no evaluation.
      floor: the return of a failed seed, see `lowest_return`.
      last: the share of a seed's env_steps whose evaluations are averaged; the last
        evaluation always is.

    Returns:
      One value per seed.

    Raises:
      ValueError: no evaluation, two of one seed at the same env_steps, or `last`
        outside [0, 1].
    """
    if not 0 <= last <= 1:
        raise ValueError(f"final_returns: last={last}; between 0 and 1 is accepted")
    values, diverged = [], {}
    seeds = _by_seed(rows)
    for seed, evaluations in seeds.items():
        failures = [row for row in evaluations if _has_failed(row)]
        if failures:
            at = failures[0].get("diverged_at")
            diverged[seed] = failures[0]["env_steps"] if at is None else int(at)
            values.append(floor)
            continue
        end = evaluations[-1]["env_steps"]
        ends = [r["return"] for r in evaluations if r["env_steps"] > (1 - last) * end]
        values.append(np.mean(ends or [evaluations[-1]["return"]], dtype=np.float64))
    return Finals(np.array(list(seeds)), np.array(values, dtype=np.float64), diverged)


def curves(
    rows: Sequence[Mapping[str, Any]],
    *,
    floor: float,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Curve:
    """The learning curve of one run: at each step the IQM over seeds and its interval.

    From where a seed diverged on it counts with `floor`. Only steps at which every seed
    was evaluated appear: an interrupted run may lack some seeds at its end.

    Args:
      rows: of one run's `metrics.csv`.
      floor: the return of a failed seed, see `lowest_return`.
      confidence: of the pointwise intervals.
      resamples: how many bootstrap resamples.
      seed: of the resampling; every step uses the same draws of seeds.

    Returns:
      The curve, its ends NaN with fewer than 3 seeds.

    Raises:
      ValueError: no evaluation, or none that all seeds share.
    """
    returns = {
        seed_number: {
            row["env_steps"]: floor if _has_failed(row) else row["return"]
            for row in evaluations
        }
        for seed_number, evaluations in _by_seed(rows).items()
    }
    steps = sorted(set.intersection(*(set(by_step) for by_step in returns.values())))
    if not steps:
        raise ValueError("curves: the seeds have no env_steps in common")
    values = np.array([[r[step] for r in returns.values()] for step in steps], float)
    found = np.array(
        [
            _interval(at_step, confidence=confidence, resamples=resamples, seed=seed)
            for at_step in values
        ]
    )
    return Curve(np.array(steps), *found.T)


def summarise(
    runs: Sequence[Run],
    *,
    last: float = 0.1,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The numbers that runs are compared by.

    Args:
      runs: each on one environment; those on the same one share the floor.
      last: as in `final_returns`.
      resamples: how many bootstrap resamples.
      seed: of the resampling.

    Returns:
      A run's name to `env`, `loss`, `iqm`, `low`, `high` (final return and its 95%
      interval, the ends NaN with fewer than 3 seeds), `seeds`, `diverged`, `seconds`
      (wall time, None where it is unknown) and `env_steps`.

    Raises:
      ValueError: a run without evaluations or with more than one environment.
    """
    floors = floor_per_env(runs)
    summaries = {}
    for run in runs:
        finals = final_returns(run.metrics, floor=floors[env_of(run)], last=last)
        result = _interval(finals.values, resamples=resamples, seed=seed)
        summaries[run.name] = {
            "env": env_of(run),
            "loss": run.metrics[0]["loss"],
            "iqm": result.value,
            "low": result.low,
            "high": result.high,
            "seeds": len(finals.seeds),
            "diverged": len(finals.diverged),
            "seconds": _seconds(run),
            "env_steps": max(row["env_steps"] for row in run.metrics),
        }
    return summaries


def env_of(run: Run) -> str:
    """The one environment of a run.

    Args:
      run: with at least one row of metrics.

    Returns:
      The name in its rows.

    Raises:
      ValueError: it has none or several.
    """
    envs = sorted({str(row["env"]) for row in run.metrics})
    if len(envs) != 1:
        raise ValueError(
            f"run {run.name}: environments {envs}; exactly one is accepted"
        )
    return envs[0]


def floor_per_env(runs: Sequence[Run]) -> dict[str, float]:
    """What a failed seed is scored with: the same for all runs of an environment.

    Args:
      runs: each on one environment.

    Returns:
      An environment's name to the `lowest_return` of its runs.

    Raises:
      ValueError: a run has no environment or several.
    """
    rows: dict[str, list] = {}
    for run in runs:
        rows.setdefault(env_of(run), []).extend(run.metrics)
    return {env: lowest_return(found) for env, found in rows.items()}


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """The summaries of runs as text, one line per run, for a terminal.

    Args:
      summaries: from `summarise`.

    Returns:
      Lines of equal length, without an end of line after the last.
    """
    lines = [["loss", "IQM", "95% interval", "diverged", "seconds"]]
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
    """The numbers of one run as text, for a table.

    Args:
      row: one of `summarise`.

    Returns:
      The IQM, its interval, how many of how many seeds diverged, and the seconds.
    """
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


def format_number(value: float | None) -> str:
    """A number for a table, with about four digits, two where it is small.

    Args:
      value: any number, or None.

    Returns:
      Its text, `-` for None and for what isn't finite.
    """
    if value is None or not math.isfinite(value):
        return "-"
    if 0.0 < abs(value) < 0.01:
        return f"{value:.2g}"
    decimals = next((d for d, top in enumerate((1000, 100, 1)) if abs(value) >= top), 3)
    return f"{value:.{decimals}f}"


def _interval(values: np.ndarray, **options: Any) -> stats.Interval:
    """Over `[num_seeds]` values; without ends where they are few or none is finite."""
    if len(values) < stats.MIN_SEEDS or not np.isfinite(values).all():
        return stats.Interval(float(stats.iqm(values)), math.nan, math.nan)
    return stats.interval({"run": values}, **options)


def _by_seed(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """The evaluations of each seed, seeds and env_steps ascending."""
    seeds: dict[int, list] = {row["seed"]: [] for row in rows}
    for row in rows:
        if row["return"] is not None or row.get("diverged_at") is not None:
            seeds[row["seed"]].append(row)
    if not seeds:
        raise ValueError("summary: there is no row; the run was never evaluated")
    for seed, evaluations in seeds.items():
        if not evaluations:
            raise ValueError(f"summary: seed {seed} was never evaluated")
        evaluations.sort(key=lambda row: row["env_steps"])
        if len({row["env_steps"] for row in evaluations}) != len(evaluations):
            raise ValueError(f"summary: seed {seed} has two evaluations at one step")
    return dict(sorted(seeds.items()))


def _has_failed(row: Mapping[str, Any]) -> bool:
    return row.get("diverged_at") is not None or not math.isfinite(row["return"])


def _seconds(run: Run) -> float | None:
    """Wall time; chunks of seeds came one after the other. None where it is unknown."""
    last = {row["seed"]: row["wall_time_s"] for row in run.timing}
    return sum(last.values()) if last else None
