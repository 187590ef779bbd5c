"""Reads and writes CSV, JSON and other files so that a crash leaves no broken file.

A whole file appears in one rename. A CSV grows by whole lines; a line that a crash cut
off is recognized when the file is read. Nothing is unpickled, and no link is followed
(see `disk`).
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
from typing import IO, Any

from vagram_jax.storage import disk

# Eighteen digits fit any 64-bit integer column; Python itself reads more.
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"-?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|inf|nan)")
# A spreadsheet evaluates a cell that begins with one of these as a formula (CWE-1236).
_FORMULA = ("=", "+", "-", "@", "\t")
_MAX_JSON = 16 * 2**20
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class ResultsError(OSError):
    """A file that can't be written or read. The message is one line."""

    status = 5


def append_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Appends rows to a CSV as whole lines and waits until they are on the disk.

    The first call writes the header. A write that fails midway is undone, so that the
    same rows can be appended again. None becomes an empty field, NaN `nan`, a bool 0 or
    1; a float is written with all digits of its own precision.

    Args:
      path: the file; it is created if missing.
      rows: column names to numbers, text or None; all rows have the same columns.

    Returns:
      The lines of the rows, without the header.

    Raises:
      ResultsError: the file has other columns, ends in an incomplete line, or can't be
        written.
      ValueError: a value that would be read back as a different one.
    """
    if not rows:
        return b""
    path, fields = Path(path), _as_fields(path, rows)
    with one_line(path), disk.open_file(path, "ab") as file:
        size = file.seek(0, os.SEEK_END)
        header = _stored_header(path, file, size) if size else list(fields[0])
        lines = _as_lines(path, fields, header)
        _write_or_undo(file, lines if size else _as_line(header) + lines, size)
        if not size:
            disk.sync(path.parent)
    return lines


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
    header = list(fields[0])
    write_bytes(path, _as_line(header) + _as_lines(path, fields, header))


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
    path: str | os.PathLike,
    *,
    env_steps: int,
    seeds: Container[int],
    others: Container[int],
) -> None:
    """Removes the rows after a checkpoint, so that a resumed run writes none twice.

    An incomplete last line is removed too. The other lines keep their bytes. A table
    without rows left is deleted.

    Args:
      path: a CSV with the columns `seed` and `env_steps`; a missing one stays missing.
      env_steps: the last step whose rows stay.
      seeds: the seeds whose later rows are removed.
      others: seeds that keep all rows unless they are in `seeds`; rows of any further
        seed are removed.

    Raises:
      ResultsError: the file can't be read or written, or a line is damaged.
    """
    path = Path(path)
    with one_line(path):
        if disk.status(path) is None:
            return
        lines = seed_lines(path)
        kept = [
            line
            for seed, step, line in lines
            if (step <= env_steps if seed in seeds else seed in others)
        ]
        if not kept:
            disk.remove(path)
        elif len(kept) < len(lines) or is_cut_off(path):
            header = _whole_lines(path)[0][0] + b"\n"
            write_bytes(path, header + b"".join(kept))


def seed_lines(path: str | os.PathLike) -> list[tuple[int, int, bytes]]:
    """Reads the lines of a table, without the header and an incomplete last line.

    Args:
      path: a CSV with the columns `seed` and `env_steps`.

    Returns:
      Seed, step and line of each row.

    Raises:
      ResultsError: as `read_rows`, or a row has no whole number in these columns.
    """
    lines, rows = _whole_lines(path)[0][1:], read_rows(path)
    for name in ("seed", "env_steps"):
        if not all(isinstance(row.get(name), int) for row in rows):
            raise ResultsError(f"{path}: a row without a whole number as {name}")
    return [
        (row["seed"], row["env_steps"], line + b"\n")
        for row, line in zip(rows, lines, strict=True)
    ]


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

    Returns:
      The value. Characters that can't be printed, such as those that control a
      terminal, are replaced by their escapes.

    Raises:
      ResultsError: the file can't be read, isn't valid JSON or is longer than 16 MB.
    """
    with one_line(path):
        data = disk.read(Path(path), limit=_MAX_JSON)
    try:
        return _printable(json.loads(data, parse_constant=_refuse))
    except (ValueError, RecursionError) as error:
        raise ResultsError(
            f"{path}: no valid JSON: {error}; restore it from a copy"
        ) from None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a whole file in one step and waits until it is on the disk.

    Raises:
      ResultsError: the file can't be written; an existing file keeps its contents.
    """
    path = Path(path)
    temporary = unfinished(path)
    with one_line(path):
        try:
            with disk.open_file(temporary, "xb") as file:
                disk.write(file, data)
            disk.rename(temporary, path.name)
        except OSError:
            with contextlib.suppress(OSError):
                disk.remove(temporary)
            raise


def set_aside(path: str | os.PathLike) -> str:
    """Copies a file to the first free name of `<name>.1`, `<name>.2` and so on.

    Returns:
      The name of the copy.

    Raises:
      ResultsError: the file can't be read, or the copy can't be written.
    """
    path = Path(path)
    with one_line(path):
        data, used = disk.read(path), disk.names(path.parent)
        number = next(
            n for n in range(1, len(used) + 2) if f"{path.name}.{n}" not in used
        )
        copy = path.with_name(f"{path.name}.{number}")
        write_bytes(copy, data)
    return copy.name


def unfinished(path: Path) -> Path:
    """A unique name beside a path, for what is renamed to the path once it is whole."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left under a name from `unfinished`.

    Raises:
      ResultsError: it can't be removed.
    """
    with one_line(folder):
        for name in filter(_UNFINISHED.fullmatch, disk.names(folder)):
            disk.remove(folder / name)


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


def printable(text: str) -> str:
    """Replaces characters that can't be printed, such as line breaks, by escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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
        raise ResultsError(printable(f"{path}: {reason}")) from None


def _as_fields(path: Any, rows) -> list[dict[str, str]]:
    """Rows with their values as text."""
    for name in rows[0]:
        _check_text(path, name, name)
    return [{name: _field(path, name, row[name]) for name in row} for row in rows]


def _as_lines(path: Any, fields, header: Sequence[str]) -> bytes:
    """Rows as lines of a CSV, in the column order of the header."""
    for row in fields:
        if different := sorted(set(row) ^ set(header)):
            raise ResultsError(
                f"{path}: rows and file differ in the columns {', '.join(different)}"
            )
    return b"".join(_as_line([row[name] for name in header]) for row in fields)


def _as_line(fields: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()


def _stored_header(path: Any, file: IO[bytes], size: int) -> list[str]:
    file.seek(size - 1)
    if file.read(1) != b"\n":
        raise ResultsError(f"{path}: ends in an incomplete line; remove it")
    file.seek(0)
    return _split_line(path, 1, file.readline().rstrip(b"\n"))


def _write_or_undo(file: IO[bytes], data: bytes, size: int) -> None:
    try:
        disk.write(file, data)
    except OSError:
        with contextlib.suppress(OSError):
            disk.truncate(file, size)
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
        *lines, rest = disk.read(Path(path)).split(b"\n")
    return lines, bool(rest)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _printable(value: Any) -> Any:
    """A value from JSON, with all its texts printable."""
    if isinstance(value, dict):
        return {printable(name): _printable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_printable(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value
