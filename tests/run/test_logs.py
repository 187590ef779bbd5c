"""Logs for TensorBoard and Weights & Biases: they have the rows of the tables."""

import json

import log_cases
import pytest

from vagram_jax.config import ConfigError
from vagram_jax.run import logs
from vagram_jax.storage import files, results

SEEDS = range(2)
CONFIG = {"env": "toy", "loss": "vagram", "sac": {"discount": 0.9}}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def run(tmp_path):
    """The folder of a run without rows."""
    labels = {"loss": "vagram"}
    return results.create_run(tmp_path, "study", "run", CONFIG, labels=labels)


def rows_of(step):
    """Rows of one epoch; nothing is known of the model at the first step."""
    metrics = [
        {"env": "toy", "loss": "vagram", "seed": seed, "env_steps": step}
        | {"return": float("nan") if step == 30 else step / 7 + seed}
        | {"diverged_at": None, "diverged_by": "model" if step == 30 else None}
        | {"sac/q": 0.1}
        for seed in SEEDS
    ]
    model = [
        {"env": "toy", "loss": "vagram", "seed": seed, "env_steps": step}
        | {"error_dim_0": 0.25, "error_dim_1": 1e-9 * step}
        for seed in SEEDS
        if step > 10
    ]
    return {"metrics.csv": metrics, "model.csv": model}


def append(run, step):
    """Appends the rows of an epoch to the tables and returns them."""
    new = rows_of(step)
    for table, rows in new.items():
        files.append_rows(run / table, rows)
    return new


def start(run, name):
    return logs.Logs([name], {run: SEEDS}, report=pytest.fail)


def kill(run, name):
    """Leaves of the logs what a killed process leaves: for wandb, less than a block."""
    for path in (run / name).rglob("*.wandb"):
        path.write_bytes(path.read_bytes()[:7])
    for path in (run / name).rglob("events*"):
        path.write_bytes(path.read_bytes()[:-5])
    for seed in SEEDS:
        logs._marker(name, run, seed).unlink()


@pytest.mark.parametrize("name", results.LOGS)
def test_a_log_has_each_row_once_although_the_process_was_killed_twice(run, name):
    with start(run, name) as log:
        for step in (10, 20, 30):
            log.append(run, append(run, step))
        log.append(run, rows_of(40))  # later than the tables after the resume
    kill(run, name)
    with start(run, name) as log:
        log.append(run, append(run, 40))
        append(run, 50)  # killed before it was logged
    kill(run, name)
    with start(run, name) as log:
        log.append(run, append(run, 60))
    log_cases.assert_follows(run, name, SEEDS)
    assert [step for step, _ in log_cases.expected(run, 1)] == [*range(10, 70, 10)]
    before = {path: path.stat().st_mtime_ns for path in (run / name).rglob("*")}
    logs.complete([name], run, SEEDS, report=pytest.fail)
    assert before == {p: p.stat().st_mtime_ns for p in (run / name).rglob("*")}


def test_a_log_that_is_missing_is_written_from_the_tables(run):
    for step in (10, 20):
        append(run, step)
    logs.complete(["tensorboard"], run, SEEDS, report=pytest.fail)
    log_cases.assert_follows(run, "tensorboard", SEEDS)
    append(run, 30)
    logs.complete(["tensorboard"], run, SEEDS, report=pytest.fail)
    log_cases.assert_follows(run, "tensorboard", SEEDS)


def test_wandb_gets_study_loss_and_config(run):
    append(run, 10)
    logs.complete(["wandb"], run, [1], report=pytest.fail)
    (path,) = (run / "wandb").rglob("*.wandb")
    (record,) = (r.run for r in log_cases.wandb_records(path) if r.HasField("run"))
    assert (record.run_group, record.job_type) == ("study", "vagram")
    assert record.display_name == "run-seed1"
    assert record.project == "vagram_jax"
    assert [*record.tags] == ["toy", "vagram"]
    values = {i.key: json.loads(i.value_json) for i in record.config.update}
    assert {**CONFIG, "seed": 1}.items() <= values.items()


def test_tensorboard_gets_the_config(run):
    append(run, 10)
    logs.complete(["tensorboard"], run, [0], report=pytest.fail)
    (path,) = (run / "tensorboard" / "seed0").iterdir()
    version, text, *_ = log_cases.events(path)
    assert version.file_version == "brain.Event:2"
    (value,) = text.summary.value
    assert '"discount": 0.9' in value.tensor.string_val[0].decode()


def test_a_tensorboard_that_is_open_can_read_on_after_a_resume(run):
    """It keeps the file open and knows its position, at which an event must begin."""
    with start(run, "tensorboard") as log:
        log.append(run, append(run, 10))
        log.append(run, append(run, 20))
    (path,) = (run / "tensorboard" / "seed0").iterdir()
    with path.open("rb") as file:
        file.seek(0, 2)
        for table in ("metrics.csv", "model.csv"):
            files.keep_rows(run / table, env_steps=10, seeds=SEEDS, others=())
        with start(run, "tensorboard") as log:
            assert not file.read()
            log.append(run, append(run, 20))
            assert not file.read()
            log.append(run, append(run, 30))
        (path.parent / "rest").write_bytes(file.read())
    (event,) = log_cases.events(path.parent / "rest")
    assert event.step == 30


def test_a_logger_that_cannot_write_is_left_out_with_one_line(run, tmp_path):
    (tmp_path / "victim").mkdir()
    (run / "tensorboard").symlink_to(tmp_path / "victim")
    lines = []
    with logs.Logs(["tensorboard"], {run: SEEDS}, report=lines.append) as log:
        log.append(run, append(run, 10))
    assert len(lines) == 1
    assert "tensorboard is a link, which isn't followed; training goes on" in lines[0]
    assert "--resume --log=tensorboard writes the whole log" in lines[0]
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.parametrize("names", [("tensorbord",), ("wandb", "wandb"), ("",)])
def test_check_refuses_unknown_loggers_and_one_that_is_named_twice(names):
    with pytest.raises(ConfigError, match=r"each of tensorboard, wandb is accepted"):
        logs.check(names)


@pytest.mark.parametrize("name", results.LOGS)
def test_check_names_the_extra_of_a_missing_package(name, monkeypatch):
    def refuse(package):
        raise ModuleNotFoundError(f"No module named {package!r}")

    logs.check([name])
    monkeypatch.setattr(logs.importlib, "import_module", refuse)
    with pytest.raises(ConfigError, match=rf'pip install "vagram_jax\[{name}\]"'):
        logs.check([name])
