"""The results folder: names, creating the folders of runs, and reading them back."""

import errno

import pytest
from storage_cases import listing, one_line

from vagram_jax.storage import files, results
from vagram_jax.storage.files import ResultsError

ROW = {
    "env": "toy",
    "loss": "mse",
    "seed": 0,
    "env_steps": 10,
    "return": -3.25,
    "length": 20,
    "diverged_at": None,
    "dropped": 0,
}
TIME = {"seed": 0, "env_steps": 10, "wall_time_s": 1.5}


@pytest.mark.parametrize(
    "name",
    [
        *(".", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "-rf", "a b", "a\n"),
        *("=1+1", "+1", "@x", "é", "end.", "CON", "nul", "com1.txt", "<script>"),
        *("summary.json", "Report.HTML", "a.png", "~", "$HOME", "C:x"),
        *("", "a\0b", "x" * 65, 7, None),
    ],
)
def test_check_name_refuses_names_that_are_unsafe_as_folders(name):
    with pytest.raises(ResultsError) as error:
        results.check_name(name, what="run")
    assert "run=" in one_line(error)


@pytest.mark.parametrize("name", ["vagram", "mle-2", "a.b_c", "_x", "0", "x" * 64])
def test_check_name_returns_a_safe_name(name):
    assert results.check_name(name, what="run") == name


def test_check_run_leaves_nothing_behind(tmp_path):
    folder = results.check_run(tmp_path / "new" / "root", "study", "run")
    assert folder == (tmp_path / "new" / "root" / "study" / "run").resolve()
    assert listing(tmp_path) == []


def test_check_run_refuses_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="not a folder") as error:
        results.check_run(tmp_path / "file" / "root", "study", "run")
    one_line(error)
    with pytest.raises(ResultsError):
        results.check_run("a\0b", "study", "run")

    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    # Permissions don't bind root, who may run these tests.
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ResultsError, match="Read-only file system") as error:
        results.check_run(tmp_path, "study", "run")
    one_line(error)


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
    files.write_json(folder / "summary.json", {"iqm": 1})
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in listing(tmp_path)}
    message = "holds a finished run; --resume continues it, --overwrite .* --study=NAME"
    with pytest.raises(ResultsError, match=message):
        results.create_run(tmp_path, "study", "run", {"lr": 2.0})
    assert before == {n: (tmp_path / n).stat().st_mtime_ns for n in listing(tmp_path)}


@pytest.mark.parametrize(
    "name", ["metrics.csv", "model.csv", "timing.csv", "checkpoints"]
)
def test_create_run_refuses_the_files_of_an_unfinished_run(tmp_path, name):
    folder = tmp_path / "study" / "run"
    folder.mkdir(parents=True)
    (folder / name).mkdir() if name == "checkpoints" else (folder / name).touch()
    with pytest.raises(ResultsError, match="an unfinished run"):
        results.create_run(tmp_path, "study", "run", {})


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_failed_before_it_was_trained_blocks_nothing(tmp_path, resume):
    folder = results.create_run(tmp_path, "study", "run", {"batch_size": 10**9})
    files.write_json(folder / "failure.json", {"reason": "out of memory"})
    corrected = {"batch_size": 256}
    results.create_run(tmp_path, "study", "run", corrected, resume=resume)
    assert listing(folder) == ["config.json"]
    assert files.read_json(folder / "config.json")["config"] == corrected


@pytest.fixture
def full_run(tmp_path):
    """A run with every file, and one that isn't of the run."""
    folder = results.create_run(tmp_path, "study", "run", {"lr": 1.0})
    files.append_rows(folder / "metrics.csv", [ROW])
    files.append_rows(folder / "model.csv", [{"seed": 0, "env_steps": 10}])
    files.append_rows(folder / "timing.csv", [TIME])
    for name in ("summary.json", "failure.json"):
        files.write_json(folder / name, {})
    (folder / "checkpoints" / "7").mkdir(parents=True)
    for name in results.LOGS:
        (folder / name / "seed0").mkdir(parents=True)
    for seed, kind in ((0, "mp4"), (12, "html")):
        results.picture_path(folder, seed, kind).write_text("of the old policy")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_create_run_overwrites_the_run_and_nothing_else(full_run, tmp_path):
    results.create_run(tmp_path, "study", "run", {"lr": 2.0}, overwrite=True)
    assert listing(full_run) == ["config.json", "notes.txt"]
    assert files.read_json(full_run / "config.json")["config"] == {"lr": 2.0}


def test_create_run_resumes_without_the_files_that_end_a_run(full_run, tmp_path):
    before = set(listing(full_run))
    results.create_run(tmp_path, "study", "run", {"lr": 1.0}, resume=True)
    assert before - set(listing(full_run)) == {"summary.json", "failure.json"}


def test_is_finished_needs_the_summary_and_the_same_settings(tmp_path):
    folder = tmp_path / "study" / "run"
    settings = {"lr": 1.0, "total_steps": 40}
    assert not results.is_finished(folder)
    results.create_run(tmp_path, "study", "run", settings)
    assert not results.is_finished(folder, settings)
    files.write_json(folder / "summary.json", {})
    assert results.is_finished(folder)
    assert results.is_finished(str(folder), settings)
    assert not results.is_finished(folder, settings | {"total_steps": 50})
    assert not results.is_finished(folder, settings | {"lr": 2.0})


@pytest.fixture
def study(tmp_path):
    """Two unfinished runs."""
    for name in ("mse", "mle"):
        folder = results.create_run(tmp_path, "study", name, {"loss": name})
        files.append_rows(folder / "metrics.csv", [ROW | {"loss": name}])
    return tmp_path / "study"


def test_read_runs_returns_every_run_by_name(study):
    fit = {"seed": 0, "env_steps": 10, "error_dim_0": 0.5}
    files.append_rows(study / "mse" / "model.csv", [fit])
    files.append_rows(study / "mse" / "timing.csv", [TIME])
    files.write_json(study / "mse" / "summary.json", {"iqm": 1})
    (study / "pictures").mkdir()
    mle, mse = results.read_runs(study)
    assert (mle.name, mse.name) == ("mle", "mse")
    assert mse.config == {"loss": "mse"}
    assert (mse.metrics, mse.model, mse.timing) == ([ROW], [fit], [TIME])
    assert (mse.summary, mse.notes) == ({"iqm": 1}, ())
    assert (mle.timing, mle.summary) == ([], None)
    assert "unfinished" in mle.notes[0]
    assert results.read_run(str(study / "mse")) == mse


def test_read_run_notes_an_incomplete_last_line(study):
    with open(study / "mle" / "metrics.csv", "a") as file:
        file.write("toy,ml")
    run = results.read_run(study / "mle")
    assert run.notes[0] == "metrics.csv: the last line is cut off and was left out"
    assert len(run.metrics) == 1


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [
        *(("metrics", ROW, name) for name in ("env_steps", "return", "diverged_at")),
        *(("timing", TIME, name) for name in TIME),
        ("model", {"seed": 0, "env_steps": 10}, "seed"),
    ],
)
def test_read_run_names_a_value_that_is_no_number(study, table, row, column):
    path = study / "mse" / f"{table}.csv"
    path.unlink(missing_ok=True)
    files.append_rows(path, [row, row | {column: "much"}])
    message = rf"{table}\.csv:3: {column}='much'; a number is accepted"
    with pytest.raises(ResultsError, match=message):
        results.read_run(study / "mse")


@pytest.mark.parametrize(
    ("table", "missing"),
    [("metrics", "diverged_at, env_steps, return"), ("model", "env_steps")],
)
def test_read_run_names_a_missing_column(study, table, missing):
    (study / "mle" / f"{table}.csv").write_text("env,loss,seed\ntoy,mle,0\n")
    with pytest.raises(ResultsError, match=rf"{table}\.csv:1: lacks .* {missing}"):
        results.read_run(study / "mle")


@pytest.mark.parametrize("name", ["metrics.csv", "timing.csv", "checkpoints"])
def test_read_run_refuses_links(study, tmp_path, name):
    (tmp_path / "elsewhere").write_text("env,loss\nx,y\n")
    (study / "mle" / name).unlink(missing_ok=True)
    (study / "mle" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResultsError, match=f"{name}: is a link"):
        results.read_run(study / "mle")


def test_read_runs_without_a_run_is_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ResultsError) as error:
            results.read_runs(folder)
        one_line(error)
    with pytest.raises(ResultsError, match=r"config\.json: No such file") as error:
        results.read_run(tmp_path / "run")
    one_line(error)


def test_pictures_lists_the_files_of_picture_path(tmp_path):
    assert results.pictures(tmp_path / "missing") == []
    expected = [(0, "gif"), (0, "mp4"), (2, "html"), (10, "mp4")]
    for seed, kind in reversed(expected):
        path = results.picture_path(str(tmp_path), seed, kind)
        assert path == tmp_path / f"policy-seed{seed}.{kind}"
        path.write_text("x")
    for name in ("policy-seed.mp4", "policy-seed1.png", "policy-seed1.mp4.html", "a"):
        (tmp_path / name).write_text("x")
    (tmp_path / "policy-seed3.gif").mkdir()
    (tmp_path / "policy-seed4.gif").symlink_to(tmp_path / "policy-seed0.gif")
    names = [(seed, f"policy-seed{seed}.{kind}") for seed, kind in expected]
    assert results.pictures(tmp_path) == names
