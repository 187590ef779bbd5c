"""The record of a run: what it holds, and what changes when the run is resumed."""

import shlex

import numpy as np
import pytest
from storage_cases import listing, one_line

from vagram_jax.storage import files, records, results
from vagram_jax.storage.files import ResultsError

SETTINGS = {"lr": 1.0, "total_steps": 40, "sac": {"discount": 0.9, "hidden": (4, 4)}}
ON = {"device": "CPU", "layout": {"seed_mode": "vmap", "seed_chunk": 0}}


@pytest.fixture
def run(tmp_path):
    """The folder of a run with a record and a row."""
    folder = results.create_run(
        tmp_path, "study", "run", SETTINGS, on=ON, labels={"loss": "mse"}
    )
    files.append_rows(folder / "timing.csv", [{"seed": 0, "env_steps": 8}])
    return folder


def resume(root, settings=SETTINGS, **options):
    """Resumes the run and returns its record."""
    folder = results.create_run(root, "study", "run", settings, resume=True, **options)
    return records.read(folder)


def test_a_record_holds_settings_labels_versions_device_and_start(run):
    record = records.read(run)
    assert record["config"] == files.as_json(SETTINGS)
    assert record["labels"] == {"loss": "mse"}
    assert {name: record[name] for name in ON} == ON
    assert record["versions"]["numpy"] == np.__version__
    # The simulator, and the package whose model files it reads.
    assert {"python", "mujoco", "gymnasium"} <= set(record["versions"])
    assert record["started"].endswith("+00:00")
    assert listing(run) == ["config.json", "timing.csv"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"config": 1}', "{", None])
def test_read_and_resume_refuse_a_damaged_record_in_one_line(tmp_path, text):
    folder = tmp_path / "study" / "run"
    folder.mkdir(parents=True)
    files.append_rows(folder / "timing.csv", [{"seed": 0, "env_steps": 8}])
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(ResultsError, match=r"config\.json: ") as error:
        records.read(folder)
    one_line(error)
    if text is not None:
        with pytest.raises(ResultsError, match=r"config\.json: "):
            resume(tmp_path)
        assert (folder / "config.json").read_text() == text


def test_resume_without_a_run_starts_one(tmp_path):
    record = resume(tmp_path)
    assert record["config"] == files.as_json(SETTINGS)
    assert "resumed" not in record


def test_resume_keeps_the_record_and_lists_what_changed_each_time(run, tmp_path):
    record = records.read(run)
    record["versions"]["numpy"] = "0.1"
    files.write_json(run / "config.json", record)
    resume(tmp_path, on=ON | {"device": "GPU"})
    resumed = resume(tmp_path, on=ON | {"layout": {"seed_mode": "serial"}})
    first, second = resumed.pop("resumed")
    assert resumed == record
    assert first.keys() == {"started", "command", "changed"}
    assert first["started"] >= record["started"]
    assert first["command"] == record["command"]
    assert first["changed"].keys() == {"versions", "device"}
    assert first["changed"]["versions"]["numpy"] == np.__version__
    assert first["changed"]["device"] == "GPU"
    assert second["changed"].keys() == {"versions", "layout"}
    assert second["changed"]["layout"] == {"seed_mode": "serial"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2.0}, "settings: lr was 1.0, is 2.0; only total_steps may grow"),
        ({"sac": {"discount": 0.8, "hidden": (4, 4)}}, "sac.discount was 0.9, is 0.8;"),
        ({"sac": {"discount": 0.9, "hidden": (4,)}}, r"hidden was \[4, 4\], is \[4\]"),
        ({"sac": {"discount": 0.9}}, r"sac.hidden was \[4, 4\], is None"),
        ({"new": 3}, "new was None, is 3;"),
        ({"total_steps": 30}, "settings: total_steps was 40, is 30;"),
        ({"total_steps": 50, "lr": 2.0}, "settings: lr was 1.0, is 2.0; only"),
        ({"total_steps": 3, "lr": 2}, "lr was 1.0, is 2; total_steps was 40, is 3; o"),
        (dict.fromkeys("abcdefgh", 1), "f was None, is 1; and 2 more; only"),
    ],
)
def test_resume_refuses_other_settings_and_changes_no_file(
    run, tmp_path, change, message
):
    for name in ("summary.json", "failure.json"):
        files.write_json(run / name, {})
    before = {name: (run / name).read_bytes() for name in listing(run)}
    with pytest.raises(ValueError, match=message) as error:
        resume(tmp_path, SETTINGS | change)
    assert str(run) in one_line(error)
    assert {name: (run / name).read_bytes() for name in listing(run)} == before


def test_resume_accepts_and_records_more_steps(run, tmp_path):
    longer = SETTINGS | {"total_steps": 60}
    assert resume(tmp_path, longer)["config"] == files.as_json(longer)
    with pytest.raises(ValueError, match="total_steps was 60, is 40"):
        resume(tmp_path)
    assert len(resume(tmp_path, longer)["resumed"]) == 2


@pytest.mark.parametrize(
    ("argument", "recorded"),
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
def test_the_command_has_no_absolute_path(monkeypatch, argument, recorded):
    monkeypatch.setattr(records.sys.modules["__main__"], "__spec__", None)
    command = records._command(["/usr/lib/x/train.py", argument])
    assert shlex.split(command) == ["python", "train.py", recorded]


@pytest.mark.parametrize(
    ("program", "module", "recorded"),
    [
        ("/venv/bin/vagram", None, "vagram train"),
        ("/x/vagram_jax/__main__.py", "vagram_jax.__main__", "vagram train"),
        ("/x/studies/loop.py", "studies.loop", "python -m studies.loop train"),
        ("/x/studies/__main__.py", "studies.__main__", "python -m studies train"),
    ],
)
def test_the_command_names_vagram_or_the_module(monkeypatch, program, module, recorded):
    spec = module and type("Spec", (), {"name": module})
    monkeypatch.setattr(records.sys.modules["__main__"], "__spec__", spec)
    assert records._command([program, "train"]) == recorded


def test_a_run_records_no_absolute_path(tmp_path, monkeypatch):
    argv = ["/opt/x/train.py", f"--results={tmp_path}/results", f"{tmp_path}/a.py"]
    monkeypatch.setattr(records.sys, "argv", argv)
    folder = results.create_run(tmp_path / "results", "study", "run", {"loss": "mse"})
    text = (folder / "config.json").read_text()
    assert str(tmp_path) not in text
    assert "/opt" not in text


def test_flatten_and_differences_name_the_settings_that_differ():
    one = {"lr": 1.0, "sac": {"discount": 0.9, "sizes": (1, 2)}, "only": 1}
    two = {"lr": 1.0, "sac": {"discount": 0.8, "sizes": [1, 2]}}
    flat = {"lr": 1.0, "sac.discount": 0.8, "sac.sizes": [1, 2]}
    assert records.flatten(two) == flat
    assert records.differences({"one": one, "two": two}) == {
        "sac.discount": {"one": 0.9, "two": 0.8},
        "only": {"one": 1},
    }
