"""Reads and writes CSV, JSON and other files so that a crash leaves no broken file.

A whole file appears in one rename. A CSV grows by whole lines; a line that a crash cut
off is recognized when the file is read. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import numbers
import os
import re
import tempfile
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Eighteen digits fit any 64-bit integer column; Python itself reads more.
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"-?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|inf|nan)")
# A spreadsheet evaluates a cell that begins with one of these as a formula (CWE-1236).
_FORMULA = ("=", "+", "-", "@", "\t")


class ResultsError(OSError):
    """A file that can't be written or read. The message is one line."""

    status = 5


def append_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows to a CSV as whole lines and waits until they are on the disk.

    The first call writes the header. A write that fails midway is undone, so that the
    same rows can be appended again. None becomes an empty field, NaN `nan`, a bool 0 or
    1; a float is written with all digits of its own precision.

    Args:
      path: the file; it is created if missing.
      rows: column names to numbers, text or None; all rows have the same columns.

    Raises:
      ResultsError: the file has other columns, ends in an incomplete line, or can't be
        written.
      ValueError: a value that would be read back as a different one.
    """
    if not rows:
        return
    fields = _as_fields(path, rows)
    is_new = not os.path.lexists(path)
    with one_line(path), open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        header = _stored_header(path, file, size) if size else list(fields[0])
        text = _as_lines(path, fields, header, with_header=not size)
        _write_or_undo(file, text, size)
        if is_new:
            sync(Path(path).parent)


def write_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a whole CSV in one step, replacing the file if it exists.

    Args:
      path: the file.
      rows: at least one row, as for `append_rows`.

    Raises:
      ResultsError: rows have different columns, or the file can't be written.
      ValueError: a value that would be read back as a different one.
    """
    fields = _as_fields(path, rows)
    write_bytes(path, _as_lines(path, fields, list(fields[0]), with_header=True))


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of a CSV, without an incomplete last line (see `is_cut_off`).

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
        raise ResultsError(f"{path}:1: a column name occurs twice")
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


def keep_rows(
    path: str | os.PathLike, *, env_steps: int, seeds: Container[int] | None = None
) -> None:
    """Removes the rows after a checkpoint, so that a resumed run writes none twice.

    An incomplete last line is removed too. The other lines keep their bytes. A file
    without rows left is deleted.

    Args:
      path: the file; a missing one stays missing.
      env_steps: the last step whose rows stay.
      seeds: the seeds whose rows are removed; None means all.

    Raises:
      ResultsError: the file can't be read or written, or a line is damaged.
    """
    if not os.path.lexists(path):
        return
    lines, rows = _whole_lines(path)[0], read_rows(path)
    for name in ("env_steps",) if seeds is None else ("env_steps", "seed"):
        if not all(isinstance(row.get(name), int) for row in rows):
            raise ResultsError(f"{path}: a row without a whole number as {name}")
    remaining = lines[:1] + [
        line
        for line, row in zip(lines[1:], rows, strict=True)
        if row["env_steps"] <= env_steps
        or (seeds is not None and row["seed"] not in seeds)
    ]
    if len(remaining) < 2:
        with one_line(path):
            os.unlink(path)
        return
    write_bytes(path, b"".join(line + b"\n" for line in remaining))


def is_cut_off(path: str | os.PathLike) -> bool:
    """Whether a CSV ends in an incomplete line, as after a killed process."""
    return _whole_lines(path)[1]


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON in one step: a reader sees the old file or the new one.

    Args:
      path: the file.
      value: as for `as_json`.

    Raises:
      ResultsError: the file can't be written.
      TypeError: as `as_json`.
    """
    write_text(path, json.dumps(as_json(value), indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a whole text file, in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      ResultsError: the file can't be read or isn't valid JSON.
    """
    with one_line(path):
        data = Path(path).read_bytes()
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: no valid JSON: {error}") from None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a whole file in one step and waits until it is on the disk.

    Raises:
      ResultsError: the file can't be written; an existing file keeps its contents.
    """
    path = Path(path)
    # A unique name: two writers must not share an unfinished file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with one_line(path):
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
        sync(path.parent)


def sync(path: str | os.PathLike) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
      ResultsError: the file can't be synced.
    """
    # A rename is durable only when its folder is; some systems can't open a folder.
    allowed = (OSError,) if os.path.isdir(path) else ()
    with one_line(path), contextlib.suppress(*allowed):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def as_json(value: Any) -> Any:
    """Converts a value to what reading it back from JSON returns.

    Args:
      value: dicts with string keys, lists, tuples, arrays, numbers, text or None.

    Returns:
      The value with lists for tuples and arrays, and None for NaN and infinity, which
      JSON doesn't have.

    Raises:
      TypeError: `value` contains anything else.
    """
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"as_json: key {wrong[0]!r}; JSON accepts text as a key")
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"as_json: {value!r}; JSON accepts numbers, text, lists and dicts")


def check_writable(folder: str | os.PathLike) -> None:
    """Checks that files can be written in a folder, and leaves nothing behind.

    Args:
      folder: may be missing; then the folder that it would be created in is checked.

    Raises:
      ResultsError: they can't.
    """
    folder = Path(folder)
    existing = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not existing.is_dir():
        raise ResultsError(f"{existing}: is not a folder; choose another path")
    # Permissions are not enough: the system grants root a full or read-only disk too.
    # A file without a name vanishes even if the process is killed.
    with one_line(existing), tempfile.TemporaryFile(dir=existing) as probe:
        probe.write(b"0")


@contextlib.contextmanager
def one_line(path: Any) -> Iterator[None]:
    """Converts the system's errors in a `with` block to one line that names the file.

    Args:
      path: the file that the block reads or writes.

    Raises:
      ResultsError: the block raises OSError, ValueError or RuntimeError.
    """
    try:
        yield
    except ResultsError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResultsError(f"{path}: {reason}") from None


def _as_fields(path: Any, rows) -> list[dict[str, str]]:
    """Rows with their values as text."""
    for name in rows[0]:
        _check_text(path, name, name)
    return [{name: _field(path, name, row[name]) for name in row} for row in rows]


def _as_lines(path: Any, fields, header: Sequence[str], *, with_header: bool) -> bytes:
    """Rows as lines of a CSV, in the column order of the header."""
    lines = [header] if with_header else []
    for row in fields:
        if different := sorted(set(row) ^ set(header)):
            raise ResultsError(
                f"{path}: rows and file differ in the columns {', '.join(different)}"
            )
        lines.append([row[name] for name in header])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _stored_header(path: Any, file: io.FileIO, size: int) -> list[str]:
    file.seek(size - 1)
    if file.read(1) != b"\n":
        raise ResultsError(f"{path}: ends in an incomplete line; remove it")
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
        raise ValueError(f"{path}: {name}: {text!r}; starts like a formula")
    return text


def _field(path: Any, name: str, value: Any) -> str:
    """A value as text that `_parse` reads back as the same value."""
    if value is None:
        return ""
    if isinstance(value, str):
        if _parse(_check_text(path, name, value)) != value:
            raise ValueError(f"{path}: {name}: {value!r}; reads as a number")
        return value
    if getattr(value, "shape", None) == ():
        # `str` of a NumPy scalar is the shortest text of its precision.
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
    """The lines that end in a newline, and whether an incomplete line follows."""
    with one_line(path):
        *lines, rest = Path(path).read_bytes().split(b"\n")
    return lines, bool(rest)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
