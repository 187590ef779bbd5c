"""The tables of a run: appends rows, and checks those that belong to a checkpoint.

A checkpoint is only resumed from if the tables still have all rows up to its step, so
that a resumed run leaves no hole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vagram_jax.run import rows
from vagram_jax.run.rows import Progress
from vagram_jax.storage import disk, files

NAMES = ("metrics.csv", "model.csv", "timing.csv")
# Wall times aren't results, and no two runs have the same.
_CHECKED, _TIMING = NAMES[:2], NAMES[2]
_NOTE = "tables"


class Tables:
    """The tables of one run, for the seeds that train together."""

    def __init__(self, folder: Path, seeds: range):
        """Reads the existing rows of the seeds.

        Args:
          folder: of the run.
          seeds: the seeds.

        Raises:
          ResultsError: a table can't be read.
        """
        self._folder, self._seeds = folder, seeds
        self._digests = {name: _Digest() for name in _CHECKED}
        for name, digest in self._digests.items():
            digest.update(line for *_, line in _lines(folder / name, seeds))
        timing, header = folder / _TIMING, b""
        if disk.is_file(timing):
            with files.one_line(timing):
                header = timing.read_bytes().partition(b"\n")[0]
        # A run that an earlier version began has no columns for the memory.
        self._has_memory = not header or b"memory" in header

    def append(
        self, progress: Progress, constant: Mapping[str, Any]
    ) -> dict[str, list[dict[str, Any]]]:
        """Appends the rows of an epoch and returns them, by the name of the table.

        Args:
          progress: of the lanes of the seeds.
          constant: columns with the same value in all rows; they come first.

        Raises:
          ResultsError: a table can't be written.
        """
        if not self._has_memory:
            progress = progress._replace(memory={})
        new = {
            "model.csv": rows.model_rows(progress, self._seeds, constant),
            _TIMING: [rows.timing_row(progress, self._seeds)],
            "metrics.csv": rows.metric_rows(progress, self._seeds, constant),
        }
        for name, table in new.items():
            lines = files.append_rows(self._folder / name, table)
            if name in self._digests:
                self._digests[name].update(lines.splitlines(keepends=True))
        return new

    def notes(self) -> dict[str, Any]:
        """What the notes of a checkpoint say of the tables, for `missing`."""
        by_name = {name: each.numbers() for name, each in self._digests.items()}
        return {_NOTE: {"seeds": [self._seeds[0], self._seeds[-1]], **by_name}}


def missing(folder: Path, notes: Mapping[str, Any], step: int) -> str | None:
    """Says in one line which rows of a checkpoint the tables don't have.

    Args:
      folder: of the run.
      notes: of a piece of the checkpoint. Without a note on tables nothing is checked:
        only the first process writes tables.
      step: of the checkpoint.

    Returns:
      The line, or None if all rows are there.
    """
    if _NOTE not in notes:
        return None
    try:
        first, last = notes[_NOTE]["seeds"]
        for name in _CHECKED:
            count, expected = notes[_NOTE][name]
            digest, seeds = _Digest(), range(first, last + 1)
            lines = _lines(folder / name, seeds)
            digest.update(line for _, at, line in lines if at <= step)
            found, actual = digest.numbers()
            if found != count:
                return f"{folder / name}: has {found} of {count} rows up to step {step}"
            if actual != expected:
                return f"{folder / name}: rows up to step {step} were changed"
    except (KeyError, TypeError, ValueError):
        return f"{folder}: the checkpoint of step {step} has damaged notes"
    except files.ResultsError as error:
        return str(error)
    return None


def last_step(folder: Path, seeds: range) -> int:
    """The last step of some seeds in the tables of a run, -1 without a row.

    Raises:
      ResultsError: a table can't be read.
    """
    steps = (step for name in NAMES for _, step, _ in _lines(folder / name, seeds))
    return max(steps, default=-1)


def remove_later(folder: Path, seeds: range, step: int, *, all_seeds: range) -> None:
    """Removes the rows of some seeds after a step, which a resumed run writes again.

    Rows of seeds that aren't of the run come from damage and are removed too.

    Raises:
      ResultsError: a table can't be read or written.
    """
    for name in NAMES:
        files.keep_rows(folder / name, env_steps=step, seeds=seeds, others=all_seeds)


def set_aside(folder: Path) -> list[str]:
    """Copies the tables of a run to other names, which are returned.

    Raises:
      ResultsError: a table can't be read, or a copy can't be written.
    """
    existing = [folder / name for name in NAMES if disk.is_file(folder / name)]
    return [files.set_aside(path) for path in existing]


def seconds(folder: Path, seed: int, step: int) -> float:
    """The time that training had taken at a step, from the table.

    Args:
      folder: of the run.
      seed: the first of those that trained together.
      step: the step.
    """
    path = folder / _TIMING
    rows_ = files.read_rows(path) if _lines(path, [seed]) else []
    times = [
        row.get("wall_time_s")
        for row in rows_
        if row["seed"] == seed and row["env_steps"] <= step
    ]
    return max((x for x in times if isinstance(x, int | float)), default=0.0)


class _Digest:
    """Number and SHA-256 of lines."""

    def __init__(self):
        self._count, self._sha256 = 0, hashlib.sha256()

    def update(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._count += 1
            self._sha256.update(line)

    def numbers(self) -> list[Any]:
        return [self._count, self._sha256.hexdigest()]


def _lines(path: Path, seeds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Seed, step and line of the rows of some seeds; none if the table is missing."""
    lines = files.seed_lines(path) if disk.is_file(path) else []
    return [line for line in lines if line[0] in seeds]
