"""Reads learning curves that others have published, to draw them beside our own."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vagram_jax.storage import files
from vagram_jax.storage.files import ResultsError

_COLUMNS = ("algorithm", "env", "env_steps", "mean_return", "std_over_seeds", "seeds")
_NUMBERS = _COLUMNS[2:]


class PublishedCurve(NamedTuple):
    """The learning curve of one algorithm on one task.

    Attributes:
      algorithm: its name.
      env_steps: `[T]`, ascending.
      mean: `[T]`, mean return over seeds.
      std: `[T]`, standard deviation over seeds.
      seeds: number of seeds.
    """

    algorithm: str
    env_steps: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    seeds: int


def load(path: str | os.PathLike) -> dict[str, list[PublishedCurve]]:
    """Reads a CSV file with one row per algorithm, task and number of steps.

    The columns are `algorithm`, `env`, `env_steps`, `mean_return`, `std_over_seeds` and
    `seeds`; others are ignored.

    Args:
      path: of the file.

    Returns:
      Names of tasks in lower case, such as "hopper", to their curves.

    Raises:
      ResultsError: the file can't be read, lacks a column, or a cell isn't a number.
    """
    path = Path(path)
    with files.one_line(path):
        text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    missing = [name for name in _COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ResultsError(
            f"{path}: no column {missing[0]}; a header and rows with "
            f"{', '.join(_COLUMNS)} are accepted"
        )
    groups: dict[tuple[str, str], list[Sequence[float]]] = {}
    for number, row in enumerate(rows, start=2):
        key = row["env"].lower(), row["algorithm"]
        groups.setdefault(key, []).append(_numbers(path, number, row))
    curves: dict[str, list[PublishedCurve]] = {}
    for (env, algorithm), points in groups.items():
        points.sort(key=lambda point: point[0])
        env_steps, mean, std, seeds = np.array(points).T
        curve = PublishedCurve(algorithm, env_steps, mean, std, int(seeds.min()))
        curves.setdefault(env, []).append(curve)
    return curves


def _numbers(path: Path, line: int, row: Mapping[str, str]) -> Sequence[float]:
    numbers = []
    for name in _NUMBERS:
        try:
            numbers.append(float(row[name] or ""))
        except ValueError:
            raise ResultsError(
                f"{path}, line {line}: {name}={row[name]!r}; a number is accepted"
            ) from None
    return numbers
