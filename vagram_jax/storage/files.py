"""Whole files and whole lines, or nothing.

Comes in: rows and values. Goes out: CSV and JSON, and back again. Whatever was written
is either complete or recognisably cut off: a file appears in one rename, a CSV grows by
whole lines. Nothing is unpickled. Nothing here knows what a run is.
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

# Eighteen digits fit any 64-bit integer column; Python itself would read more.
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"-?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|inf|nan)")
# A spreadsheet runs a cell that begins with one of these as a formula (CWE-1236).
_FORMULA = ("=", "+", "-", "@", "\t")


class ResultsError(OSError):
    """A file that can't be written or read. One line: which, what is accepted."""


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
    """Write a whole CSV in one step, in place of what may be there.

    Args:
      path: the file.
      rows: at least one, as for `append_rows`.

    Raises:
      ResultsError: rows have different columns, or the file can't be written.
      ValueError: a value that would not be read back as it is.
    """
    fields = _as_fields(path, rows)
    write_bytes(path, _as_lines(path, fields, list(fields[0]), with_header=True))


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a CSV. Half a last line is left out, `is_cut_off` tells of it.

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


def keep_rows(
    path: str | os.PathLike, *, env_steps: int, seeds: Container[int] | None = None
) -> None:
    """Cut a CSV back to what a checkpoint knows, so that a resumed run adds no doubles.

    Half a last line goes too. What stays keeps its bytes; a file without rows goes.

    Args:
      path: the file; nothing happens if it is missing.
      env_steps: the last step that stays.
      seeds: whose rows are cut; None cuts everyone's.

    Raises:
      ResultsError: the file can't be read or written, or a line is damaged.
    """
    if not os.path.lexists(path):
        return
    lines, rows = _whole_lines(path)[0], read_rows(path)
    for name in ("env_steps",) if seeds is None else ("env_steps", "seed"):
        if not all(isinstance(row.get(name), int) for row in rows):
            raise ResultsError(f"{path}: a row has no whole {name}; can't be cut back")
    kept = lines[:1] + [
        line
        for line, row in zip(lines[1:], rows, strict=True)
        if row["env_steps"] <= env_steps
        or (seeds is not None and row["seed"] not in seeds)
    ]
    if len(kept) < 2:
        with one_line(path):
            os.unlink(path)
        return
    write_bytes(path, b"".join(line + b"\n" for line in kept))


def is_cut_off(path: str | os.PathLike) -> bool:
    """Whether a CSV ends in half a line, as after a killed process.

    Args:
      path: the file.

    Returns:
      True or False.

    Raises:
      ResultsError: the file can't be read.
    """
    return _whole_lines(path)[1]


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
    write_text(path, json.dumps(as_json(value), indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole text file in one step, as UTF-8, and wait until it is on the disk.

    Args:
      path: the file.
      text: all that it will hold.

    Raises:
      ResultsError: the file can't be written.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Args:
      path: the file.

    Returns:
      Dicts, lists, numbers, text and None.

    Raises:
      ResultsError: the file can't be read or is no JSON.
    """
    with one_line(path):
        data = Path(path).read_bytes()
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: no valid JSON: {error}") from None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a whole file in one step and wait until it is on the disk.

    Args:
      path: the file.
      data: all that it will hold.

    Raises:
      ResultsError: the file can't be written.
    """
    path = Path(path)
    # A name of its own for each writer: two of them must not share a half-made file.
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
    """Wait until a file, or the names in a folder, are on the disk.

    Args:
      path: of either.

    Raises:
      ResultsError: the disk refuses a file.
    """
    # A rename is durable only when its folder is; some systems can't open a folder.
    allowed = OSError if os.path.isdir(path) else ()
    with one_line(path), contextlib.suppress(allowed):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def as_json(value: Any) -> Any:
    """A value as it would come back from JSON.

    Args:
      value: dicts with string keys, lists, tuples, arrays, numbers, text, None.

    Returns:
      The same with lists for tuples and arrays, and None for NaN and infinity, which
      JSON doesn't know.

    Raises:
      TypeError: something else in `value`.
    """
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"as_json: key {odd[0]!r}; JSON takes text as a key")
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"as_json: {value!r}; JSON takes numbers, text, lists and dicts")


def check_writable(folder: str | os.PathLike) -> None:
    """Try whether files could be written in a folder, and leave nothing behind.

    Args:
      folder: it may be missing still; then the one that it would be made in is tried.

    Raises:
      ResultsError: they can't.
    """
    folder = Path(folder)
    place = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not place.is_dir():
        raise ResultsError(f"{place}: is no folder; choose another place")
    # Asking the system for permission is not enough: root and full or read-only file
    # systems answer yes. A file without a name vanishes even if the process is killed.
    with one_line(place), tempfile.TemporaryFile(dir=place) as probe:
        probe.write(b"0")


@contextlib.contextmanager
def one_line(path: Any) -> Iterator[None]:
    """Turn what the system says about a file into one line that names the file.

    Args:
      path: of the file that the `with` block touches.

    Yields:
      Nothing.

    Raises:
      ResultsError: in place of what the block raises of the system.
    """
    try:
        yield
    except ResultsError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResultsError(f"{path}: {reason}") from None


def _as_fields(path: Any, rows) -> list[dict[str, str]]:
    """Rows whose values are text that is read back as the same values."""
    for name in rows[0]:
        _check_text(path, name, name)
    return [{name: _field(path, name, row[name]) for name in row} for row in rows]


def _as_lines(path: Any, fields, header: Sequence[str], *, with_header: bool) -> bytes:
    """The lines of a CSV whose columns are those of a header."""
    lines = [header] if with_header else []
    for row in fields:
        if odd := sorted(set(row) ^ set(header)):
            raise ResultsError(
                f"{path}: rows and file differ in the columns {', '.join(odd)}"
            )
        lines.append([row[name] for name in header])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


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
    with one_line(path):
        *lines, rest = Path(path).read_bytes().split(b"\n")
    return lines, bool(rest)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
