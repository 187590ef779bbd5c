"""Atomic JSON, CSV by whole lines, and reading back after a crash."""

import csv
import errno
import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import listing, one_line

from vagram_jax.storage import files
from vagram_jax.storage.files import ResultsError


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


NAMES = st.text("abc/_é,\" '", min_size=1, max_size=6)
TEXTS = st.text(max_size=8).filter(
    lambda t: t and t.isprintable() and t[0] not in "=+-@" and not is_number(t)
)
VALUES = st.one_of(
    st.none(),
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.floats(),
    st.floats(width=32).map(np.float32),
    TEXTS,
)


def is_same(written, read):
    if isinstance(written, np.float32):
        read = np.float32(read)
    if isinstance(written, float | np.float32) and math.isnan(written):
        return math.isnan(read)
    return written == read


def fail_with(code, text):
    def fail(*_, **__):
        raise OSError(code, text)

    return fail


@pytest.fixture(scope="module")
def csv_path(tmp_path_factory):
    """One path for all examples."""
    return tmp_path_factory.mktemp("csv") / "metrics.csv"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_read_rows_returns_the_values_of_append_rows(csv_path, data):
    csv_path.unlink(missing_ok=True)
    columns = data.draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    row = st.fixed_dictionaries(dict.fromkeys(columns, VALUES))
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    files.append_rows(csv_path, rows[:1])
    files.append_rows(csv_path, rows[1:])
    read = files.read_rows(csv_path)
    assert len(read) == len(rows)
    for before, after in zip(rows, read, strict=True):
        assert list(after) == list(rows[0])
        assert all(is_same(before[name], after[name]) for name in columns)
    # Any other reader of RFC 4180 sees as many rows.
    with open(csv_path, newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_append_rows_writes_values_as_documented_in_the_order_of_the_header(tmp_path):
    path = tmp_path / "x.csv"
    row = {"a": None, "b": math.nan, "c": True, "d": np.float32(0.1), "e": np.int64(7)}
    row |= {"f": np.array(2.5), "g": -math.inf}
    files.append_rows(path, [row])
    files.append_rows(path, [dict(reversed(row.items())) | {"a": 3}])
    line = "nan,1,0.1,7,2.5,-inf\n"
    assert path.read_text() == f"a,b,c,d,e,f,g\n,{line}3,{line}"


@pytest.mark.parametrize("row", [{"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 2}])
def test_append_rows_refuses_other_columns_and_writes_nothing(tmp_path, row):
    path = tmp_path / "x.csv"
    files.append_rows(path, [{"a": 1, "b": 2}])
    before = path.read_bytes()
    for rows in ([{"a": 1, "b": 2}, row], [row]):
        with pytest.raises(ResultsError, match="columns") as error:
            files.append_rows(path, rows)
        one_line(error)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "value",
    [
        *("a\nb", "a\rb", "a\0", "\u2028", "=1+1", "+x", "-x", "@x", "\tx"),
        *("", "1.5", "nan", [1], {}, 1j, np.zeros(2), 10**30, object()),
    ],
)
def test_append_rows_refuses_values_that_would_be_read_back_differently(
    tmp_path, value
):
    with pytest.raises(ValueError):
        files.append_rows(tmp_path / "x.csv", [{"a": value}])
    assert listing(tmp_path) == []


def test_append_rows_waits_for_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda fd: (synced.append(fd), fsync(fd)))
    files.append_rows(tmp_path / "x.csv", [{"a": 1}])
    assert len(synced) == 2  # the file, and the folder that got a new name
    files.append_rows(tmp_path / "x.csv", [{"a": 1}])
    assert len(synced) == 3


def test_append_rows_undoes_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    files.append_rows(path, [{"a": 1}])
    with monkeypatch.context() as patch:
        full = fail_with(errno.ENOSPC, "No space left on device")
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(ResultsError, match="No space left") as error:
            files.append_rows(path, [{"a": 2}])
    one_line(error)
    files.append_rows(path, [{"a": 2}])
    assert [row["a"] for row in files.read_rows(path)] == [1, 2]


def test_append_rows_in_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(ResultsError, match="No such file") as error:
        files.append_rows(tmp_path / "missing" / "x.csv", [{"a": 1}])
    one_line(error)


@pytest.mark.parametrize(
    ("content", "is_cut_off", "rows"),
    [
        ("", False, []),
        ("a,b", True, []),
        ("a,b\n", False, []),
        ("a,b\n1,2\n", False, [{"a": 1, "b": 2}]),
        ("a,b\n1,2\n3,4", True, [{"a": 1, "b": 2}]),
        ("a,b\r\n1,x\r\n", False, [{"a": 1, "b": "x"}]),  # as a spreadsheet writes
    ],
)
def test_an_incomplete_last_line_is_not_read_and_not_continued(
    tmp_path, content, is_cut_off, rows
):
    path = tmp_path / "x.csv"
    path.write_bytes(content.encode())
    assert files.read_rows(path) == rows
    assert files.is_cut_off(path) is is_cut_off
    if is_cut_off:
        with pytest.raises(ResultsError, match="incomplete line"):
            files.append_rows(path, [{"a": 1, "b": 2}])


@pytest.mark.parametrize(
    "line", [b"1", b"1,2,3", b"", b'"1,2', b"\xff,1", b"1,\0", b'"a"b,1']
)
def test_read_rows_names_the_damaged_line(tmp_path, line):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n1,2\n" + line + b"\n5,6\n")
    with pytest.raises(ResultsError) as error:
        files.read_rows(path)
    assert f"{path}:3: damaged" in one_line(error)


def test_read_rows_refuses_a_column_name_that_occurs_twice(tmp_path):
    (tmp_path / "x.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ResultsError, match="twice"):
        files.read_rows(tmp_path / "x.csv")


def test_keep_rows_removes_later_rows_and_an_incomplete_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("seed,env_steps\n0,10\n0,20\n0,30\n0,")
    files.keep_rows(path, env_steps=20, seeds=[0], others=[])
    assert path.read_text() == "seed,env_steps\n0,10\n0,20\n"
    files.append_rows(path, [{"seed": 0, "env_steps": 30}])
    assert len(files.read_rows(path)) == 3


def test_keep_rows_removes_rows_of_the_named_seeds_only(tmp_path):
    path = tmp_path / "x.csv"
    # Seed 2 has finished; the remaining lines keep their bytes.
    remaining = ["0,10,1.50", "1,10,2", "2,20,3e0", "2,30,4"]
    removed = ["0,20,5", "1,30,6", "3,10,7"]  # seed 3 isn't of the run
    lines = ["seed,env_steps,a", *remaining[:2], *removed, *remaining[2:], "2,4"]
    path.write_text("\n".join(lines))
    files.keep_rows(path, env_steps=10, seeds=range(2), others=range(3))
    assert path.read_text() == "\n".join(["seed,env_steps,a", *remaining, ""])
    files.keep_rows(path, env_steps=-1, seeds=[0, 1], others=[2])
    assert path.read_text() == "\n".join(["seed,env_steps,a", *remaining[2:], ""])


@pytest.mark.parametrize(
    ("content", "seeds"),
    [
        ("seed,env_steps\n0,10\n1,10\n", range(2)),
        ("seed,env_st", range(2)),
        (None, range(3)),
    ],
)
def test_keep_rows_leaves_no_file_without_rows(tmp_path, content, seeds):
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_text(content)
    files.keep_rows(path, env_steps=9, seeds=seeds, others=[])
    assert listing(tmp_path) == []
    # So the next rows may have other columns.
    files.append_rows(path, [{"seed": 0, "env_steps": 1, "a": 2}])
    assert path.read_text() == "seed,env_steps,a\n0,1,2\n"


@pytest.mark.parametrize(
    ("content", "name"), [("seed\n1\n", "env_steps"), ("env_steps\n9\n", "seed")]
)
def test_keep_rows_refuses_rows_without_steps_or_seeds(tmp_path, content, name):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ResultsError, match=f"without a whole number as {name}"):
        files.keep_rows(tmp_path / "x.csv", env_steps=5, seeds=[0], others=[])


def test_write_json_writes_null_for_what_json_lacks_as_as_json_says(tmp_path):
    value = {"a": math.nan, "b": [math.inf, np.float32(1.5)], "c": (1, np.int64(2))}
    value |= {"d": np.array([1.0, np.nan]), "e": True, "f": {"g": "x", "h": None}}
    expected = {"a": None, "b": [None, 1.5], "c": [1, 2], "d": [1.0, None], "e": True}
    expected |= {"f": {"g": "x", "h": None}}
    files.write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert files.read_json(tmp_path / "x.json") == expected
    assert files.as_json(value) == expected


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": {1, 2}}, {"a": 1j}])
def test_write_json_refuses_other_values(tmp_path, value):
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", value)
    assert listing(tmp_path) == []


def test_write_json_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(files.os, "replace", fail_with(errno.EIO, "Input/output error"))
    with pytest.raises(ResultsError, match="Input/output"):
        files.write_json(path, {"a": 2})
    assert listing(tmp_path) == ["x.json"]
    assert files.read_json(path) == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", "[NaN]", "{} {}", "[" * 100_000, "\xff"])
def test_read_json_names_a_damaged_file(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultsError, match="no valid JSON") as error:
        files.read_json(tmp_path / "x.json")
    one_line(error)


def test_write_text_and_write_bytes_replace_the_whole_file(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "much text \udc80")
    assert path.read_bytes() == b"much text \\udc80"
    files.write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert listing(tmp_path) == ["x.txt"]


def test_check_writable_leaves_nothing_behind_and_refuses_a_file_in_the_way(tmp_path):
    files.check_writable(tmp_path / "new" / "folder")
    assert listing(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="not a folder") as error:
        files.check_writable(tmp_path / "file" / "folder")
    one_line(error)


def test_one_line_names_the_file_and_keeps_our_own_errors():
    with pytest.raises(ResultsError) as error, files.one_line("here"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert one_line(error) == "here: No such file or directory"
    assert error.value.status == 5
    with pytest.raises(ResultsError) as error, files.one_line("here"):
        raise ResultsError("mine")
    assert one_line(error) == "mine"
