"""What a run leaves on disk: names, atomic JSON, whole CSV lines, reading back."""

import csv
import errno
import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vagram_jax import results
from vagram_jax.results import ResultsError

ROW = {
    "env": "toy",
    "loss": "mse",
    "seed": 0,
    "env_steps": 10,
    "wall_time_s": 1.5,
    "return": -3.25,
    "length": 20,
    "diverged_at": None,
}


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def files(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    "name",
    [
        *(".", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "-rf", "a b", "a\n"),
        *("=1+1", "+1", "@x", "é", "end.", "CON", "nul", "com1.txt", "<script>"),
        *("summary.json", "Report.HTML", "a.png", "~", "$HOME", "C:x"),
        *("", "a\0b", "x" * 65, 7, None),
    ],
)
def test_check_name_refuses_what_is_no_safe_folder(name):
    with pytest.raises(ResultsError) as error:
        results.check_name(name, what="run")
    assert "run=" in one_line(error)


@pytest.mark.parametrize("name", ["vagram", "mle-2", "a.b_c", "_x", "0", "x" * 64])
def test_check_name_returns_a_safe_name(name):
    assert results.check_name(name, what="run") == name


def test_check_run_leaves_nothing_behind(tmp_path):
    folder = results.check_run(tmp_path / "new" / "root", "study", "run")
    assert folder == (tmp_path / "new" / "root" / "study" / "run").resolve()
    assert files(tmp_path) == []


def test_check_run_refuses_a_place_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="no folder") as error:
        results.check_run(tmp_path / "file" / "root", "study", "run")
    one_line(error)


def test_check_run_refuses_a_read_only_file_system(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    # Permissions don't bind root, who may well run these tests.
    monkeypatch.setattr(results.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ResultsError, match="Read-only file system") as error:
        results.check_run(tmp_path, "study", "run")
    one_line(error)


def test_check_run_refuses_a_root_with_a_null_byte():
    with pytest.raises(ResultsError):
        results.check_run("a\0b", "study", "run")


def test_check_run_refuses_a_link_out_of_the_root(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "study").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResultsError, match="link"):
        results.check_run(tmp_path / "root", "study", "run")


def test_check_run_refuses_overwrite_with_resume(tmp_path):
    with pytest.raises(ValueError, match="exclude"):
        results.check_run(tmp_path, "s", "r", overwrite=True, resume=True)


def test_create_run_refuses_a_finished_run_and_keeps_it(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", {"lr": 1.0})
    results.write_json(folder / "summary.json", {"iqm": 1})
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    with pytest.raises(ResultsError, match="a finished run"):
        results.create_run(tmp_path, "study", "run", {"lr": 2.0})
    assert before == {n: (tmp_path / n).stat().st_mtime_ns for n in files(tmp_path)}


@pytest.mark.parametrize("left", ["config.json", "metrics.csv", "checkpoints"])
def test_create_run_refuses_what_an_unfinished_run_left(tmp_path, left):
    folder = tmp_path / "study" / "run"
    folder.mkdir(parents=True)
    (folder / left).write_text("{}")
    with pytest.raises(ResultsError, match="an unfinished run"):
        results.create_run(tmp_path, "study", "run", {})


def test_create_run_resumes_with_the_config_that_is_there(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", {"lr": 1.0})
    again = results.create_run(tmp_path, "study", "run", {"lr": 2.0}, resume=True)
    assert again == folder
    assert results.read_json(folder / "config.json")["config"] == {"lr": 1.0}


def test_create_run_overwrites_the_run_and_nothing_else(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", {"lr": 1.0})
    results.append_rows(folder / "metrics.csv", [ROW])
    (folder / "checkpoints" / "7").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    results.create_run(tmp_path, "study", "run", {"lr": 2.0}, overwrite=True)
    assert files(folder) == ["config.json", "notes.txt"]
    assert results.read_json(folder / "config.json")["config"] == {"lr": 2.0}


def test_create_run_records_versions_device_and_start(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", {"a": {"b": 1}}, device="CPU")
    record = results.read_json(folder / "config.json")
    assert record["config"] == {"a": {"b": 1}}
    assert record["device"] == "CPU"
    assert record["versions"]["numpy"] == np.__version__
    assert "python" in record["versions"]
    assert record["started"].endswith("+00:00")
    assert files(folder) == ["config.json"]


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("--config=/home/me/configs/hopper.py:quick", "--config=hopper.py:quick"),
        ("/home/me/results/", "results/"),
        ("C:\\Users\\me\\x.py", "x.py"),
        ("--seeds=0:8", "--seeds=0:8"),
        ("--root=/a/b b/c", "--root=c"),
        ("configs/hopper.py", "configs/hopper.py"),
    ],
)
def test_command_has_no_absolute_path(monkeypatch, argument, kept):
    monkeypatch.setattr(results.sys.modules["__main__"], "__spec__", None)
    command = results._command(["/usr/lib/x/train.py", argument])
    assert command in (f"python train.py {kept}", f"python train.py '{kept}'")


def test_command_names_the_module(monkeypatch):
    spec = type("Spec", (), {"name": "experiments.train"})
    monkeypatch.setattr(results.sys.modules["__main__"], "__spec__", spec)
    assert results._command(["/x/train.py"]) == "python -m experiments.train"


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
    results.append_rows(path, rows[:1])
    results.append_rows(path, rows[1:])
    found = results.read_rows(path)
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
    results.append_rows(path, [row | {"f": np.array(2.5), "g": -math.inf}])
    assert path.read_text() == "a,b,c,d,e,f,g\n,nan,1,0.1,7,2.5,-inf\n"


def test_append_rows_keeps_the_order_of_the_header(tmp_path):
    results.append_rows(tmp_path / "x.csv", [{"a": 1, "b": 2}])
    results.append_rows(tmp_path / "x.csv", [{"b": 4, "a": 3}])
    assert (tmp_path / "x.csv").read_text() == "a,b\n1,2\n3,4\n"


@pytest.mark.parametrize("row", [{"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 2}])
def test_append_rows_refuses_other_columns_and_writes_nothing(tmp_path, row):
    path = tmp_path / "x.csv"
    results.append_rows(path, [{"a": 1, "b": 2}])
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="columns") as error:
        results.append_rows(path, [{"a": 1, "b": 2}, row])
    one_line(error)
    with pytest.raises(ResultsError, match="columns"):
        results.append_rows(path, [row])
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
        results.append_rows(tmp_path / "x.csv", [{"a": value}])
    assert not (tmp_path / "x.csv").exists()


def test_append_rows_waits_for_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(results.os, "fsync", lambda fd: (synced.append(fd), real(fd)))
    results.append_rows(tmp_path / "x.csv", [{"a": 1}])
    assert len(synced) == 2  # the file, and once the folder that got it
    results.append_rows(tmp_path / "x.csv", [{"a": 1}])
    assert len(synced) == 3


def test_append_rows_takes_a_failed_write_back(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    results.append_rows(path, [{"a": 1}])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results.os, "fsync", full)
        with pytest.raises(ResultsError, match="No space left") as error:
            results.append_rows(path, [{"a": 2}])
    one_line(error)
    results.append_rows(path, [{"a": 2}])
    assert [row["a"] for row in results.read_rows(path)] == [1, 2]


def test_append_rows_into_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(ResultsError, match="No such file") as error:
        results.append_rows(tmp_path / "gone" / "x.csv", [{"a": 1}])
    one_line(error)


def test_append_rows_refuses_to_continue_half_a_line(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3")
    with pytest.raises(ResultsError, match="half a line"):
        results.append_rows(tmp_path / "x.csv", [{"a": 1, "b": 2}])


def test_read_rows_leaves_half_a_last_line_out(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4")
    assert results.read_rows(tmp_path / "x.csv") == [{"a": 1, "b": 2}]


@pytest.mark.parametrize("content", [b"", b"a,b", b"a,b\n"])
def test_read_rows_of_a_file_without_rows_is_empty(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    assert results.read_rows(tmp_path / "x.csv") == []


@pytest.mark.parametrize(
    "line", [b"1", b"1,2,3", b"", b'"1,2', b"\xff,1", b"1,\0", b'"a"b,1']
)
def test_read_rows_names_the_damaged_line(tmp_path, line):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n1,2\n" + line + b"\n5,6\n")
    with pytest.raises(ResultsError) as error:
        results.read_rows(path)
    assert f"{path}:3: damaged" in one_line(error)


def test_read_rows_takes_the_line_ends_of_a_spreadsheet(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\r\n1,x\r\n")
    assert results.read_rows(tmp_path / "x.csv") == [{"a": 1, "b": "x"}]


def test_read_rows_refuses_a_column_that_stands_twice(tmp_path):
    (tmp_path / "x.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ResultsError, match="twice"):
        results.read_rows(tmp_path / "x.csv")


def test_keep_rows_cuts_later_rows_and_half_a_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("env_steps,a\n10,1\n20,2\n30,3\n40,")
    results.keep_rows(path, env_steps=20)
    assert path.read_text() == "env_steps,a\n10,1\n20,2\n"
    results.append_rows(path, [{"env_steps": 30, "a": 5}])
    assert len(results.read_rows(path)) == 3


def test_keep_rows_of_half_a_header_lets_the_next_rows_start_anew(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("env_st")
    results.keep_rows(path, env_steps=0)
    results.append_rows(path, [{"env_steps": 1}])
    assert path.read_text() == "env_steps\n1\n"


def test_keep_rows_refuses_rows_without_steps(tmp_path):
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(ResultsError, match="env_steps"):
        results.keep_rows(tmp_path / "x.csv", env_steps=5)


def test_write_json_turns_what_json_lacks_into_null(tmp_path):
    value = {"a": math.nan, "b": [math.inf, np.float32(1.5)], "c": (1, np.int64(2))}
    value |= {"d": np.array([1.0, np.nan]), "e": True, "f": "x", "g": None}
    results.write_json(tmp_path / "x.json", value)
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
        results.write_json(tmp_path / "x.json", value)
    assert files(tmp_path) == []


def test_write_json_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    results.write_json(path, {"a": 1})

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(results.os, "replace", fail)
    with pytest.raises(ResultsError, match="Input/output"):
        results.write_json(path, {"a": 2})
    assert files(tmp_path) == ["x.json"]
    assert results.read_json(path) == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", "[NaN]", "{} {}", "[" * 100_000, "\xff"])
def test_read_json_names_a_damaged_file(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultsError, match="no valid JSON") as error:
        results.read_json(tmp_path / "x.json")
    one_line(error)


def test_flatten_and_differences_name_the_settings_that_differ():
    one = {"lr": 1.0, "sac": {"discount": 0.9, "sizes": (1, 2)}, "only": 1}
    two = {"lr": 1.0, "sac": {"discount": 0.8, "sizes": [1, 2]}}
    assert results.flatten(two) == {
        "lr": 1.0,
        "sac.discount": 0.8,
        "sac.sizes": [1, 2],
    }
    assert results.differences({"one": one, "two": two}) == {
        "sac.discount": {"one": 0.9, "two": 0.8},
        "only": {"one": 1},
    }


@pytest.fixture
def study(tmp_path):
    for name in ("mse", "mle"):
        folder = results.create_run(tmp_path, "study", name, {"loss": name})
        results.append_rows(folder / "metrics.csv", [ROW | {"loss": name}])
    return tmp_path / "study"


def test_read_runs_finds_every_run_by_name(study):
    results.append_rows(study / "mse" / "model.csv", [{"seed": 0, "error_dim_0": 0.5}])
    results.write_json(study / "mse" / "summary.json", {"iqm": 1})
    (study / "pictures").mkdir()
    mle, mse = results.read_runs(study)
    assert (mle.name, mse.name) == ("mle", "mse")
    assert mse.config == {"loss": "mse"}
    assert mse.metrics == [ROW]
    assert mse.model == [{"seed": 0, "error_dim_0": 0.5}]
    assert (mse.summary, mse.notes) == ({"iqm": 1}, ())
    assert mle.summary is None
    assert "unfinished" in mle.notes[0]


def test_read_runs_tells_of_half_a_line(study):
    with open(study / "mle" / "metrics.csv", "a") as file:
        file.write("toy,ml")
    assert "cut off" in results.read_runs(study)[0].notes[0]
    assert len(results.read_runs(study)[0].metrics) == 1


@pytest.mark.parametrize("cell", ["seed", "env_steps", "return", "diverged_at"])
def test_read_runs_names_a_cell_that_is_no_number(study, cell):
    results.append_rows(study / "mle" / "metrics.csv", [ROW | {cell: "much"}])
    with pytest.raises(ResultsError, match=rf"metrics.csv:3: {cell}='much'"):
        results.read_runs(study)


def test_read_runs_names_a_missing_column(study):
    (study / "mle" / "metrics.csv").write_text("env,loss,seed\ntoy,mle,0\n")
    with pytest.raises(ResultsError, match="lacks the column"):
        results.read_runs(study)


def test_read_runs_refuses_links(study, tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("env,loss\nx,y\n")
    (study / "mle" / "metrics.csv").unlink()
    (study / "mle" / "metrics.csv").symlink_to(secret)
    with pytest.raises(ResultsError, match="link"):
        results.read_runs(study)


@pytest.mark.parametrize("record", ["[]", "{}", '{"config": 1}'])
def test_read_runs_refuses_a_record_without_config(study, record):
    (study / "mle" / "config.json").write_text(record)
    with pytest.raises(ResultsError, match="holds no config"):
        results.read_runs(study)


def test_read_runs_of_an_empty_or_missing_folder_is_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ResultsError) as error:
            results.read_runs(folder)
        one_line(error)
