"""The results folder: creates the folders of runs and reads them back.

    results/<study>/<run>/config.json   settings, versions and command, see `records`
                          metrics.csv   one row per seed and evaluation
                          model.csv     one row per seed and model fit
                          timing.csv    one row per epoch
                          checkpoints/  the state of training, see `checkpoint`
                          failure.json  why an unfinished run stopped
                          summary.json  written when the run has finished
                          policy-seed0.mp4, .gif or .html   a film, see `render`

No run leaves its folder, and no file holds an absolute path.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vagram_jax.storage import files, records
from vagram_jax.storage.files import ResultsError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?", re.IGNORECASE)
_STUDY_FILES = (".json", ".html", ".png")
_RUN_FILES = (records.NAME, "metrics.csv", "model.csv", "timing.csv", "summary.json")
_RUN_FILES += ("failure.json", "checkpoints")
_PICTURE = re.compile(r"policy-seed([0-9]+)\.(mp4|gif|html)")
_NOTHING: Mapping[str, Any] = types.MappingProxyType({})

# The columns that every table must have, with the types of their values.
_NUMBER = int | float | None
_COLUMNS = {
    "metrics.csv": {
        "env": str,
        "loss": str,
        "seed": int,
        "env_steps": int,
        "return": _NUMBER,
        "diverged_at": _NUMBER,
    },
    "model.csv": {"seed": int, "env_steps": int},
    "timing.csv": {"seed": int, "env_steps": int, "wall_time_s": int | float},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of a run: one config with all its seeds, finished or not.

    Attributes:
      name: name of its folder.
      config: the settings, nested.
      record: all of `config.json`, the config included.
      metrics: rows of `metrics.csv`.
      model: rows of `model.csv`.
      timing: rows of `timing.csv`.
      summary: contents of `summary.json`, or None while the run is unfinished.
      notes: what is missing from the files, in words.
    """

    name: str
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    model: Sequence[Mapping[str, Any]] = ()
    timing: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def check_name(name: str, *, what: str) -> str:
    """Returns the name if it is safe as a folder on every system.

    Args:
      name: letters, digits, `.`, `_` and `-`, at most 64 of them.
      what: what the name is of, for the message.

    Raises:
      ResultsError: any other name, one that a system reserves, or one like a file's.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        accepted = "1 to 64 of A-Z a-z 0-9 . _ - are accepted, the first no . or -"
    elif name.endswith(".") or _RESERVED.fullmatch(name):
        accepted = "some systems reserve it; rename"
    elif name.lower().endswith(_STUDY_FILES):
        accepted = "it must not end like a file of the study; rename"
    else:
        return name
    raise ResultsError(f"results: {what}={name!r}; {accepted}")


def check_run(
    root: str | os.PathLike,
    study: str,
    run: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> Path:
    """Returns the folder of a run after checking that the run may be written there.

    Call it before anything is compiled. It also checks that the disk can be written,
    and leaves nothing behind.

    Args:
      root: the results folder; it may be missing.
      study: name of the study.
      run: name of the run.
      overwrite: an existing run will be replaced, with its checkpoints.
      resume: an existing run will be continued.

    Returns:
      `root/study/run`, absolute; it may be missing.

    Raises:
      ResultsError: a bad name, a folder outside root or that can't be written, or an
        existing run while neither `overwrite` nor `resume` is set.
      ValueError: both `overwrite` and `resume` are set.
    """
    if overwrite and resume:
        raise ValueError("results: overwrite and resume exclude each other; choose one")
    check_name(study, what="study")
    check_name(run, what="run")
    with files.one_line(root):
        top = Path(root).resolve()
        folder = top / study / run
        if folder.resolve() != folder:
            raise ResultsError(
                f"results: {folder} is reached by a link; remove the link"
            )
        exists = any(os.path.lexists(folder / name) for name in _RUN_FILES)
    if exists and not (overwrite or resume):
        state = "a finished" if is_finished(folder) else "an unfinished"
        raise ResultsError(
            f"results: {folder} holds {state} run; --resume continues it, "
            "--overwrite replaces it, --study=NAME puts the new one elsewhere"
        )
    files.check_writable(folder)
    return folder


def create_run(
    root: str | os.PathLike,
    study: str,
    run: str,
    config: Mapping[str, Any],
    *,
    on: Mapping[str, Any] = _NOTHING,
    labels: Mapping[str, Any] = _NOTHING,
    overwrite: bool = False,
    resume: bool = False,
) -> Path:
    """Creates the folder of a run and writes its record.

    Args:
      root: the results folder.
      study: name of the study.
      run: name of the run.
      config: the settings, nested; every key a string.
      on: where the run computes, such as `device`; recorded beside the config.
      labels: what distinguishes the run from the others of its study; recorded beside
        the config.
      overwrite: first remove an existing run, with its checkpoints.
      resume: keep an existing run; its record gets an entry.

    Returns:
      The folder.

    Raises:
      ResultsError: as `check_run`, or the folder can't be written.
      TypeError: as `files.as_json`.
      ValueError: both `overwrite` and `resume` are set, or the existing run has other
        settings.
    """
    folder = check_run(root, study, run, overwrite=overwrite, resume=resume)
    record = records.new(config, on=on, labels=labels)
    if resume and (folder / records.NAME).exists():
        record = records.resume(folder, record)
    with files.one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            _clear(folder)
        for name in ("failure.json", "summary.json"):
            (folder / name).unlink(missing_ok=True)
    files.write_json(folder / records.NAME, record)
    return folder


def is_finished(
    folder: str | os.PathLike, config: Mapping[str, Any] | None = None
) -> bool:
    """Whether a run has finished, that is, has its summary.

    Args:
      folder: folder of the run; it may be missing.
      config: the settings that it must have finished with; None accepts any.

    Raises:
      ResultsError: the record of a finished run can't be read.
    """
    folder = Path(folder)
    if not (folder / "summary.json").exists():
        return False
    if config is None:
        return True
    record = records.read(folder)
    return not records.differences({"then": record["config"], "now": config})


def read_run(folder: str | os.PathLike) -> Run:
    """Reads a run, finished or not.

    Raises:
      ResultsError: a file is damaged or a link, or there is no config; names the file.
    """
    folder = Path(folder)
    check_name(folder.name, what="run")
    for path in (folder, *(folder / name for name in _RUN_FILES)):
        if path.is_symlink():
            raise ResultsError(f"{path}: is a link; it could point out of the study")
    record = records.read(folder)
    tables, notes = {}, []
    for name in _COLUMNS:
        tables[name] = _read_table(folder / name)
        if (folder / name).exists() and files.is_cut_off(folder / name):
            notes.append(f"{name}: the last line is cut off and was left out")
    finished = is_finished(folder)
    if not finished:
        notes.append("unfinished: there is no summary.json")
    return Run(
        name=folder.name,
        config=record["config"],
        record=record,
        metrics=tables["metrics.csv"],
        model=tables["model.csv"],
        timing=tables["timing.csv"],
        summary=files.read_json(folder / "summary.json") if finished else None,
        notes=tuple(notes),
    )


def read_runs(folder: str | os.PathLike) -> list[Run]:
    """Reads every run of a study, sorted by name: the subfolders with a `config.json`.

    Returns:
      At least one run.

    Raises:
      ResultsError: there is no run, or one can't be read.
    """
    folder = Path(folder)
    with files.one_line(folder):
        runs = sorted(p for p in folder.iterdir() if (p / records.NAME).is_file())
    if not runs:
        raise ResultsError(
            f"{folder}: no run in it; a run is a folder with {records.NAME}"
        )
    return [read_run(path) for path in runs]


def picture_path(folder: str | os.PathLike, seed: int, kind: str) -> Path:
    """The path of a film of a run's policy; `kind` is mp4, gif or html."""
    return Path(folder) / f"policy-seed{seed}.{kind}"


def pictures(folder: str | os.PathLike) -> list[tuple[int, str]]:
    """Lists the existing files of `picture_path`, without links, as (seed, name)."""
    existing = []
    for path in Path(folder).glob("policy-seed*"):
        name = _PICTURE.fullmatch(path.name)
        if name and path.is_file() and not path.is_symlink():
            existing.append((int(name[1]), path.name))
    return sorted(existing)


def _clear(folder: Path) -> None:
    for name in (*_RUN_FILES, *(name for _, name in pictures(folder))):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read_table(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a table and checks its columns; none if it is missing."""
    if not path.exists():
        return []
    rows, columns = files.read_rows(path), _COLUMNS[path.name]
    if rows and (missing := set(columns) - set(rows[0])):
        raise ResultsError(f"{path}:1: lacks the column {', '.join(sorted(missing))}")
    for number, row in enumerate(rows, start=2):
        for name, kind in columns.items():
            if not isinstance(row[name], kind):
                accepted = "text" if kind is str else "a number"
                raise ResultsError(
                    f"{path}:{number}: {name}={row[name]!r}; {accepted} is accepted"
                )
    return rows
