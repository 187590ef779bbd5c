"""Compares this package with other libraries: speed, and time and steps to a return.

A folder has one file per method, task and seed, so that an interrupted comparison goes
on where it stopped; from them come `peers.json` and `peers.png`. A file has the fields
`trained_together` (the seeds of one program), `settings` (those that differ from the
defaults) and `curve` (see `peers_training.Recorder`), and what was asked for.
"""

from __future__ import annotations

import importlib
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import ticker

from experiments import peers_training, peers_updates
from experiments.peers_training import METHODS, TASKS, Task
from vagram_jax.analysis import figures
from vagram_jax.config import ConfigError
from vagram_jax.run import devices
from vagram_jax.storage import files

_NAMES = {"sbx_sac": "SBX SAC", "sbx_crossq": "SBX CrossQ"}
_LIBRARIES = ("jax", "torch", "sbx-rl", "stable-baselines3", "gymnasium")

_Cells = dict[int, dict[str, Any]]


class Reached(NamedTuple):
    """What a method needed until each of its seeds first had a return.

    Times are infinite if a seed never had it. The seeds of one program share its time.

    Attributes:
      seeds: number of seeds.
      reached: number of those that had the return.
      env_steps: median over the seeds.
      seconds: of a seed, with compilation; median over the seeds.
      without_compiling: the same without compilation.
      all_seeds: seconds until the last seed had it, one program after the other.
    """

    seeds: int
    reached: int
    env_steps: float
    seconds: float
    without_compiling: float
    all_seeds: float


def check(tasks: Sequence[str], methods: Sequence[str]) -> list[Task]:
    """Returns the tasks that are asked for.

    Args:
      tasks: each `NAME`, `NAME:STEPS` or `NAME:STEPS:RETURN`.
      methods: names of methods.

    Raises:
      ConfigError: an unknown task or method, a number that isn't one, or a library
        isn't installed.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"--methods={method}; accepted: {', '.join(METHODS)}")
    for module in ("sbx", "torch", "mujoco"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f'--suite=peers: {error}; pip install "vagram_jax[peers,mujoco]"'
            ) from error
    return [_task(text) for text in tasks]


def measure(
    folder: Path,
    tasks: Sequence[Task],
    methods: Sequence[str],
    *,
    seeds: int,
    minutes: float,
) -> dict[str, float]:
    """Measures what the folder lacks, and writes `peers.json` and `peers.png`.

    Args:
      folder: of the results.
      tasks: from `check`.
      methods: the methods to train, whose seeds are 0, 1 and so on.
      seeds: number of seeds of each.
      minutes: time that training may take per seed.

    Returns:
      Names to numbers; times to a return are missing where a seed hasn't had it.

    Raises:
      ConfigError: the folder has results of other settings.
      ResultsError: a file can't be read or written.
    """
    speed = _updates(folder / "updates.json")
    trained = {
        task: {
            method: _cells(folder, method, task, range(seeds), minutes)
            for method in methods
        }
        for task in tasks
    }
    reached = {
        task.name: {name: until(task.target, cells) for name, cells in group.items()}
        for task, group in trained.items()
    }
    summary = {
        "minutes": minutes,
        "speed": speed,
        "tasks": {task.name: task._asdict() for task in tasks},
        "reached": {
            task: {name: row._asdict() for name, row in group.items()}
            for task, group in reached.items()
        },
    }
    files.write_json(folder / "peers.json", _machine() | summary)
    if trained:
        plot(trained, folder / "peers.png")
    for task in tasks:
        print(table(task, reached[task.name]), flush=True)
    return speed | _flat(reached)


def until(target: float, cells: _Cells) -> Reached:
    """Returns what the seeds of a method needed to reach a return.

    Args:
      target: the return.
      cells: by seed, with `trained_together` and `curve`.
    """
    rows, last = {}, {}
    for seed, cell in cells.items():
        group = tuple(cell["trained_together"])
        row = next((row for row in cell["curve"] if _has(row, target)), None)
        rows[seed] = row and {
            "env_steps": row["env_steps"],
            "seconds": row["seconds"] / len(group),
            "running": (row["seconds"] - row["compile_seconds"]) / len(group),
        }
        seconds = math.inf if row is None else row["seconds"]
        last[group] = max(last.get(group, 0.0), seconds)

    def median(name):
        return statistics.median(
            row[name] if row else math.inf for row in rows.values()
        )

    return Reached(
        seeds=len(rows),
        reached=sum(row is not None for row in rows.values()),
        env_steps=median("env_steps"),
        seconds=median("seconds"),
        without_compiling=median("running"),
        all_seeds=sum(last.values()),
    )


def table(task: Task, reached: Mapping[str, Reached]) -> str:
    """Returns the table of a task, with times relative to the first method's.

    The column "running" has the seconds of a seed without compilation.
    """
    first = next(iter(reached))
    lines = [
        f"{task.gymnasium}: until a return of {task.target:g}, medians of the seeds",
        f"{'':<14}{'seeds':>8}{'env steps':>11}{'s a seed':>10}"
        f"{'running':>10}{'s in all':>10}  to {display_name(first)}",
    ]
    for name, row in reached.items():
        numbers = (row.seconds, row.without_compiling, row.all_seeds)
        relative_to = reached[first].seconds
        ratio = row.seconds / relative_to if math.isfinite(relative_to) else math.inf
        lines.append(
            f"{display_name(name):<14}{f'{row.reached}/{row.seeds}':>8}"
            f"{_number(row.env_steps, 0):>11}"
            + "".join(f"{_number(x, 1):>10}" for x in numbers)
            + f"{_number(ratio, 2):>8}"
        )
    return "\n".join(lines)


def plot(trained: Mapping[Task, Mapping[str, _Cells]], path: Path) -> None:
    """Draws returns against seconds and against steps: medians and ranges of the seeds.

    Args:
      trained: tasks to methods to their cells by seed.
      path: of the PNG.
    """
    figure = figures.new_figure(height=4.6 * len(trained))
    all_axes = figure.subplots(len(trained), 2, squeeze=False, sharey="row")
    for row, (task, methods) in zip(all_axes, trained.items(), strict=True):
        styles = figures.styles(methods)
        for axes, x_name in zip(row, ("seconds", "env_steps"), strict=True):
            for name, cells in methods.items():
                x, bands = curve(cells, x_name)
                if len(x):
                    label, style = display_name(name), styles[name]
                    figures.draw_band(
                        axes, x, bands, label, style, num_markers=8, is_step=True
                    )
            axes.axhline(task.target, color=figures.GRAY, linewidth=1.2, linestyle="--")
        notes = ("seconds of training a seed", "environment steps")
        for axes, x_label in zip(row, notes, strict=True):
            figures.set_labels(axes, task.gymnasium, x_label, "return")
        row[0].set_xscale("log")
        row[0].xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
        row[0].xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        row[0].xaxis.set_minor_locator(ticker.NullLocator())
        figures.add_legend(row[0], "median and range of the seeds")
    figures.save(figure, path)


def curve(cells: _Cells, x_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns x `[T]` and median, lowest and highest return `[T, 3]`.

    Between two evaluations a seed has the return of the earlier one. The curve begins
    and ends where all seeds have one.

    Args:
      cells: by seed.
      x_name: "env_steps", or "seconds", which the seeds of one program share.
    """
    xs, returns = [], []
    for cell in cells.values():
        share = len(cell["trained_together"]) if x_name == "seconds" else 1
        xs.append([row[x_name] / share for row in cell["curve"]])
        values = [row["return"] for row in cell["curve"]]
        returns.append(np.array(values, dtype=float))  # None becomes NaN
    if not xs or not all(xs):
        return np.empty(0), np.empty((0, 3))
    first, last = max(x[0] for x in xs), min(x[-1] for x in xs)
    grid = np.unique([x for each in xs for x in each if first <= x <= last])
    held = np.stack(
        [
            values[np.searchsorted(x, grid, side="right") - 1]
            for x, values in zip(xs, returns, strict=True)
        ]
    )
    bands = (np.median(held, axis=0), np.min(held, axis=0), np.max(held, axis=0))
    return grid, np.stack(bands, axis=1)


def display_name(method: str) -> str:
    """Returns the name of a method for the table and the figure."""
    return _NAMES.get(method) or figures.display_name(method)


def _task(text: str) -> Task:
    name, *numbers = text.split(":")
    if name not in TASKS or len(numbers) > 2:
        raise ConfigError(
            f"--tasks={text}; NAME, NAME:STEPS or NAME:STEPS:RETURN is accepted, NAME "
            f"one of {', '.join(TASKS)}"
        )
    task = TASKS[name]
    try:
        if numbers:
            task = task._replace(steps=int(numbers[0]))
        if numbers[1:]:
            task = task._replace(target=float(numbers[1]))
    except ValueError as error:
        raise ConfigError(f"--tasks={text}: {error}; write a number") from error
    return task


def _updates(path: Path) -> dict[str, float]:
    """The figures of `peers_updates`, measured unless the folder has them."""
    if not path.exists():
        files.write_json(path, peers_updates.figures())
    return files.read_json(path)


def _cells(
    folder: Path, method: str, task: Task, seeds: Sequence[int], minutes: float
) -> _Cells:
    """What is recorded of each seed; trains those of which the folder has no file."""
    asked = {
        "method": method,
        "task": task.gymnasium,
        "steps": task.steps,
        "minutes": minutes,
    }
    paths = {s: folder / f"{task.name}-{method}-{s}.json" for s in seeds}
    cells = {seed: files.read_json(p) for seed, p in paths.items() if p.exists()}
    for seed, cell in cells.items():
        for key, value in asked.items():
            if cell[key] != value:
                raise ConfigError(
                    f"{paths[seed]}: trained with {key}={cell[key]}, not {value}; "
                    "choose another --peers_folder, or remove the file"
                )
    missing = [seed for seed in seeds if seed not in cells]
    together = method in peers_training.OURS
    for group in [missing] if together and missing else [[seed] for seed in missing]:
        print(f"{task.name}: {display_name(method)}, seeds {group}", flush=True)
        for seed, cell in peers_training.train(method, task, group, minutes).items():
            cells[seed] = files.as_json(asked | _machine() | {"seed": seed} | cell)
            files.write_json(paths[seed], cells[seed])
    return {seed: cells[seed] for seed in seeds}


def _machine() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return {
        "device": devices.describe(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _has(row: Mapping[str, Any], target: float) -> bool:
    return row["return"] is not None and row["return"] >= target


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "-"


def _flat(reached: Mapping[str, Mapping[str, Reached]]) -> dict[str, float]:
    """The finite numbers of the tables, by name."""
    names = {
        "env_steps": "environment steps",
        "seconds": "s a seed",
        "without_compiling": "s a seed without compiling",
        "all_seeds": "s in all",
    }
    flat = {}
    for task, methods in reached.items():
        for method, row in methods.items():
            for field, name in names.items():
                if math.isfinite(value := getattr(row, field)):
                    flat[f"{task}, {method}, {name}"] = float(value)
    return flat
