"""What a run leaves on disk, and reading it back.

Comes in: the config of a run and its rows of numbers. Goes out: plain files, which
pandas, a spreadsheet or a diff read as well, and `Run`s for statistics and pictures.

    results/<study>/<run>/config.json   the config, versions, device and command
                          metrics.csv   a row per seed and evaluation
                          model.csv     a row per seed and model fit
                          timing.csv    the clock: a row per epoch
                          checkpoints/  what training goes on from, see `checkpoint`
                          failure.json  why it stopped, while it isn't finished
                          summary.json  there as soon as the run has finished
                          policy-seed0.mp4, .gif or .html   see `render`

No name leaves the root, and no file holds an absolute path. How files are written and
read is in `files`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vagram_jax.storage import files
from vagram_jax.storage.files import ResultsError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?", re.IGNORECASE)
_STUDY_FILES = (".json", ".html", ".png")
_RUN_FILES = ("config.json", "metrics.csv", "model.csv", "timing.csv", "summary.json")
_RUN_FILES += ("failure.json", "checkpoints")
_PICTURE = re.compile(r"policy-seed([0-9]+)\.(mp4|gif|html)")
# A run that goes on may be made longer; nothing else of its config may change.
_MAY_GROW = "total_steps"

# What statistics and pictures read of the two tables.
_NUMBER = int | float | None
_METRICS = {"env": str, "loss": str, "seed": int, "env_steps": int}
_METRICS |= {"return": _NUMBER, "diverged_at": _NUMBER}
_TIMING = {"seed": int, "env_steps": int, "wall_time_s": int | float}
_MODEL = {"seed": int, "env_steps": int}

_PACKAGES = ("vagram_jax", "jax", "jaxlib", "flax", "optax", "numpy")
_PACKAGES += ("mujoco", "mujoco-mjx", "gymnasium", "brax")  # Gymnasium has model files
# An absolute path up to its last part, wherever an argument holds one.
_ABSOLUTE = re.compile(r"(?<![\w.~/\\-])(?:[A-Za-z]:)?[/\\](?:[^=,:]*[/\\])?(?=[^/\\])")


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished or growing run: a loss with all its seeds.

    Attributes:
      name: of its folder.
      config: the settings, nested as they were given.
      record: all of `config.json`: config, versions, device, command, start, revision.
      metrics: rows of `metrics.csv`, one per seed and evaluation.
      model: rows of `model.csv`, one per seed and model fit.
      timing: rows of `timing.csv`, one per epoch and program.
      summary: what `summary.json` holds, None while the run is unfinished.
      notes: what a reader should know of the files, in words.
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
    """The name itself, if it is safe as one folder on every system.

    Args:
      name: letters, digits, `.`, `_` and `-`, at most 64 of them.
      what: whose name it is, for the message.

    Returns:
      `name`.

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
    """The folder that a run would get, if it may have it. Leaves nothing behind.

    To be called before anything is compiled: it also tries whether the place can be
    written.

    Args:
      root: the results folder; it may be missing still.
      study: name of the study.
      run: name of the run.
      overwrite: a run that is there will be replaced, with its checkpoints.
      resume: a run that is there will be continued.

    Returns:
      `root/study/run`, absolute, existing or not.

    Raises:
      ResultsError: a bad name, a folder outside root, one that can't be written, or one
        that holds a run already while neither `overwrite` nor `resume` is set.
      ValueError: `overwrite` and `resume` at once.
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
        taken = any(os.path.lexists(folder / name) for name in _RUN_FILES)
    if taken and not (overwrite or resume):
        state = "a finished" if is_finished(folder) else "an unfinished"
        raise ResultsError(
            f"results: {folder} holds {state} run; --resume goes on with it, "
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
    on: Mapping[str, Any] = types.MappingProxyType({}),
    overwrite: bool = False,
    resume: bool = False,
) -> Path:
    """Make the folder of a run and record in it what is about to be run.

    Args:
      root: the results folder.
      study: name of the study.
      run: name of the run.
      config: the settings, nested; every key a string.
      on: where it runs, such as `device`; recorded beside the config.
      overwrite: first remove the run that is there, its checkpoints too.
      resume: keep the run that is there, if one is; its record gets a note.

    Returns:
      The folder.

    Raises:
      ResultsError: as `check_run`, or the folder can't be written.
      TypeError: as `files.as_json`.
      ValueError: `overwrite` and `resume` at once, or a run with other settings can't
        be resumed.
    """
    folder = check_run(root, study, run, overwrite=overwrite, resume=resume)
    record = new_record(config, on)
    if resume and (folder / "config.json").exists():
        record = resumed(folder, record)
    with files.one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            _clear(folder)
        for name in ("failure.json", "summary.json"):
            (folder / name).unlink(missing_ok=True)
    files.write_json(folder / "config.json", record)
    return folder


def resumed(folder: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that is about to go on.

    Args:
      folder: of the run.
      now: the record that a new run would get.

    Returns:
      The old record; `resumed` in it lists each time it went on and what was another
      version or device then, without which its numbers are the same to the bit.

    Raises:
      ResultsError: there is no legible record.
      ValueError: the settings are others; names them.
    """
    record = read_record(folder)
    changed = differences({"then": record["config"], "now": now["config"]})
    grown = changed.pop(_MAY_GROW, None)
    if grown and len(grown) == 2 and grown["now"] > grown["then"]:
        record["config"][_MAY_GROW] = grown["now"]
    elif grown:
        changed[_MAY_GROW] = grown
    if changed:
        lines = [
            f"{key} was {found.get('then')}, is {found.get('now')}"
            for key, found in changed.items()
        ]
        listed = "; ".join(lines[:6])
        if len(lines) > 6:
            listed += f"; and {len(lines) - 6} more"
        raise ValueError(
            f"results: {folder} can't be resumed with other settings: {listed}; only "
            f"{_MAY_GROW} may grow"
        )
    kinds = ("versions", "device", "layout", "revision")
    others = {k: now[k] for k in kinds if k in now and now[k] != record.get(k)}
    note = {"started": now["started"], "command": now["command"], "changed": others}
    return record | {"resumed": [*record.get("resumed", []), note]}


def is_finished(
    folder: str | os.PathLike, config: Mapping[str, Any] | None = None
) -> bool:
    """Whether a run has finished, that is, has its summary.

    Args:
      folder: of the run, existing or not.
      config: the settings that it must have been finished with, or None for any.

    Returns:
      True or False.

    Raises:
      ResultsError: the record of a finished run is damaged.
    """
    folder = Path(folder)
    if not (folder / "summary.json").exists():
        return False
    if config is None:
        return True
    record = read_record(folder)
    return not differences({"then": record["config"], "now": config})


def read_record(folder: Path) -> dict[str, Any]:
    """What the `config.json` of a run holds.

    Args:
      folder: of the run.

    Returns:
      The record, with a mapping under `config`.

    Raises:
      ResultsError: it can't be read, or holds no config.
    """
    record = files.read_json(folder / "config.json")
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ResultsError(f"{folder / 'config.json'}: holds no config")
    return record


def read_run(folder: str | os.PathLike) -> Run:
    """One run, finished or not.

    Args:
      folder: of the run.

    Returns:
      The run; `notes` tells what is missing.

    Raises:
      ResultsError: it is damaged, holds no config or is a link; names the file.
    """
    folder = Path(folder)
    check_name(folder.name, what="run")
    for path in (folder, *(folder / name for name in _RUN_FILES)):
        if path.is_symlink():
            raise ResultsError(f"{path}: is a link; it could lead out of the study")
    record = read_record(folder)
    metrics, notes = _read_table(folder / "metrics.csv", _METRICS)
    model, more = _read_table(folder / "model.csv", _MODEL)
    timing, most = _read_table(folder / "timing.csv", _TIMING)
    notes += more + most
    finished = is_finished(folder)
    if not finished:
        notes.append("unfinished: there is no summary.json")
    return Run(
        name=folder.name,
        config=record["config"],
        record=record,
        metrics=metrics,
        model=model,
        timing=timing,
        summary=files.read_json(folder / "summary.json") if finished else None,
        notes=tuple(notes),
    )


def read_runs(folder: str | os.PathLike) -> list[Run]:
    """Every run of a study, by name: the subfolders that hold a `config.json`.

    Args:
      folder: of the study.

    Returns:
      At least one run.

    Raises:
      ResultsError: no run is there, one is damaged, or one is a link.
    """
    folder = Path(folder)
    with files.one_line(folder):
        places = sorted(p for p in folder.iterdir() if (p / "config.json").is_file())
    if not places:
        raise ResultsError(
            f"{folder}: no run in it; a run is a folder with config.json"
        )
    return [read_run(place) for place in places]


def picture_path(folder: str | os.PathLike, seed: int, kind: str) -> Path:
    """Where a run keeps what its policy looks like.

    Args:
      folder: of the run.
      seed: whose policy.
      kind: mp4, gif or html.

    Returns:
      The path of the file, existing or not.
    """
    return Path(folder) / f"policy-seed{seed}.{kind}"


def pictures(folder: str | os.PathLike) -> list[tuple[int, str]]:
    """What a run keeps under the names of `picture_path`; links are left out.

    Args:
      folder: of the run.

    Returns:
      Seeds and names of files, in order.
    """
    found = []
    for path in Path(folder).glob("policy-seed*"):
        name = _PICTURE.fullmatch(path.name)
        if name and path.is_file() and not path.is_symlink():
            found.append((int(name[1]), path.name))
    return sorted(found)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config with dotted keys, its values as JSON would give them back.

    Args:
      config: names to values or to mappings.
      prefix: what to put before each name.

    Returns:
      Keys such as `"sac.discount"` to values.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = files.as_json(value)
    return flat


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings in which configs differ.

    Args:
      configs: a name for each config, nested or flat.

    Returns:
      Dotted keys to what each config has there; a config without the key is left out.
    """
    flat = {name: flatten(config) for name, config in configs.items()}
    keys = dict.fromkeys(key for config in flat.values() for key in config)
    values = {k: {n: c[k] for n, c in flat.items() if k in c} for k in keys}
    return {
        key: found
        for key, found in values.items()
        if len(found) < len(flat) or len({json.dumps(v) for v in found.values()}) > 1
    }


def _clear(folder: Path) -> None:
    for name in (*_RUN_FILES, *(name for _, name in pictures(folder))):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def new_record(config: Mapping[str, Any], on: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside results: settings, versions, command, start and revision.

    Args:
      config: the settings.
      on: where it runs, such as `device`.

    Returns:
      A mapping for a JSON file; no absolute path is in it.

    Raises:
      TypeError: as `files.as_json`.
    """
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    now = datetime.datetime.now(datetime.UTC)
    return {
        "config": files.as_json(config),
        "versions": versions,
        **on,
        "command": _command(sys.argv),
        "started": now.isoformat(timespec="seconds"),
        "revision": _revision(),
    }


def _command(argv: Sequence[str]) -> str:
    """The command line in a form that holds on another machine: no absolute paths."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = ["-m", spec.name.removesuffix(".__main__")] if spec else None
    program = module or [os.path.basename(argv[0])]
    return shlex.join(["python", *program, *(_ABSOLUTE.sub("", a) for a in argv[1:])])


def _revision() -> str | None:
    """The commit of this package's own repository, if it lies in one."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    commands = (
        [*git, "ls-files", "--error-unmatch", here.name],
        [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        outputs = [
            subprocess.run(command, capture_output=True, check=True, timeout=10).stdout
            for command in commands
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return outputs[-1].decode(errors="replace").strip()


def _read_table(path: Path, columns: Mapping[str, Any]) -> tuple[list, list[str]]:
    """The rows of a CSV, none if it is missing, and what to know of it."""
    if not path.exists():
        return [], []
    rows = files.read_rows(path)
    if rows and (missing := set(columns) - set(rows[0])):
        raise ResultsError(f"{path}:1: lacks the column {', '.join(sorted(missing))}")
    for number, row in enumerate(rows, start=2):
        for name, kind in columns.items():
            if not isinstance(row[name], kind):
                accepted = "text" if kind is str else "a number"
                raise ResultsError(
                    f"{path}:{number}: {name}={row[name]!r}; {accepted} is accepted"
                )
    cut_off = f"{path.name}: the last line is cut off and was left out"
    return rows, [cut_off] if files.is_cut_off(path) else []
