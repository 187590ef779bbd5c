"""The studies: which trainings they have, and what they say of the returns."""

import collections
import json
import time

import numpy as np
import pytest
import test_commands as user
from absl.testing import flagsaver

from experiments import study
from experiments.studies import (
    STUDIES,
    Plan,
    capacity,
    distraction,
    loop,
    tasks,
    verdicts,
)
from vagram_jax.analysis import summary
from vagram_jax.cli import flags, grid, launch
from vagram_jax.storage import files

LOOPS = sorted(set(STUDIES) - {"loss_surface", "changing_values"})
HIGH, LOW = np.array([9.0, 10.0, 11.0, 12.0]), np.array([1.0, 2.0, 3.0, 4.0])


def module(name):
    return __import__(f"experiments.studies.{name}", fromlist=["run"])


def make_plan(place, preset="quick", seeds=0, first_seed=0):
    with flagsaver.flagsaver():
        flags.parse(["study"])
        return Plan(preset, place, launch.keeping(2), seeds, first_seed, 0.0)


def result(values, returns):
    finals = summary.Finals(np.arange(len(returns)), np.asarray(returns, float), {})
    kept = ("iqm", "low", "high", "seeds", "diverged", "env_steps", "seconds")
    return loop.Result(values, finals, dict.fromkeys(kept, 0))


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize("name", LOOPS)
def test_every_cell_of_a_study_is_accepted_before_anything_is_trained(name, preset):
    maker = grid.Maker()
    with flagsaver.flagsaver():
        flags.parse(["study"])
        plan = make_plan(("", ""), preset)
        cells = module(name).cells(preset)
        entries = [loop.entry_of(maker, cell, plan) for cell in cells]
    assert len({entry.name for entry in entries}) == len(entries)
    least = 4 if preset == "quick" else 8
    assert all(entry.run.num_seeds >= least for entry in entries)
    # What rivals of one task differ in is what their study varies, never the budget.
    budgets = collections.defaultdict(set)
    for entry in entries:
        algorithm = entry.algorithm
        told = (entry.run, algorithm.updates_per_step, algorithm.batch_size)
        budgets[entry.values["task"]].add(str((told, algorithm.sac.hidden)))
    assert {len(kinds) for kinds in budgets.values()} == {1}


def test_product_merges_settings_and_the_later_column_counts():
    cells = loop.product(
        {
            "task": {"a": {"config": "a.py", "x": "1"}},
            "loss": {"mle": {"loss": "mle"}, "big": {"loss": "mse", "x": "2"}},
        }
    )
    assert [cell.values for cell in cells] == [
        {"task": "a", "loss": "mle"},
        {"task": "a", "loss": "big"},
    ]
    assert cells[1].settings == {"config": "a.py", "x": "2", "loss": "mse"}


def test_a_rival_that_no_column_changes_stands_at_each_of_its_values():
    found = [
        result({"task": "t", "hidden": width, "loss": "vagram"}, HIGH)
        for width in ("8", "64")
    ]
    found += [result({"task": "t", "hidden": loop.ANY, "loss": "sac"}, LOW)]
    found += [result({"task": "u", "hidden": "8", "loss": "vagram"}, LOW)]
    groups = loop.grouped(loop.Study(axis="hidden"), found)
    assert {group: sorted(rivals) for group, rivals in groups.items()} == {
        (("task", "t"), ("hidden", "8")): ["sac", "vagram"],
        (("task", "t"), ("hidden", "64")): ["sac", "vagram"],
        (("task", "u"), ("hidden", "8")): ["vagram"],
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        (HIGH, LOW, "above"),
        (LOW, HIGH, "below"),
        (HIGH, HIGH + 1, "not told apart from"),
    ],
)
def test_a_method_is_held_against_the_strongest_baseline(ours, theirs, outcome):
    finals = {"ours": ours, "weak": LOW - 100, "strong": theirs, "other": HIGH + 99}
    found = verdicts.against_strongest(
        finals, method="ours", baselines=("weak", "strong", "absent"), where="here"
    )
    assert (found.baseline, found.outcome) == ("strong", outcome)
    wins = np.mean([(a > b) + (a == b) / 2 for a in ours for b in theirs])
    assert found.probability.value == pytest.approx(wins)
    assert (
        f"here: ours, {verdicts.span(found.result)}, is {outcome} the strongest "
        in (verdicts.sentence(found))
    )
    said = verdicts.overall([found, found])
    assert f"In 2 settings ours is {2 * (outcome == 'above')} times above" in said


def test_a_method_without_a_baseline_is_not_judged():
    with pytest.raises(ValueError, match="none of"):
        verdicts.against_strongest(
            {"ours": HIGH}, method="ours", baselines=("mle",), where=""
        )


@pytest.mark.parametrize("task", tasks.SMALL)
def test_sac_is_trained_once_for_all_widths_and_anew_for_each_distraction(task):
    at_widths = [c for c in capacity.cells("full", task) if c.values["loss"] == "sac"]
    assert len(at_widths) == 1
    counts = [c for c in distraction.cells("full", task) if c.values["loss"] == "sac"]
    assert len(counts) == 6


@pytest.fixture
def small_study(tmp_path, monkeypatch):
    """Two losses on a user's task, and the plan to run them in a folder."""
    (tmp_path / "spring_of_a_user.py").write_text(user.TASK)
    (tmp_path / "tiny.py").write_text(user.CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    widths = {str(w): {"dynamics.hidden": str(w)} for w in (1, 2)}
    task = {"task": {"spring": {"config": str(tmp_path / "tiny.py")}}}
    cells = loop.product(
        task | {"hidden": widths, "loss": loop.losses("vagram", "mse")}
    )
    none = {"hidden": {loop.ANY: {}}, "loss": loop.losses("sac")}
    cells += loop.product(task | none)
    return cells, (str(tmp_path), "studied")


def test_a_study_trains_its_cells_and_leaves_tables_pictures_and_a_verdict(
    small_study, capsys
):
    cells, place = small_study
    what = loop.Study(axis="hidden")
    with flagsaver.flagsaver():
        plan = make_plan(place, seeds=3, first_seed=5)
        assert loop.run(what, cells, plan) == 0
        assert capsys.readouterr().out.count("compiling") == 5
        assert loop.run(what, cells, plan) == 0  # what has finished isn't trained again
        assert "compiling" not in capsys.readouterr().out
    folder = files.Path(*place)
    finals = files.read_rows(folder / "finals.csv")
    assert {row["seed"] for row in finals} == {5, 6, 7}
    assert len(finals) == 5 * 3
    table = files.read_rows(folder / "table.csv")
    assert len(table) == 2 * 3  # plain SAC stands at both widths
    assert all((row["p_vagram"] is None) == (row["loss"] == "vagram") for row in table)
    for picture in ("spring.png", "profiles.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "study.json").read_text())
    assert len(record["verdict"]) == 3
    assert record["verdict"][0].startswith("task spring, hidden 1: vagram, ")
    assert record["versions"]["jax"]
    assert {"command", "device", "seconds", "revision"} <= set(record)
    # `make_plan` says that it began with the epoch of Unix.
    assert record["started"] == "1970-01-01T00:00:00+00:00"
    assert record["seconds"] == pytest.approx(time.time(), abs=600)


def test_without_an_axis_a_study_draws_a_line_for_each_rival(tmp_path):
    found = [
        result({"task": "t", "variant": name}, returns)
        for name, returns in {"vagram": HIGH, "mse": LOW}.items()
    ]
    sentences = loop.conclude(loop.Study(contrast="variant"), found, tmp_path)
    assert sentences[-1].startswith("In 1 setting vagram is 1 times above")
    assert (tmp_path / "t.png").exists()
    (row,) = [
        row
        for row in files.read_rows(tmp_path / "table.csv")
        if row["variant"] == "mse"
    ]
    assert row["p_vagram"] == 1
    assert row["p_vagram_mixed"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "study (none): one is accepted of loss_surface"),
        (["capacit"], "did you mean capacity?"),
        (["capacity", "ablation"], "one is accepted of"),
        (["capacity", "--study_seeds=-1"], "--study_seeds=-1; at least 0"),
        (["capacity", "--study_seeds=2"], "--study_seeds=2; at least 3"),
        (["capacity", "--preset=fast"], "preset"),
    ],
)
def test_a_study_that_is_none_is_refused_in_one_line(args, message, capsys):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
        flags.run(study.main, takes_names=True, argv=["study", *args])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_study_has_a_file_and_a_line():
    for name, about in STUDIES.items():
        assert callable(module(name).run)
        assert about
        assert f"  {name}" in study.__doc__
