"""Loading a study, comparing its results, and writing its files."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from vagram_jax.analysis.study import Design, Result, Study
from vagram_jax.analysis.verdicts import BETTER, UNDECIDED, WORSE
from vagram_jax.storage import files
from vagram_jax.storage.files import ResultsError

HIGH, LOW = np.array([9.0, 10.0, 11.0, 12.0]), np.array([1.0, 2.0, 3.0, 4.0])
DESIGN = Design(axis="hidden", methods=("ours",), baselines=("weak", "strong", "sac"))


def write_run(folder, name, returns, labels=None, diverged=()):
    """A finished run of one evaluation per seed."""
    (folder / name).mkdir(parents=True)
    record = {"config": {}} | ({"labels": labels} if labels else {})
    files.write_json(folder / name / "config.json", record)
    rows = [
        {"env": "spring", "loss": name, "seed": seed, "env_steps": 100}
        | {"return": float(value), "diverged_at": 60 if seed in diverged else None}
        for seed, value in enumerate(returns, 5)
    ]
    files.write_rows(folder / name / "metrics.csv", rows)
    files.write_json(folder / name / "summary.json", {})


@pytest.fixture
def folder(tmp_path):
    """Two widths of two losses and plain SAC, which has no width."""
    folder = tmp_path / "capacity"
    for width, ours in (("8", LOW), ("64", HIGH)):
        for loss, returns in (("ours", ours), ("weak", LOW - 20), ("strong", HIGH + 1)):
            labels = {"task": "spring", "hidden": width, "loss": loss}
            write_run(folder, f"{loss}-{width}", returns, labels)
    labels = {"task": "spring", "loss": "sac"}
    write_run(folder, "sac", LOW, labels, diverged=(6,))
    record = {"design": dataclasses.asdict(DESIGN), "command": "vagram study capacity"}
    files.write_json(folder / "study.json", record)
    return folder


def result(values, **labels):
    values = np.asarray(values, dtype=float)
    return Result(labels, np.arange(len(values)), values, np.zeros(len(values), bool))


def study_of(results, **design):
    return Study(
        None, Design(methods=("ours",), baselines=("a", "b"), **design), results
    )


def test_a_run_without_a_label_belongs_to_all_values_of_that_label(folder):
    study = Study.load(folder)
    assert {setting: list(names) for setting, names in study.settings.items()} == {
        (("task", "spring"), ("hidden", 8)): ["ours", "weak", "strong", "sac"],
        (("task", "spring"), ("hidden", 64)): ["ours", "weak", "strong", "sac"],
    }
    assert study.at(hidden=8)["sac"] is study.at(hidden=64)["sac"]


def test_a_diverged_seed_has_the_lowest_return_of_the_study(folder):
    sac = Study.load(folder).at(hidden=8)["sac"]
    np.testing.assert_array_equal(sac.seeds, [5, 6, 7, 8])
    np.testing.assert_array_equal(sac.diverged, [False, True, False, False])
    np.testing.assert_array_equal(sac.values, [1.0, LOW.min() - 20, 3.0, 4.0])


def test_a_study_loads_the_same_without_its_runs(folder):
    study = Study.load(folder)
    assert len(study.runs) == 7
    verdict = study.write(more=["One more sentence."])
    written = {path.name for path in folder.iterdir() if path.is_file()}
    figures = {"spring.png", "profiles.png"}
    assert written == {"finals.csv", "table.csv", "study.json", *figures}
    for name in figures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for run in study.runs:
        shutil.rmtree(folder / run.name)
    alone = Study.load(folder)
    assert alone.runs == []
    assert alone.design == DESIGN
    assert alone.finals() == study.finals() == files.read_rows(folder / "finals.csv")
    assert alone.table() == study.table() == files.read_rows(folder / "table.csv")
    assert alone.verdict() == verdict[:-1]
    record = json.loads((folder / "study.json").read_text())
    assert record["verdict"] == verdict
    assert record["command"] == "vagram study capacity"


def test_a_folder_without_a_design_has_the_default_and_labels_runs_by_name(tmp_path):
    write_run(tmp_path, "vagram", HIGH)
    write_run(tmp_path, "mle", LOW)
    study = Study.load(tmp_path)
    assert study.design == Design()
    assert list(study.at()) == ["vagram", "mle"]
    assert study.compare("vagram").outcome == BETTER


@pytest.mark.parametrize(
    ("theirs", "outcome"), [(LOW, BETTER), (HIGH + 9, WORSE), (HIGH + 1, UNDECIDED)]
)
def test_compare_takes_the_strongest_baseline(theirs, outcome):
    study = study_of(
        [
            result(HIGH, loss="ours"),
            result(LOW - 9, loss="a"),
            result(theirs, loss="b"),
            result(HIGH + 99, loss="not a baseline"),
        ]
    )
    actual = study.compare("ours")
    assert (actual.baseline, actual.outcome) == ("b", outcome)
    wins = np.mean([(x > y) + (x == y) / 2 for x in HIGH for y in theirs])
    assert actual.probability.value == pytest.approx(wins)
    assert study.compare("ours", ("a",)).baseline == "a"


def test_lower_errors_are_better():
    results = [
        result(LOW, loss="ours"),
        result(HIGH, loss="a"),
        result(LOW + 5, loss="b"),
    ]
    study = study_of(results, higher_is_better=False, metric="error")
    actual = study.compare("ours")
    assert (actual.baseline, actual.outcome) == ("b", BETTER)
    assert actual.probability.value == 1.0
    assert study.finals()[0] == {"loss": "ours", "seed": 0, "error": 1.0, "diverged": 0}


def test_too_few_seeds_have_no_interval_and_never_differ():
    study = study_of([result([9.0, 9.0], loss="ours"), result([1.0, 1.0], loss="a")])
    actual = study.compare("ours")
    assert actual.outcome == UNDECIDED
    assert actual.method_interval.value == 9.0
    assert study.table()[0]["low"] is study.table()[1]["p_ours"] is None


def test_the_table_has_a_row_per_setting_and_value_of_the_contrast(folder):
    rows = Study.load(folder).table()
    assert [(row["hidden"], row["loss"]) for row in rows[:4]] == [
        (8, name) for name in ("ours", "weak", "strong", "sac")
    ]
    assert len(rows) == 8
    row = rows[1]
    assert row | {"low": None, "high": None} == {
        "task": "spring", "hidden": 8, "loss": "weak", "iqm": -17.5, "low": None,
        "high": None, "seeds": 4, "diverged": 0, "p_ours": 1.0, "p_ours_low": 1.0,
        "p_ours_high": 1.0,
    }  # fmt: skip
    assert row["low"] < row["iqm"] < row["high"]


def test_without_an_axis_each_setting_has_a_figure_of_intervals(tmp_path):
    results = [
        result(values, task=task, loss=loss)
        for task in ("spring", "walk")
        for loss, values in (("ours", HIGH), ("a", LOW))
    ]
    study = dataclasses.replace(study_of(results), folder=tmp_path)
    sentences = study.write()
    assert sentences[-1].startswith("ours beats the strongest baseline in 2 of 2")
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "spring.png", "walk.png", "profiles.png",
    }  # fmt: skip


def test_labels_select_exactly_one_setting(folder):
    study = Study.load(folder)
    with pytest.raises(ValueError, match=r"labels=\{\} select 2 settings"):
        study.at()
    with pytest.raises(ValueError, match="select 0 settings"):
        study.compare("ours", hidden=9)
    with pytest.raises(ValueError, match="two of ours, sac, strong, weak are accepted"):
        study.compare("absent", hidden=8)


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(ResultsError, match=r"no run in it, and no finals\.csv"):
        Study.load(tmp_path)
    files.write_rows(tmp_path / "finals.csv", [{"loss": "mle", "seed": 1}])
    with pytest.raises(ResultsError, match="lacks diverged, final_return"):
        Study.load(tmp_path)
    files.write_json(tmp_path / "study.json", {"design": {"axes": "hidden"}})
    with pytest.raises(ResultsError, match=r"study\.json: design=.*axis, metric"):
        Study.load(tmp_path)
