"""The search: its space, its trials and what is left of them after a kill."""

import types

import numpy as np
import pytest

from vagram_jax.config import ConfigError
from vagram_jax.run import search
from vagram_jax.storage import files, results

optuna = pytest.importorskip("optuna")

TOTAL = 30
AXES = search.parse_space(
    "x=0.0:1.0;rate=1e-4:1e-2:log;size=4:64;loss=a,b", "size".__eq__
)


def test_a_space_has_ranges_and_choices():
    x, rate, size, loss = AXES
    assert x == search.Axis(key="x", low=0.0, high=1.0)
    assert rate == search.Axis(key="rate", low=1e-4, high=1e-2, is_log=True)
    assert size == search.Axis(key="size", low=4, high=64, is_whole=True)
    assert loss == search.Axis(key="loss", choices=("a", "b"))
    ends = [("0", "1"), ("0.0001", "0.01"), ("4", "64"), ("a", "b")]
    assert [axis.ends() for axis in AXES] == ends
    (tuples,) = search.parse_space("hidden=(16,16),8", bool)
    assert tuples.choices == ("(16,16)", "8")


@pytest.mark.parametrize(
    "text",
    [
        *(None, "x", "x=", "x=1", "x=1:", "x=2:1", "x=0:1:log", "x=1:2:lin", "x=a,a"),
        *("x=1:2;x=1:2", "=1:2", "x=1:2;", "x=0:inf", "size=1.5:4"),
    ],
)
def test_a_space_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match=r"--space=.*: '.*'; KEY=LOW:HIGH, KEY=LOW:"):
        search.parse_space(text, "size".__eq__)


def open_study(storage, **settings):
    return search.open_study("s", storage, {"seeds": 2} | settings, total_steps=TOTAL)


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def batch_of(study, num_trials=5, at_once=2):
    return search.next_batch(study, AXES, num_trials=num_trials, at_once=at_once)


def finish(folder, name, final):
    """Writes what a finished run leaves, as far as the search reads it."""
    (folder / name).mkdir(parents=True)
    files.write_json(folder / name / "config.json", {"config": {}})
    row = {"env": "e", "loss": "l", "env_steps": TOTAL, "diverged_at": None}
    rows = [row | {"seed": seed, "return": final + seed} for seed in (0, 1)]
    files.write_rows(folder / name / "metrics.csv", rows)
    files.write_json(folder / name / "summary.json", {})


def search_all(study, folder, killed_at=None):
    """Trains each trial by writing its result; returns the points by name."""
    points = {}
    while batch := batch_of(study):
        for name, trial in batch.items():
            if name == killed_at:
                return points
            points[name] = dict(trial.point)
            if not results.is_finished(folder / name):
                finish(folder, name, float(trial.point["x"]))
        assert search.record(study, batch, folder) == len(batch)
    return points


def test_a_search_that_was_killed_goes_on_with_the_same_trials(tmp_path, storage):
    expected = search_all(open_study(None), tmp_path / "whole")
    assert list(expected) == [f"trial-00{i}" for i in range(5)]
    assert len({point["x"] for point in expected.values()}) == 5
    folder = tmp_path / "killed"
    # In its second batch, one trial of two has been trained and none has been told.
    search_all(open_study(storage), folder, killed_at="trial-003")
    study = open_study(storage)
    assert list(batch_of(study)) == ["trial-002", "trial-003"]
    assert search_all(study, folder).items() <= expected.items()
    states = [trial.state.name for trial in open_study(storage).trials]
    assert states == ["COMPLETE"] * 5
    rows = search.table(study, AXES, folder)
    assert [row["trial"] for row in rows] == sorted(
        expected, key=lambda name: -float(expected[name]["x"])
    )
    assert rows[0]["return"] == float(rows[0]["x"]) + 0.5
    assert expected[rows[0]["trial"]].items() <= rows[0].items()
    assert batch_of(study) == {}
    assert list(batch_of(study, num_trials=6)) == ["trial-005"]


def test_a_trial_without_a_result_has_failed_and_is_not_tried_again(tmp_path):
    study = open_study(None)
    batch = batch_of(study)
    finish(tmp_path, "trial-000", 1.0)
    assert search.record(study, batch, tmp_path) == 1
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]
    assert [row["state"] for row in search.table(study, AXES, tmp_path)] == [
        "complete",
        "fail",
    ]
    assert list(batch_of(study)) == ["trial-002", "trial-003"]


def test_a_study_goes_on_with_the_same_settings_only(storage):
    open_study(storage)
    open_study(storage)
    with pytest.raises(ConfigError, match=r"tune: seeds=3; the study s began with 2;"):
        open_study(storage, seeds=3)
    with pytest.raises(ConfigError, match=r"--storage=no: .*; a URL of Optuna's"):
        open_study("no")


def lanes(names, step, returns):
    """A chunk of runs with two lanes each, and its progress."""
    runs = [
        types.SimpleNamespace(
            spec=types.SimpleNamespace(name=name), lanes=slice(2 * i, 2 * i + 2)
        )
        for i, name in enumerate(names)
    ]
    config = types.SimpleNamespace(total_steps=TOTAL)
    progress = types.SimpleNamespace(
        env_steps=step, returns=np.repeat(np.array(returns, float), 2)
    )
    return types.SimpleNamespace(runs=runs, run_config=config), progress


def test_a_program_ends_when_the_pruner_rejects_all_of_its_trials(tmp_path):
    study = open_study(None)
    first = batch_of(study, num_trials=20, at_once=6)
    prune = search.Pruning(study, first)
    for step in (5, 20, 25, TOTAL):
        assert not prune(*lanes(first, step, [10] * 6))
    for name in first:
        finish(tmp_path, name, 10.0)
    assert search.record(study, first, tmp_path) == 6
    second = batch_of(study, num_trials=20, at_once=3)
    one, two, three = second
    prune = search.Pruning(study, second)
    assert not prune(*lanes([one, two], 5, [1, 1]))  # too early
    assert not prune(*lanes([one, two], 20, []))  # no evaluation
    assert not prune(*lanes([one, two], 20, [1, 11]))  # the second is good
    assert not prune(*lanes([three], TOTAL, [1]))  # it has ended anyway
    assert prune(*lanes([one], 25, [np.nan]))
    states = [trial.state.name for trial in study.trials[6:]]
    assert states == ["PRUNED", "RUNNING", "RUNNING"]
    finish(tmp_path, two, 11.0)
    assert search.record(study, second, tmp_path) == 2
    assert [trial.state.name for trial in study.trials[6:]] == [
        "PRUNED",
        "COMPLETE",
        "FAIL",
    ]
