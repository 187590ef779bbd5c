"""What a run leaves on disk: names, folders, the record, reading back."""

import errno
import shlex

import numpy as np
import pytest

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


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def listing(folder) -> list[str]:
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
    assert listing(tmp_path) == []


def test_check_run_refuses_a_place_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="no folder") as error:
        results.check_run(tmp_path / "file" / "root", "study", "run")
    one_line(error)


def test_check_run_refuses_a_read_only_file_system(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    # Permissions don't bind root, who may well run these tests.
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
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
    files.write_json(folder / "summary.json", {"iqm": 1})
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in listing(tmp_path)}
    said = "holds a finished run; --resume goes on .* --overwrite .* --study=NAME"
    with pytest.raises(ResultsError, match=said):
        results.create_run(tmp_path, "study", "run", {"lr": 2.0})
    assert before == {n: (tmp_path / n).stat().st_mtime_ns for n in listing(tmp_path)}


@pytest.mark.parametrize(
    "left", ["config.json", "metrics.csv", "timing.csv", "failure.json", "checkpoints"]
)
def test_create_run_refuses_what_an_unfinished_run_left(tmp_path, left):
    folder = tmp_path / "study" / "run"
    folder.mkdir(parents=True)
    (folder / left).write_text("{}")
    with pytest.raises(ResultsError, match="an unfinished run"):
        results.create_run(tmp_path, "study", "run", {})


SETTINGS = {"lr": 1.0, "total_steps": 40, "sac": {"discount": 0.9, "hidden": (4, 4)}}


def resume(root, settings=SETTINGS, **options):
    """Goes on with the run; gives its record."""
    folder = results.create_run(root, "study", "run", settings, resume=True, **options)
    return files.read_json(folder / "config.json")


def test_create_run_resumes_a_run_and_keeps_its_record_and_files(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", SETTINGS)
    before = files.read_json(folder / "config.json")
    files.append_rows(folder / "metrics.csv", [ROW])
    files.append_rows(folder / "timing.csv", [TIME])
    (folder / "checkpoints" / "7").mkdir(parents=True)
    left = listing(folder)
    record = resume(tmp_path)
    assert listing(folder) == left
    (note,) = record.pop("resumed")
    assert record == before
    assert note.keys() == {"started", "command", "changed"}
    assert note["started"] >= before["started"]
    assert note["command"] == before["command"]
    assert note["changed"] == {}


def test_create_run_resumes_where_there_is_no_run_yet(tmp_path):
    record = resume(tmp_path)
    assert record["config"] == files.as_json(SETTINGS)
    assert "resumed" not in record


def test_create_run_that_resumes_removes_what_says_how_the_run_ended(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", SETTINGS)
    for name in ("summary.json", "failure.json"):
        files.write_json(folder / name, {})
    resume(tmp_path)
    assert listing(folder) == ["config.json"]


def test_create_run_that_resumes_notes_what_changed_each_time(tmp_path):
    on = {"device": "CPU", "layout": {"seed_mode": "vmap", "seed_chunk": 0}}
    folder = results.create_run(tmp_path, "study", "run", SETTINGS, on=on)
    record = files.read_json(folder / "config.json")
    record["versions"]["numpy"] = "0.1"
    files.write_json(folder / "config.json", record)
    resume(tmp_path, on=on | {"device": "GPU"})
    found = resume(tmp_path, on=on | {"layout": {"seed_mode": "serial"}})
    # What the run began with stays; each note has what was another thing then.
    assert found["versions"]["numpy"] == "0.1"
    assert (found["device"], found["layout"]) == (on["device"], on["layout"])
    first, second = (note["changed"] for note in found["resumed"])
    assert first.keys() == {"versions", "device"}
    assert first["versions"]["numpy"] == second["versions"]["numpy"] == np.__version__
    assert first["device"] == "GPU"
    assert second.keys() == {"versions", "layout"}
    assert second["layout"] == {"seed_mode": "serial"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 2.0}, "settings: lr was 1.0, is 2.0; only total_steps may grow"),
        ({"sac": {"discount": 0.8, "hidden": (4, 4)}}, "sac.discount was 0.9, is 0.8;"),
        ({"sac": {"discount": 0.9, "hidden": (4,)}}, r"hidden was \[4, 4\], is \[4\]"),
        ({"sac": {"discount": 0.9}}, r"sac.hidden was \[4, 4\], is None"),
        ({"new": 3}, "new was None, is 3;"),
        ({"total_steps": 30}, "settings: total_steps was 40, is 30;"),
        ({"total_steps": 50, "lr": 2.0}, "settings: lr was 1.0, is 2.0; only"),
        ({"total_steps": 3, "lr": 2}, "lr was 1.0, is 2; total_steps was 40, is 3; o"),
    ],
)
def test_create_run_refuses_to_resume_with_other_settings(tmp_path, change, said):
    folder = results.create_run(tmp_path, "study", "run", SETTINGS)
    for name in ("summary.json", "failure.json"):
        files.write_json(folder / name, {})
    before = {name: (folder / name).read_bytes() for name in listing(folder)}
    with pytest.raises(ValueError, match=said) as error:
        resume(tmp_path, SETTINGS | change)
    assert str(folder) in one_line(error)
    assert {name: (folder / name).read_bytes() for name in listing(folder)} == before


def test_create_run_resumes_for_more_steps_and_records_how_many(tmp_path):
    results.create_run(tmp_path, "study", "run", SETTINGS)
    record = resume(tmp_path, SETTINGS | {"total_steps": 60})
    assert record["config"] == files.as_json(SETTINGS | {"total_steps": 60})
    # From then on fewer are refused.
    with pytest.raises(ValueError, match="total_steps was 60, is 40"):
        resume(tmp_path)
    assert len(resume(tmp_path, SETTINGS | {"total_steps": 60})["resumed"]) == 2


def test_resumed_changes_no_file(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", SETTINGS)
    before = (folder / "config.json").read_bytes()
    now = {"config": SETTINGS | {"total_steps": 90}, "started": "now", "command": "x"}
    record = results.resumed(folder, now)
    assert record["config"]["total_steps"] == 90
    assert record["resumed"] == [{"started": "now", "command": "x", "changed": {}}]
    assert (folder / "config.json").read_bytes() == before
    assert listing(folder) == ["config.json"]


@pytest.mark.parametrize("record", ["[]", "{}", '{"config": 1}', "{"])
def test_create_run_refuses_to_resume_without_a_legible_record(tmp_path, record):
    folder = results.create_run(tmp_path, "study", "run", SETTINGS)
    (folder / "config.json").write_text(record)
    with pytest.raises(ResultsError, match=r"config\.json: ") as error:
        resume(tmp_path)
    one_line(error)
    assert (folder / "config.json").read_text() == record


def test_is_finished_asks_for_the_summary_and_the_same_settings(tmp_path):
    folder = tmp_path / "study" / "run"
    assert not results.is_finished(folder)
    results.create_run(tmp_path, "study", "run", SETTINGS)
    assert not results.is_finished(folder, SETTINGS)
    files.write_json(folder / "summary.json", {})
    assert results.is_finished(folder)
    assert results.is_finished(str(folder), SETTINGS)
    assert not results.is_finished(folder, SETTINGS | {"total_steps": 50})
    assert not results.is_finished(folder, SETTINGS | {"lr": 2.0})


def test_create_run_overwrites_the_run_and_nothing_else(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", {"lr": 1.0})
    files.append_rows(folder / "metrics.csv", [ROW])
    files.append_rows(folder / "model.csv", [{"seed": 0, "env_steps": 10}])
    files.append_rows(folder / "timing.csv", [TIME])
    for name in ("summary.json", "failure.json"):
        files.write_json(folder / name, {})
    (folder / "checkpoints" / "7").mkdir(parents=True)
    for seed, kind in ((0, "mp4"), (12, "html")):
        results.picture_path(folder, seed, kind).write_text("of the old policy")
    (folder / "notes.txt").write_text("mine")
    results.create_run(tmp_path, "study", "run", {"lr": 2.0}, overwrite=True)
    assert listing(folder) == ["config.json", "notes.txt"]
    assert files.read_json(folder / "config.json")["config"] == {"lr": 2.0}


def test_create_run_records_versions_device_and_start(tmp_path):
    on = {"device": "CPU", "layout": {"seed_mode": "serial"}}
    folder = results.create_run(tmp_path, "study", "run", {"a": {"b": 1}}, on=on)
    record = files.read_json(folder / "config.json")
    assert record["config"] == {"a": {"b": 1}}
    assert record["device"] == "CPU"
    assert record["layout"] == {"seed_mode": "serial"}
    assert record["versions"]["numpy"] == np.__version__
    # The simulator, and whose model files it reads.
    assert {"python", "mujoco", "gymnasium"} <= set(record["versions"])
    assert record["started"].endswith("+00:00")
    assert listing(folder) == ["config.json"]


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("--config=/home/me/configs/hopper.py:quick", "--config=hopper.py:quick"),
        ("/home/me/results/", "results/"),
        ("C:\\Users\\me\\x.py", "x.py"),
        ("--seeds=0:8", "--seeds=0:8"),
        ("--root=/a/b b/c", "--root=c"),
        ("--config.x=('/a/b','/c/d')", "--config.x=('b','d')"),
        ("--url=file:///a/b", "--url=file:b"),
        ("--steps=1e3/2", "--steps=1e3/2"),
        ("configs/hopper.py", "configs/hopper.py"),
    ],
)
def test_command_has_no_absolute_path(monkeypatch, argument, kept):
    monkeypatch.setattr(results.sys.modules["__main__"], "__spec__", None)
    command = results._command(["/usr/lib/x/train.py", argument])
    assert shlex.split(command) == ["python", "train.py", kept]


def test_command_names_the_module(monkeypatch):
    spec = type("Spec", (), {"name": "vagram_jax.cli.train"})
    monkeypatch.setattr(results.sys.modules["__main__"], "__spec__", spec)
    assert results._command(["/x/train.py"]) == "python -m vagram_jax.cli.train"


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
        files.append_rows(folder / "metrics.csv", [ROW | {"loss": name}])
    return tmp_path / "study"


def test_read_runs_finds_every_run_by_name(study):
    fit = {"seed": 0, "env_steps": 10, "error_dim_0": 0.5}
    files.append_rows(study / "mse" / "model.csv", [fit])
    files.append_rows(study / "mse" / "timing.csv", [TIME])
    files.write_json(study / "mse" / "summary.json", {"iqm": 1})
    (study / "pictures").mkdir()
    mle, mse = results.read_runs(study)
    assert (mle.name, mse.name) == ("mle", "mse")
    assert mse.config == {"loss": "mse"}
    assert mse.metrics == [ROW]
    assert mse.model == [fit]
    assert mse.timing == [TIME]
    assert (mse.summary, mse.notes) == ({"iqm": 1}, ())
    assert (mle.timing, mle.summary) == ([], None)
    assert "unfinished" in mle.notes[0]


def test_read_run_reads_one(study):
    assert results.read_run(study / "mse") == results.read_runs(study)[1]
    assert results.read_run(str(study / "mse")).name == "mse"


def test_read_run_without_a_config_is_one_line(tmp_path):
    with pytest.raises(ResultsError, match=r"config\.json: No such file") as error:
        results.read_run(tmp_path / "run")
    one_line(error)


def test_read_run_names_a_model_row_without_its_step(study):
    files.append_rows(study / "mse" / "model.csv", [{"seed": 0, "error_dim_0": 0.5}])
    with pytest.raises(ResultsError, match=r"model\.csv:1: lacks the column env_s"):
        results.read_run(study / "mse")


@pytest.mark.parametrize("column", TIME)
def test_read_run_names_a_time_that_is_no_number(study, column):
    files.append_rows(study / "mse" / "timing.csv", [TIME, TIME | {column: "late"}])
    with pytest.raises(ResultsError, match=rf"timing\.csv:3: {column}='late'; a num"):
        results.read_run(study / "mse")


def test_read_run_refuses_a_link_to_times(study, tmp_path):
    files.append_rows(tmp_path / "elsewhere.csv", [TIME])
    (study / "mse" / "timing.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(ResultsError, match=r"timing\.csv: is a link"):
        results.read_run(study / "mse")


def test_a_run_leaves_no_absolute_path(tmp_path, monkeypatch):
    argv = ["/opt/x/train.py", f"--results={tmp_path}/results", f"{tmp_path}/a.py"]
    monkeypatch.setattr(results.sys, "argv", argv)
    folder = results.create_run(tmp_path / "results", "study", "run", {"loss": "mse"})
    text = (folder / "config.json").read_text()
    assert str(tmp_path) not in text
    assert "/opt" not in text


def test_read_runs_tells_of_half_a_line(study):
    with open(study / "mle" / "metrics.csv", "a") as file:
        file.write("toy,ml")
    assert "cut off" in results.read_runs(study)[0].notes[0]
    assert len(results.read_runs(study)[0].metrics) == 1


@pytest.mark.parametrize("cell", ["seed", "env_steps", "return", "diverged_at"])
def test_read_runs_names_a_cell_that_is_no_number(study, cell):
    files.append_rows(study / "mle" / "metrics.csv", [ROW | {cell: "much"}])
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


def test_pictures_finds_what_stands_at_picture_path(tmp_path):
    assert results.pictures(tmp_path / "missing") == []
    wanted = [(0, "gif"), (0, "mp4"), (2, "html"), (10, "mp4")]
    for seed, kind in reversed(wanted):
        path = results.picture_path(str(tmp_path), seed, kind)
        assert path == tmp_path / f"policy-seed{seed}.{kind}"
        path.write_text("x")
    for name in ("policy-seed.mp4", "policy-seed1.png", "policy-seed1.mp4.html", "a"):
        (tmp_path / name).write_text("x")
    (tmp_path / "policy-seed3.gif").mkdir()
    (tmp_path / "policy-seed4.gif").symlink_to(tmp_path / "policy-seed0.gif")
    found = results.pictures(tmp_path)
    assert found == [(seed, f"policy-seed{seed}.{kind}") for seed, kind in wanted]


def test_read_record_gives_what_create_run_wrote(tmp_path):
    folder = results.create_run(tmp_path, "study", "run", {"lr": (1.0, 2.0)})
    record = results.read_record(folder)
    assert record == files.read_json(folder / "config.json")
    assert record["config"] == {"lr": [1.0, 2.0]}


@pytest.mark.parametrize("text", ["[]", "{}", '{"config": 1}', "{", None])
def test_read_record_refuses_in_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ResultsError, match=r"config\.json: ") as error:
        results.read_record(tmp_path)
    one_line(error)
