"""The studies: their runs, and training a small one."""

import collections
import json
from pathlib import Path

import pytest

from experiments import studies
from experiments.studies import capacity, distraction, loop, tasks
from vagram_jax.analysis.study import Design, Study
from vagram_jax.run import session
from vagram_jax.storage import files

TRAINED = sorted(set(studies.descriptions()) - {"loss_surface", "changing_values"})
# Networks without hidden layers compile in half the time.
CONFIG = """
def get_config():
    return {
        "env": "pendulum",
        "episode_length": 3,
        "num_seeds": 2,
        "total_steps": 11,
        "warmup_steps": 8,
        "steps_per_epoch": 3,
        "eval_episodes": 1,
        "replay_capacity": 20,
        "batch_size": 4,
        "updates_per_step": 1,
        "real_fraction": 0.5,
        "dynamics": {"hidden": (), "num_members": 1, "num_elites": 1},
        "fit": {"batch_size": 4, "max_epochs": 1},
        "imagine": {"rollouts_per_step": 1},
        "sac": {"hidden": ()},
    }
"""


@pytest.mark.parametrize("preset", ["quick", "long", "full"])
@pytest.mark.parametrize("name", TRAINED)
def test_all_runs_of_a_study_are_accepted_before_any_is_trained(name, preset):
    if preset not in getattr(studies.load(name), "PRESETS", ("quick", "full")):
        return
    labeled = studies.load(name).labeled(preset)
    specs, _ = session.check_runs(loop.make_specs(labeled, None, None))
    assert len({spec.name for spec in specs}) == len(labeled)
    least = 8 if preset == "full" else 4
    assert all(spec.run_config.num_seeds >= least for spec in specs)
    # Runs of one task have the same budget and the same agent.
    budgets = collections.defaultdict(set)
    for spec in specs:
        algorithm = spec.algorithm
        budget = (spec.run_config, algorithm.updates_per_step, algorithm.batch_size)
        budgets[spec.labels["task"]].add(str((budget, algorithm.sac.hidden)))
    assert {len(kinds) for kinds in budgets.values()} == {1}


def test_every_file_of_the_folder_is_a_study_with_a_description():
    folder = Path(studies.__file__).parent
    files_there = {path.stem for path in folder.glob("*.py")}
    descriptions = studies.descriptions()
    assert set(descriptions) == files_there - {"__init__", "loop", "tasks"}
    for name, description in descriptions.items():
        assert callable(studies.load(name).run)
        assert 20 < len(description) < 80, name


def test_product_merges_settings_and_the_later_column_counts():
    labeled = loop.product(
        {
            "task": {"a": {"config": "a", "x": "1"}},
            "loss": {"mle": {"loss": "mle"}, "big": {"loss": "mse", "x": "2"}},
        }
    )
    assert labeled == [
        ({"task": "a", "loss": "mle"}, {"config": "a", "x": "1", "loss": "mle"}),
        ({"task": "a", "loss": "big"}, {"config": "a", "x": "2", "loss": "mse"}),
    ]


@pytest.mark.parametrize("task", tasks.SMALL)
def test_sac_is_trained_once_for_all_widths_and_once_per_number_of_distractors(task):
    def count(labeled):
        return sum(labels["loss"] == "sac" for labels, _ in labeled)

    assert count(capacity.labeled("full", task)) == 1
    assert count(distraction.labeled("full", task)) == 6


def test_a_study_trains_its_runs_and_writes_its_folder(tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(CONFIG)
    # Plain SAC with two discounts is one program, and compiles fastest.
    task = {"task": {"pendulum": {"config": str(tmp_path / "tiny.py"), "loss": "sac"}}}
    low = {"hidden": {"0": {}}, "discount": {"low": {"sac.discount": "0.9"}}}
    labeled = [
        *loop.product(task | low),
        *loop.product(task | {"discount": {"default": {}}}),
    ]
    design = Design(
        contrast="discount", methods=("low",), baselines=("default",), axis="hidden"
    )
    folder = tmp_path / "studied"
    folder.mkdir()
    run = loop.command(design, lambda preset: labeled, against=loop.PUBLISHED)
    seeds = {"num_seeds": 3, "first_seed": 5}
    options = session.SessionOptions()
    assert run("quick", folder, options=options, **seeds) == 0
    assert "compiling" in capsys.readouterr().out
    finals = files.read_rows(folder / "finals.csv")
    assert [(row["discount"], row["hidden"], row["seed"]) for row in finals] == [
        (discount, hidden, seed)
        for discount, hidden in (("low", 0), ("default", None))
        for seed in (5, 6, 7)
    ]
    assert Study.load(folder).design == design
    assert (folder / "pendulum.png").exists()
    assert (folder / "curves.png").exists()
    curves = files.read_rows(folder / "curves.csv")
    assert [row["return"] for row in curves if row["env_steps"] == 11] == [
        row["final_return"] for row in finals
    ]
    assert not (folder / "errors.csv").exists()  # plain SAC has no model
    record = json.loads((folder / "study.json").read_text())
    assert record["verdict"][0].startswith("task pendulum, hidden 0: low (")
    assert record["config"] == {"preset": "quick", "losses": ["none"]}
    assert {"command", "device", "seconds", "started", "revision"} <= set(record)

    assert run("quick", folder, options=options, **seeds) == 0
    assert "compiling" not in capsys.readouterr().out
