"""The results folder: creates the folders of runs and reads them back.

    results/<study>/<run>/config.json   settings, versions and command, see `records`
                          metrics.csv   one row per seed and evaluation
                          model.csv     one row per seed and model fit
                          timing.csv    one row per epoch
                          checkpoints/  the state of training, see `checkpoint`
                          failure.json  why an unfinished run stopped
                          metrics.csv.1 a table from before a restart at step 0
                          summary.json  written when the run has finished
                          policy-seed0.mp4, .gif or .html   a film, see `render`
                          tensorboard/, wandb/   logs, see `run.logs`

No run leaves its folder, and no file but the debug logs of wandb holds an absolute
path.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vagram_jax.storage import checkpoint, disk, files, records
from vagram_jax.storage.files import ResultsError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?", re.IGNORECASE)
_STUDY_FILES = (".json", ".html", ".png")
# In the order in which they are removed: a run without checkpoints isn't continued, and
# without its record nobody knows its settings.
_TRAINED = ("checkpoints", "summary.json", "metrics.csv", "model.csv", "timing.csv")
_RUN_FILES = (*_TRAINED, "failure.json", records.NAME)
LOGS = ("tensorboard", "wandb")
"""The names of the loggers, and of the folders in a run with their logs."""
_PICTURE = re.compile(r"policy-seed([0-9]+)\.(mp4|gif|html)")
_NOTHING: Mapping[str, Any] = types.MappingProxyType({})

# The columns that every table must have, with the types of their values. Other columns
# hold numbers.
_NUMBER = int | float | None
# The only columns that aren't numbers.
_TEXTS = {"env": str, "loss": str, "diverged_by": str | None}
_COLUMNS = {
    "metrics.csv": {
        "env": str,
        "loss": str,
        "seed": int,
        "env_steps": int,
        "return": _NUMBER,
        "diverged_at": int | None,
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


class NameRefusedError(ResultsError):
    """A name of a study or run that isn't accepted. One line: what is accepted."""

    status = 2  # a setting


def check_name(name: str, *, what: str) -> str:
    """Returns the name if it is safe as a folder on every system.

    Args:
      name: letters, digits, `.`, `_` and `-`, at most 64 of them.
      what: what the name is of, for the message.

    Raises:
      NameRefusedError: any other name, one that a system reserves, or one like that of
        a file.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        accepted = "1 to 64 of A-Z a-z 0-9 . _ - are accepted, the first no . or -"
    elif name.endswith(".") or _RESERVED.fullmatch(name):
        accepted = "some systems reserve it; rename"
    elif name.lower().endswith(_STUDY_FILES):
        accepted = "it must not end like a file of the study; rename"
    else:
        return name
    raise NameRefusedError(f"results: {what}={name!r}; {accepted}")


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
      ResultsError: a bad name, a folder that can't be written, a link, or a trained run
        while neither `overwrite` nor `resume` is set.
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
        files.check_writable(folder)
        for name in _RUN_FILES:
            _check_kind(folder / name)
        # What failed before it was trained doesn't block a corrected command.
        exists = any(disk.status(folder / name) for name in _TRAINED)
    if exists and not (overwrite or resume):
        state = "a finished" if is_finished(folder) else "an unfinished"
        raise ResultsError(
            f"results: {folder} holds {state} run; --resume continues it, "
            "--overwrite replaces it, --study=NAME puts the new one elsewhere"
        )
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
      overwrite: first remove an existing run, with its checkpoints. If this is
        interrupted, what is left is of the old run and is never continued as the new
        one.
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
    if resume and any(disk.status(folder / name) for name in _TRAINED):
        if disk.status(folder / records.NAME):
            record = records.resume(folder, record)
        elif settings := checkpoint.settings(folder):
            records.check_settings(folder, settings, record["config"])
    with files.one_line(folder):
        disk.make_folder(folder)
        files.remove_unfinished(folder)
        if overwrite:
            _clear(folder)
        for name in ("failure.json", "summary.json"):
            disk.remove(folder / name)
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
    if not disk.is_file(folder / "summary.json"):
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
    folder = Path(os.path.abspath(folder))
    check_name(folder.name, what="run")
    for path in (folder, *(folder / name for name in _RUN_FILES)):
        _check_kind(path)
    record = records.read(folder)
    tables, notes = {}, []
    for name in _COLUMNS:
        tables[name] = _read_table(folder / name)
        if disk.is_file(folder / name) and files.is_cut_off(folder / name):
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


def run_folders(study: str | os.PathLike) -> list[Path]:
    """Lists the folders of the runs of a study, by name: those with a `config.json`.

    Raises:
      ResultsError: the study can't be read.
    """
    study = Path(study)
    with files.one_line(study):
        folders = [path for path in study.iterdir() if not path.is_symlink()]
    return sorted(path for path in folders if os.path.lexists(path / records.NAME))


def read_runs(
    folder: str | os.PathLike, *, report: Callable[[str], None] | None = None
) -> list[Run]:
    """Reads every run of a study, sorted by name.

    Args:
      folder: of the study.
      report: takes a line for each run that can't be read, which is left out; None
        raises instead.

    Raises:
      ResultsError: there is no run, or one can't be read.
    """
    paths, runs = run_folders(folder), []
    if not paths:
        raise ResultsError(
            f"{folder}: no run in it; a run is a folder with {records.NAME}"
        )
    for path in paths:
        try:
            runs.append(read_run(path))
        except ResultsError as error:
            if report is None:
                raise
            report(str(error))
    return runs


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
    """Removes a run; each folder and file vanishes in one step."""
    logs = [name for name in LOGS if disk.status(folder / name)]
    for name in (*logs, *_RUN_FILES, *(name for _, name in pictures(folder))):
        path = folder / name
        if disk.is_folder(path):
            path = files.unfinished(path)
            disk.rename(folder / name, path.name)
        disk.remove(path)
        disk.sync(folder)  # in this order also after a loss of power


def _check_kind(path: Path) -> None:
    """Raises unless a path is missing, or a folder or file as it should be."""
    with files.one_line(path):
        found = disk.status(path)
    if found is None:
        return
    is_right = stat.S_ISREG if path.name in _RUN_FILES[1:] else stat.S_ISDIR
    if stat.S_ISLNK(found.st_mode):
        raise ResultsError(f"{path}: is a link, which isn't followed; remove it")
    if not is_right(found.st_mode):
        kind = "file" if is_right is stat.S_ISREG else "folder"
        raise ResultsError(f"{path}: is not a {kind}; remove it")


def _read_table(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a table and checks its columns; none if it is missing."""
    if not disk.is_file(path):
        return []
    rows, columns = files.read_rows(path), _COLUMNS[path.name]
    if rows and (missing := set(columns) - set(rows[0])):
        raise ResultsError(f"{path}:1: lacks the column {', '.join(sorted(missing))}")
    first_lines: dict[tuple[int, int], int] = {}
    for number, row in enumerate(rows, start=2):
        for name, value in row.items():
            kind = columns.get(name, _TEXTS.get(name, _NUMBER))
            if not isinstance(value, kind):
                accepted = "text" if name in _TEXTS else "a number"
                raise ResultsError(
                    f"{path}:{number}: {name}={value!r}; {accepted} is accepted"
                )
        first = first_lines.setdefault((row["seed"], row["env_steps"]), number)
        if first != number:
            raise ResultsError(
                f"{path}:{number}: seed and env_steps are those of line {first}; "
                "remove one of the two"
            )
        if row.get("env") != rows[0].get("env"):
            raise ResultsError(
                f"{path}:{number}: env={row['env']!r} differs from line 2"
            )
    return rows
