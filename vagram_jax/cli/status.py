"""Shows the state of runs: finished, running, stopped or failed, and the time left.

    vagram status results/pendulum-10-sweep

A folder is a study or holds studies; the default is `results`. The return is that of
the tables: the interquartile mean over the seeds of each seed's last evaluations, where
a diverged seed counts with the lowest return of the study.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vagram_jax.analysis import stats, summary
from vagram_jax.storage import files, lock, results

_HEADER = ["run", "state", "step", "seeds", "return", "time", "left"]


def main(folders: list[str]) -> int:
    """Prints one line per run and returns the exit status.

    Raises:
      ResultsError: a folder has no run in it, or a file is damaged.
    """
    lines = [_HEADER]
    for folder in folders or ["results"]:
        records = Path(folder).resolve().glob("**/config.json")
        studies: dict[Path, list[Path]] = {}
        for run in sorted(path.parent for path in records):
            studies.setdefault(run.parent, []).append(run)
        if not studies:
            raise files.ResultsError(f"{folder}: no run in it")
        for study, runs in studies.items():
            lines += _rows_of_study(study, runs)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(padded).rstrip())
    return 0


def _rows_of_study(study: Path, folders: Sequence[Path]) -> list[list[str]]:
    runs = {run.name: run for run in results.read_runs(study)}
    floors = summary.floor_per_env([run for run in runs.values() if run.metrics])
    return [_row(folder, runs[folder.name], floors) for folder in folders]


def _row(folder: Path, run: results.Run, floors: Mapping[str, float]) -> list[str]:
    state, seeds, final = _state(folder), str(run.config["num_seeds"]), "-"
    if run.metrics:
        finals = summary.final_returns(run.metrics, floor=floors[summary.env_of(run)])
        final = summary.format_number(float(stats.iqm(finals.values)))
        if finals.diverged:
            seeds += f", {len(finals.diverged)} diverged"
    total, timing = run.config["total_steps"], run.timing
    # Groups of seeds train one after the other, each with its own clock.
    clocks = {row["seed"]: row["wall_time_s"] for row in timing}
    left = _seconds_left(timing, total) if state.startswith("running") else None
    return [
        f"{folder.parent.name}/{folder.name}",
        state,
        f"{timing[-1]['env_steps'] if timing else 0} of {total}",
        seeds,
        final,
        _duration(sum(clocks.values())) if clocks else "-",
        "-" if left is None else _duration(left),
    ]


def _state(folder: Path) -> str:
    if results.is_finished(folder):
        return "finished"
    owner = lock.owner(folder)
    if owner is not None and lock.is_held(folder):
        return f"running (pid {owner.pid} on {owner.host}, {owner.age_s:.0f} s ago)"
    failure = folder / "failure.json"
    if failure.exists():
        return f"failed: {files.read_json(failure)['reason']}"
    return "stopped; --resume continues it"


def _seconds_left(timing: Sequence[Mapping[str, Any]], total: int) -> float | None:
    """The seconds until the seeds that train now have finished, at their speed."""
    rows = [row for row in timing if row["seed"] == timing[-1]["seed"]]
    if len(rows) < 2:
        return None
    first, last = rows[0], rows[-1]
    steps = last["env_steps"] - first["env_steps"]
    seconds = last["wall_time_s"] - first["wall_time_s"]
    return seconds / steps * (total - last["env_steps"]) if steps > 0 else None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    shape = "%H:%M:%S" if seconds < 86_400 else f"{seconds // 86_400:.0f} d %H:%M"
    return time.strftime(shape, time.gmtime(seconds))
