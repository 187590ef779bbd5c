"""What a run leaves on disk, and reading it back.

Comes in: the config of a run and its rows of numbers. Goes out: plain files, which
pandas, a spreadsheet or a diff read as well, and `Run`s for statistics and pictures.

    results/<study>/<run>/config.json   the config, versions, device and command
                          metrics.csv   a row per seed and evaluation
                          model.csv     a row per seed and model fit
                          summary.json  there as soon as the run has finished

Whatever was written is either complete or recognisably cut off: JSON appears in one
rename, a CSV grows by whole lines. Nothing is unpickled, and no name leaves the root.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import io
import json
import math
import numbers
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?", re.IGNORECASE)
_STUDY_FILES = (".json", ".html", ".png")
_RUN_FILES = ("config.json", "metrics.csv", "model.csv", "summary.json", "checkpoints")

# What statistics read of metrics.csv: whole numbers, and numbers that may be missing.
_WHOLE = ("seed", "env_steps")
_MISSABLE = ("return", "wall_time_s", "diverged_at")

# Eighteen digits fit any 64-bit integer column; Python itself would read more.
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"-?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|inf|nan)")
# A spreadsheet runs a cell that begins with one of these as a formula (CWE-1236).
_FORMULA = ("=", "+", "-", "@", "\t")

_PACKAGES = ("vagram_jax", "jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint")
_PACKAGES += ("numpy", "mujoco", "mujoco-mjx", "brax")
# An absolute path up to its last part, wherever an argument holds one.
_ABSOLUTE = re.compile(
    r"(?:^|(?<=[=,:\s]))(?:[A-Za-z]:)?[/\\](?:[^=,:]*[/\\])?(?=[^/\\])"
)


class ResultsError(OSError):
    """Results that can't be written or read. One line: which, what is accepted."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished or growing run: a loss with all its seeds.

    Attributes:
      name: of its folder.
      config: the settings, nested as they were given.
      record: all of `config.json`: config, versions, device, command, start, revision.
      metrics: rows of `metrics.csv`, one per seed and evaluation.
      model: rows of `model.csv`, one per seed and model fit.
      summary: what `summary.json` holds, None while the run is unfinished.
      notes: what a reader should know of the files, in words.
    """

    name: str
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    model: Sequence[Mapping[str, Any]] = ()
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
    with _one_line(root):
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
            f"results: {folder} holds {state} run; resume it, overwrite it, or rename"
        )
    _check_writable(folder)
    return folder


def create_run(
    root: str | os.PathLike,
    study: str,
    run: str,
    config: Mapping[str, Any],
    *,
    device: str = "",
    overwrite: bool = False,
    resume: bool = False,
) -> Path:
    """Make the folder of a run and record in it what is about to be run.

    Args:
      root: the results folder.
      study: name of the study.
      run: name of the run.
      config: the settings, nested; every key a string.
      device: what it runs on, in words.
      overwrite: first remove the run that is there, its checkpoints too.
      resume: keep the run that is there, and its `config.json`.

    Returns:
      The folder.

    Raises:
      ResultsError: as `check_run`, or the folder can't be written.
      ValueError: `overwrite` and `resume` at once.
    """
    folder = check_run(root, study, run, overwrite=overwrite, resume=resume)
    with _one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            _clear(folder)
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", _record(config, device))
    return folder


def is_finished(folder: str | os.PathLike) -> bool:
    """Whether a run has finished, that is, has its summary.

    Args:
      folder: of the run, existing or not.

    Returns:
      True or False.
    """
    return (Path(folder) / "summary.json").exists()


def append_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add whole lines to a CSV and wait until they are on the disk.

    The first rows bring the header. A write that fails midway is taken back, so that
    the same rows may be tried again. None becomes an empty field, NaN `nan`, a bool 0
    or 1; a float keeps every digit of its own precision.

    Args:
      path: the file; it is made if missing.
      rows: column names to numbers, text or None; all rows have the same columns.

    Raises:
      ResultsError: the file has other columns, ends in half a line, or can't be
        written.
      ValueError: a value that would not be read back as it is.
    """
    if not rows:
        return
    columns = [_check_text(path, name, name) for name in rows[0]]
    fields = [{name: _field(path, name, row[name]) for name in row} for row in rows]
    is_new = not os.path.lexists(path)
    with _one_line(path), open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        header = _stored_header(path, file, size) if size else columns
        for row in fields:
            if odd := sorted(set(row) ^ set(header)):
                raise ResultsError(
                    f"{path}: rows and file differ in the columns {', '.join(odd)}"
                )
        lines = [[row[name] for name in header] for row in fields]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            lines if size else [header, *lines]
        )
        _write_or_undo(file, text.getvalue().encode(), size)
        if is_new:
            _sync_folder(Path(path).parent)


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a CSV. Half a last line is left out, `Run.notes` tells it.

    Args:
      path: the file.

    Returns:
      Column names to int, float, text, or None for an empty field.

    Raises:
      ResultsError: the file can't be read, or a line is damaged; names file and line.
    """
    lines, _ = _whole_lines(path)
    if not lines:
        return []
    columns = _split_line(path, 1, lines[0])
    if len(set(columns)) != len(columns):
        raise ResultsError(f"{path}:1: a column stands there twice")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = _split_line(path, number, line)
        if len(fields) != len(columns):
            raise ResultsError(
                f"{path}:{number}: damaged: {len(fields)} fields, "
                f"the header has {len(columns)}; restore the file or remove the line"
            )
        rows.append(dict(zip(columns, map(_parse, fields), strict=True)))
    return rows


def keep_rows(path: str | os.PathLike, *, env_steps: int) -> None:
    """Cut a CSV back to what a checkpoint knows, so that a resumed run adds no doubles.

    Half a last line goes too. What stays keeps its bytes.

    Args:
      path: the file; nothing happens if it is missing.
      env_steps: the last step that stays.

    Raises:
      ResultsError: the file can't be read or written, or a line is damaged.
    """
    if not os.path.lexists(path):
        return
    lines, rows = _whole_lines(path)[0], read_rows(path)
    if not all(isinstance(row.get("env_steps"), int) for row in rows):
        raise ResultsError(f"{path}: a row has no whole env_steps; can't be cut back")
    kept = lines[:1] + [
        line
        for line, row in zip(lines[1:], rows, strict=True)
        if row["env_steps"] <= env_steps
    ]
    _replace(Path(path), b"".join(line + b"\n" for line in kept))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON in one step: a reader finds the old file or the new one, never half.

    Args:
      path: the file.
      value: dicts with string keys, lists, tuples, arrays, numbers, text, None. NaN and
        infinity, which JSON doesn't know, become null.

    Raises:
      ResultsError: the file can't be written.
      TypeError: something else in `value`.
    """
    write_text(path, json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole text file in one step, as UTF-8, and wait until it is on the disk.

    Args:
      path: the file.
      text: all that it will hold.

    Raises:
      ResultsError: the file can't be written.
    """
    _replace(Path(path), text.encode(errors="backslashreplace"))


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Args:
      path: the file.

    Returns:
      Dicts, lists, numbers, text and None.

    Raises:
      ResultsError: the file can't be read or is no JSON.
    """
    with _one_line(path):
        data = Path(path).read_bytes()
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: no valid JSON: {error}") from None


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
    with _one_line(folder):
        places = sorted(p for p in folder.iterdir() if (p / "config.json").is_file())
    if not places:
        raise ResultsError(
            f"{folder}: no run in it; a run is a folder with config.json"
        )
    return [_read_run(place) for place in places]


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
            flat[f"{prefix}{name}"] = _jsonable(value)
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


@contextlib.contextmanager
def _one_line(path: Any) -> Iterator[None]:
    """Turn what the system says about a file into one line that names the file."""
    try:
        yield
    except ResultsError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResultsError(f"results: {path}: {reason}") from None


def _check_writable(folder: Path) -> None:
    place = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not place.is_dir():
        raise ResultsError(f"results: {place} is no folder; choose another place")
    # Asking the system for permission is not enough: root and full or read-only file
    # systems answer yes. A file without a name vanishes even if the process is killed.
    with _one_line(place), tempfile.TemporaryFile(dir=place) as probe:
        probe.write(b"0")


def _clear(folder: Path) -> None:
    for name in _RUN_FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _record(config: Mapping[str, Any], device: str) -> dict[str, Any]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    now = datetime.datetime.now(datetime.UTC)
    return {
        "config": config,
        "versions": versions,
        "device": device,
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


def _stored_header(path: Any, file: io.FileIO, size: int) -> list[str]:
    file.seek(size - 1)
    if file.read(1) != b"\n":
        raise ResultsError(f"{path}: ends in half a line; keep_rows cuts it off")
    file.seek(0)
    return _split_line(path, 1, file.readline().rstrip(b"\n"))


def _write_or_undo(file: io.FileIO, data: bytes, size: int) -> None:
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


def _check_text(path: Any, name: Any, text: Any) -> str:
    if not isinstance(text, str) or not text.isprintable() or not text:
        raise ValueError(f"{path}: {name}: {text!r}; printable text is accepted")
    if text.startswith(_FORMULA):
        raise ValueError(f"{path}: {name}: {text!r}; must not begin like a formula")
    return text


def _field(path: Any, name: str, value: Any) -> str:
    """A value as text that `_parse` reads back as the same value."""
    if value is None:
        return ""
    if isinstance(value, str):
        if _parse(_check_text(path, name, value)) != value:
            raise ValueError(f"{path}: {name}: {value!r}; text that reads as a number")
        return value
    if getattr(value, "shape", None) == ():
        # str of a NumPy scalar is the shortest text of its own precision.
        value = value.item() if value.dtype.kind in "biu" else value
    elif not isinstance(value, numbers.Real):
        raise ValueError(
            f"{path}: {name}: {value!r}; a number, text or None is accepted"
        )
    is_whole = isinstance(value, numbers.Integral)
    text = str(int(value)) if is_whole else str(value)
    if not (_INTEGER if is_whole else _FLOAT).fullmatch(text):
        raise ValueError(f"{path}: {name}: {value!r}; can't be read back as a number")
    return text


def _parse(text: str) -> Any:
    if not text:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _split_line(path: Any, number: int, line: bytes) -> list[str]:
    try:
        text = line.removesuffix(b"\r").decode()
        if not text.isprintable():
            raise ValueError("unprintable characters")
        return next(csv.reader([text], strict=True))
    except (ValueError, csv.Error) as error:
        raise ResultsError(f"{path}:{number}: damaged: {error}") from None


def _whole_lines(path: str | os.PathLike) -> tuple[list[bytes], bool]:
    """The lines that have an end, and whether half a line follows them."""
    with _one_line(path):
        *lines, rest = Path(path).read_bytes().split(b"\n")
    return lines, bool(rest)


def _replace(path: Path, data: bytes) -> None:
    # A name of its own for each writer: two of them must not share a half-made file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _one_line(path):
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # A rename is durable only when its folder is; some systems can't open a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"results: key {odd[0]!r}; JSON takes text as a key")
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"results: {value!r}; JSON takes numbers, text, lists and dicts")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _read_run(place: Path) -> Run:
    check_name(place.name, what="run")
    for path in (place, *(place / name for name in _RUN_FILES)):
        if path.is_symlink():
            raise ResultsError(f"{path}: is a link; it could lead out of the study")
    record = read_json(place / "config.json")
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ResultsError(f"{place / 'config.json'}: holds no config")
    paths = [place / name for name in ("metrics.csv", "model.csv")]
    paths = [path for path in paths if path.exists()]
    rows = {path.name: read_rows(path) for path in paths}
    notes = [
        f"{path.name}: the last line is cut off and was left out"
        for path in paths
        if _whole_lines(path)[1]
    ]
    _check_metrics(place / "metrics.csv", rows.get("metrics.csv", []))
    finished = is_finished(place)
    if not finished:
        notes.append("unfinished: there is no summary.json")
    return Run(
        name=place.name,
        config=record["config"],
        record=record,
        metrics=rows.get("metrics.csv", []),
        model=rows.get("model.csv", []),
        summary=read_json(place / "summary.json") if finished else None,
        notes=tuple(notes),
    )


def _check_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    if missing := {"env", "loss", *_WHOLE, *_MISSABLE} - set(rows[0]):
        raise ResultsError(f"{path}:1: lacks the column {', '.join(sorted(missing))}")
    for number, row in enumerate(rows, start=2):
        wrong = [name for name in _WHOLE if not isinstance(row[name], int)]
        wrong += [n for n in _MISSABLE if not isinstance(row[n], int | float | None)]
        if wrong:
            raise ResultsError(
                f"{path}:{number}: {wrong[0]}={row[wrong[0]]!r}; a number is accepted"
            )
