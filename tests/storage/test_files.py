"""Whole files and whole lines, or nothing: atomic JSON, CSV by lines, reading back."""

import csv
import errno
import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vagram_jax.storage import files, results
from vagram_jax.storage.files import ResultsError


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def listing(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


NAMES = st.text("abc/_é,\" '", min_size=1, max_size=6)
TEXTS = st.text(max_size=8).filter(
    lambda t: t and t.isprintable() and t[0] not in "=+-@" and not _is_number(t)
)
VALUES = st.one_of(
    st.none(),
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.floats(),
    st.floats(width=32).map(np.float32),
    TEXTS,
)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def same(written, read) -> bool:
    if isinstance(written, np.float32):
        read = np.float32(read)
    if isinstance(written, float | np.float32) and math.isnan(written):
        return math.isnan(read)
    return written == read


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_append_rows_then_read_rows_gives_the_same_values(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    columns = data.draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    row = st.fixed_dictionaries(dict.fromkeys(columns, VALUES))
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    files.append_rows(path, rows[:1])
    files.append_rows(path, rows[1:])
    found = files.read_rows(path)
    assert len(found) == len(rows)
    for written, read in zip(rows, found, strict=True):
        assert list(read) == list(rows[0])
        assert all(same(written[name], read[name]) for name in columns)
    # Any other reader of RFC 4180 sees the same fields.
    with open(path, newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_append_rows_writes_none_nan_and_bools_as_documented(tmp_path):
    path = tmp_path / "x.csv"
    row = {"a": None, "b": math.nan, "c": True, "d": np.float32(0.1), "e": np.int64(7)}
    files.append_rows(path, [row | {"f": np.array(2.5), "g": -math.inf}])
    assert path.read_text() == "a,b,c,d,e,f,g\n,nan,1,0.1,7,2.5,-inf\n"


def test_append_rows_keeps_the_order_of_the_header(tmp_path):
    files.append_rows(tmp_path / "x.csv", [{"a": 1, "b": 2}])
    files.append_rows(tmp_path / "x.csv", [{"b": 4, "a": 3}])
    assert (tmp_path / "x.csv").read_text() == "a,b\n1,2\n3,4\n"


@pytest.mark.parametrize("row", [{"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 2}])
def test_append_rows_refuses_other_columns_and_writes_nothing(tmp_path, row):
    path = tmp_path / "x.csv"
    files.append_rows(path, [{"a": 1, "b": 2}])
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="columns") as error:
        files.append_rows(path, [{"a": 1, "b": 2}, row])
    one_line(error)
    with pytest.raises(ResultsError, match="columns"):
        files.append_rows(path, [row])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "value",
    [
        *("a\nb", "a\rb", "a\0", "\u2028", "=1+1", "+x", "-x", "@x", "\tx"),
        *("", "1.5", "nan", [1], {}, 1j, np.zeros(2), 10**30, object()),
    ],
)
def test_append_rows_refuses_what_would_not_be_read_back(tmp_path, value):
    with pytest.raises(ValueError):
        files.append_rows(tmp_path / "x.csv", [{"a": value}])
    assert not (tmp_path / "x.csv").exists()


def test_append_rows_waits_for_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda fd: (synced.append(fd), real(fd)))
    files.append_rows(tmp_path / "x.csv", [{"a": 1}])
    assert len(synced) == 2  # the file, and once the folder that got it
    files.append_rows(tmp_path / "x.csv", [{"a": 1}])
    assert len(synced) == 3


def test_append_rows_takes_a_failed_write_back(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    files.append_rows(path, [{"a": 1}])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(ResultsError, match="No space left") as error:
            files.append_rows(path, [{"a": 2}])
    one_line(error)
    files.append_rows(path, [{"a": 2}])
    assert [row["a"] for row in files.read_rows(path)] == [1, 2]


def test_append_rows_into_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(ResultsError, match="No such file") as error:
        files.append_rows(tmp_path / "gone" / "x.csv", [{"a": 1}])
    one_line(error)


def test_append_rows_refuses_to_continue_half_a_line(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3")
    with pytest.raises(ResultsError, match="half a line"):
        files.append_rows(tmp_path / "x.csv", [{"a": 1, "b": 2}])


def test_read_rows_leaves_half_a_last_line_out(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4")
    assert files.read_rows(tmp_path / "x.csv") == [{"a": 1, "b": 2}]


@pytest.mark.parametrize("content", [b"", b"a,b", b"a,b\n"])
def test_read_rows_of_a_file_without_rows_is_empty(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    assert files.read_rows(tmp_path / "x.csv") == []


@pytest.mark.parametrize(
    "line", [b"1", b"1,2,3", b"", b'"1,2', b"\xff,1", b"1,\0", b'"a"b,1']
)
def test_read_rows_names_the_damaged_line(tmp_path, line):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n1,2\n" + line + b"\n5,6\n")
    with pytest.raises(ResultsError) as error:
        files.read_rows(path)
    assert f"{path}:3: damaged" in one_line(error)


def test_read_rows_takes_the_line_ends_of_a_spreadsheet(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\r\n1,x\r\n")
    assert files.read_rows(tmp_path / "x.csv") == [{"a": 1, "b": "x"}]


def test_read_rows_refuses_a_column_that_stands_twice(tmp_path):
    (tmp_path / "x.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ResultsError, match="twice"):
        files.read_rows(tmp_path / "x.csv")


def test_keep_rows_cuts_later_rows_and_half_a_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("env_steps,a\n10,1\n20,2\n30,3\n40,")
    files.keep_rows(path, env_steps=20)
    assert path.read_text() == "env_steps,a\n10,1\n20,2\n"
    files.append_rows(path, [{"env_steps": 30, "a": 5}])
    assert len(files.read_rows(path)) == 3


def test_keep_rows_cuts_the_seeds_that_are_named_and_no_others(tmp_path):
    path = tmp_path / "x.csv"
    # Seeds 0 and 1 have come to 30, seed 2 is done, and what stays keeps its bytes.
    kept = ["0,10,1.50", "1,10,2", "2,20,3e0", "2,30,4"]
    text = ["0,20,5", "1,30,6"]
    path.write_text("\n".join(["seed,env_steps,a", *kept[:2], *text, *kept[2:], "2,4"]))
    files.keep_rows(path, env_steps=10, seeds=range(2))
    assert path.read_text() == "\n".join(["seed,env_steps,a", *kept, ""])


@pytest.mark.parametrize("seeds", [None, range(2)])
def test_keep_rows_removes_a_file_without_rows(tmp_path, seeds):
    path = tmp_path / "x.csv"
    path.write_text("seed,env_steps\n0,10\n1,10\n")
    files.keep_rows(path, env_steps=9, seeds=seeds)
    assert listing(tmp_path) == []
    # So the next rows may have other columns.
    files.append_rows(path, [{"seed": 0, "env_steps": 1, "a": 2}])
    assert path.read_text() == "seed,env_steps,a\n0,1,2\n"


def test_keep_rows_keeps_a_file_with_the_rows_of_other_seeds_alone(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("seed,env_steps\n0,10\n5,10\n")
    files.keep_rows(path, env_steps=-1, seeds=[0])
    assert path.read_text() == "seed,env_steps\n5,10\n"


def test_keep_rows_of_a_missing_file_makes_none(tmp_path):
    files.keep_rows(tmp_path / "x.csv", env_steps=5, seeds=range(3))
    assert listing(tmp_path) == []


def test_keep_rows_of_half_a_header_lets_the_next_rows_start_anew(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("env_st")
    files.keep_rows(path, env_steps=0)
    assert listing(tmp_path) == []
    files.append_rows(path, [{"env_steps": 1}])
    assert path.read_text() == "env_steps\n1\n"


def test_keep_rows_refuses_rows_without_steps(tmp_path):
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(ResultsError, match="env_steps"):
        files.keep_rows(tmp_path / "x.csv", env_steps=5)


def test_keep_rows_refuses_rows_without_seeds_when_seeds_are_named(tmp_path):
    (tmp_path / "x.csv").write_text("env_steps\n9\n")
    with pytest.raises(ResultsError, match="seed"):
        files.keep_rows(tmp_path / "x.csv", env_steps=5, seeds=[0])


def test_write_json_turns_what_json_lacks_into_null(tmp_path):
    value = {"a": math.nan, "b": [math.inf, np.float32(1.5)], "c": (1, np.int64(2))}
    value |= {"d": np.array([1.0, np.nan]), "e": True, "f": "x", "g": None}
    files.write_json(tmp_path / "x.json", value)
    strict = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert strict == {"a": None, "b": [None, 1.5], "c": [1, 2]} | {
        "d": [1.0, None],
        "e": True,
        "f": "x",
        "g": None,
    }


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": {1, 2}}, {"a": 1j}])
def test_write_json_refuses_other_values(tmp_path, value):
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", value)
    assert listing(tmp_path) == []


def test_write_json_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "replace", fail)
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


def test_results_error_is_one_class_under_both_names():
    assert results.ResultsError is files.ResultsError


def test_write_text_and_write_bytes_replace_the_whole_file(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "much text \udc80")
    assert path.read_bytes() == b"much text \\udc80"
    files.write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert listing(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_sync_waits_for_a_file_or_for_the_names_in_a_folder(
    tmp_path, monkeypatch, kind
):
    path = tmp_path / "x"
    path.write_text("x") if kind == "file" else path.mkdir()
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    before = set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self") else None
    monkeypatch.setattr(files.os, "fsync", fsync)
    files.sync(path)
    files.sync(str(path))
    assert synced == [path.stat().st_ino] * 2
    if before is not None:
        assert set(os.listdir("/proc/self/fd")) == before


def test_sync_refuses_a_file_that_the_disk_refuses_and_lets_folders_be(
    tmp_path, monkeypatch
):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "x").write_text("x")
    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(ResultsError, match="x: Input/output error") as error:
        files.sync(tmp_path / "x")
    one_line(error)
    files.sync(tmp_path)  # some systems can't sync a folder
    with pytest.raises(ResultsError, match="No such file"):
        files.sync(tmp_path / "missing")


def test_is_cut_off_sees_half_a_line(tmp_path):
    path = tmp_path / "x.csv"
    for content, cut_off in [("", False), ("a\n1\n", False), ("a\n1", True)]:
        path.write_text(content)
        assert files.is_cut_off(path) is cut_off
    with pytest.raises(ResultsError, match="No such file"):
        files.is_cut_off(tmp_path / "missing.csv")


def test_as_json_is_what_a_file_gives_back(tmp_path):
    value = {"a": (1, 2.5), "b": np.array([1.0, np.nan]), "c": {"d": math.inf}}
    files.write_json(tmp_path / "x.json", value)
    assert files.as_json(value) == files.read_json(tmp_path / "x.json")
    assert files.as_json(value) == {"a": [1, 2.5], "b": [1.0, None], "c": {"d": None}}


def test_check_writable_leaves_nothing_behind(tmp_path):
    files.check_writable(tmp_path / "new" / "folder")
    assert listing(tmp_path) == []


def test_check_writable_refuses_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="no folder") as error:
        files.check_writable(tmp_path / "file" / "folder")
    one_line(error)


def test_one_line_names_the_file_and_keeps_what_is_said_already():
    with pytest.raises(ResultsError) as error, files.one_line("here"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert one_line(error) == "here: No such file or directory"
    with pytest.raises(ResultsError) as error, files.one_line("here"):
        raise ResultsError("mine")
    assert one_line(error) == "mine"
