"""Shows the state of runs: finished, running, stopped or failed, and the time left.

    vagram status results/pendulum-15-sweep

A folder is a study or holds studies; the default is `results`. A run whose files are
damaged gets a line that says so. The return is that of the tables: the interquartile
mean over the seeds of each seed's last evaluations, where a diverged seed counts with
the lowest return of the study.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vagram_jax.analysis import stats, summary
from vagram_jax.storage import files, lock, results

HEADER = ["run", "state", "step", "seeds", "return", "time", "left"]


class StudyStatus(NamedTuple):
    """The state of the runs of a study.

    Attributes:
      folder: of the study.
      rows: a row for each run that is shown, with the columns of `HEADER`; the row of a
        damaged run says what is damaged.
      runs: all runs of the study that can be read.
    """

    folder: Path
    rows: list[list[str]]
    runs: list[results.Run]


def main(folders: list[str]) -> int:
    """Prints one line per run and returns the exit status.

    Raises:
      ResultsError: a folder has no run in it, or can't be read.
    """
    lines = [HEADER, *(row for study in read(folders) for row in study.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(padded).rstrip())
    return 0


def read(folders: Sequence[str]) -> list[StudyStatus]:
    """Reads the state of the studies in some folders.

    Args:
      folders: studies, runs, or what holds studies; `results` if there is none.

    Raises:
      ResultsError: a folder has no run in it, or can't be read.
    """
    shown = []
    for folder in folders or ["results"]:
        path = Path(folder).resolve()
        records = [p for p in path.glob("**/config.json") if not p.parent.is_symlink()]
        studies = sorted({record.parents[1] for record in records})
        if not studies:
            what = "no run in it" if path.is_dir() else "no such folder"
            raise files.ResultsError(
                f"{folder}: {what}; the folder of a study, or one that holds studies, "
                "is accepted"
            )
        for study in studies:
            runs = [record.parent for record in records if study in record.parents]
            shown.append(_read_study(study, runs))
    return shown


def _read_study(study: Path, shown: Sequence[Path]) -> StudyStatus:
    runs: dict[str, results.Run] = {}
    problems: dict[str, str] = {}
    for folder in results.run_folders(study):
        try:
            runs[folder.name] = results.read_run(folder)
        except files.ResultsError as error:
            problems[folder.name] = str(error)
    floors = summary.floor_per_env([run for run in runs.values() if run.metrics])
    rows = []
    for folder in sorted(shown):
        try:
            if folder.name in problems:
                raise files.ResultsError(problems[folder.name])
            row = _row(folder, runs[folder.name], floors)
        except (files.ResultsError, ValueError) as error:
            row = [f"damaged: {error}", *["-"] * (len(HEADER) - 2)]
        row = [f"{study.name}/{folder.name}", *row]
        rows.append([files.printable(cell) for cell in row])
    return StudyStatus(study, rows, [*runs.values()])


def _row(folder: Path, run: results.Run, floors: Mapping[str, float]) -> list[str]:
    state, seeds, final = _state(folder), str(_setting(run, "num_seeds")), "-"
    if run.metrics:
        finals = summary.final_returns(run.metrics, floor=floors[summary.env_of(run)])
        final = summary.format_number(float(stats.iqm(finals.values)))
        if finals.diverged:
            seeds += f", {len(finals.diverged)} diverged"
    seeds = ", ".join([seeds, *summary.warnings(run)])
    total, timing = _setting(run, "total_steps"), run.timing
    # Groups of seeds train one after the other, each with its own clock.
    clocks = {row["seed"]: row["wall_time_s"] for row in timing}
    left = _seconds_left(timing, total) if state.startswith("running") else None
    return [
        state,
        f"{timing[-1]['env_steps'] if timing else 0} of {total}",
        seeds,
        final,
        _duration(sum(clocks.values())) if clocks else "-",
        "-" if left is None else _duration(left),
    ]


def _setting(run: results.Run, name: str) -> int:
    """A whole number of a run's config."""
    if not isinstance(value := run.config.get(name), int):
        raise files.ResultsError(f"config.json: {name}={value!r}; a whole number")
    return value


def _state(folder: Path) -> str:
    if results.is_finished(folder):
        return "finished"
    owner = lock.owner(folder)
    if owner is not None and lock.is_held(folder):
        return f"running (pid {owner.pid} on {owner.host}, {owner.age_s:.0f} s ago)"
    if os.path.lexists(folder / "failure.json"):
        failure = files.read_json(folder / "failure.json")
        reason = failure.get("reason") if isinstance(failure, dict) else None
        return f"failed: {reason}"
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
    if not abs(seconds) < 1e9:  # in a damaged table
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    shape = "%H:%M:%S" if seconds < 86_400 else f"{seconds // 86_400:.0f} d %H:%M"
    return time.strftime(shape, time.gmtime(seconds))
