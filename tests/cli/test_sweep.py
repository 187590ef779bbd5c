"""The command sweep: which runs a grid has, and what is left after a kill."""

import collections
import os
import time

import command_cases
import pytest
import subprocesses
from command_cases import call
from session_cases import Killed, programs_once

from vagram_jax.cli import sweep
from vagram_jax.config import ConfigError
from vagram_jax.run import grid
from vagram_jax.storage import checkpoint, files, results

__all__ = ["call", "programs_once"]


def test_points_are_all_combinations_in_the_order_of_the_grid():
    assert sweep.points("loss=vagram,mle;dynamics.hidden=(16,16),8") == [
        {"loss": "vagram", "dynamics.hidden": "(16,16)"},
        {"loss": "vagram", "dynamics.hidden": "8"},
        {"loss": "mle", "dynamics.hidden": "(16,16)"},
        {"loss": "mle", "dynamics.hidden": "8"},
    ]


@pytest.mark.parametrize(
    "text",
    [None, "loss", "loss=", "=1", "loss=a;loss=b", "a=(1,2", "a=1,2)", "loss=a;"],
)
def test_points_refuses_what_is_no_grid(text):
    with pytest.raises(
        ConfigError, match=r"--grid=.*KEY=VALUE,VALUE;KEY=... is accepted"
    ):
        sweep.points(text)


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"loss": "mle"}, "mle"),
        ({"loss": "vagram", "distractors": "10"}, "vagram_distractors-10"),
        ({"loss": "sac", "dynamics.hidden": "(16,16)"}, "sac_hidden-16.16"),
        (
            {"loss": "mle", "sac.critic_learning_rate": "3e-4"},
            "mle_critic_learning_rate-3e-4",
        ),
    ],
)
def test_run_name_consists_of_the_labels(labels, name):
    assert grid.run_name(labels) == results.check_name(name, what="run")


def test_run_name_shortens_long_names_to_unique_ones():
    labels = [
        {"loss": "mle", **{f"key{i}": "12345" for i in range(9)}, "z": str(j)}
        for j in (1, 2)
    ]
    names = [results.check_name(grid.run_name(each), what="run") for each in labels]
    assert len(set(names)) == 2


def test_cell_is_a_number_if_the_text_is_one():
    texts = ["3", "0.5", "1e-3", "(16,16)", "mle"]
    assert [grid.cell(text) for text in texts] == [3, 0.5, 1e-3, "(16,16)", "mle"]


def test_numbers_share_a_program_and_shards_share_the_grid(call, tmp_path):
    shared = f"--results={tmp_path}", "--study=shared", "--seed_chunk=2"
    text = "loss=vagram;sac.discount=0.9,0.99;fit.learning_rate=1e-3,1e-4"
    for shard in ("0/2", "1/2"):
        status, out, err = call(sweep, *shared, f"--grid={text}", f"--shard={shard}")
        assert status == 0, err
        assert out.count("compiling and warming up 4 seeds") == 1
    assert "4 of 4 runs finished" in out
    rows = files.read_rows(tmp_path / "shared" / "sweep.csv")
    assert len(rows) == 8
    assert {(r["sac.discount"], r["fit.learning_rate"], r["seed"]) for r in rows} == {
        (discount, rate, seed)
        for discount in (0.9, 0.99)
        for rate in (1e-3, 1e-4)
        for seed in (0, 1)
    }
    status, out, _ = call(sweep, *shared, f"--grid={text}")
    assert status == 0
    assert out.count("finished already") == 4
    assert "compiling" not in out
    # A run that has finished with other settings is not skipped.
    change = "--config.batch_size=5"
    status, _, err = call(sweep, *shared, f"--grid={text}", change)
    assert status == 2
    assert "can't be resumed with other settings: batch_size was 4, is 5" in err
    # On a CPU a run doesn't depend on the other runs of the grid.
    alone = "--grid=loss=vagram;sac.discount=0.9;fit.learning_rate=1e-4"
    assert call(sweep, f"--results={tmp_path}", "--study=alone", alone)[0] == 0
    (name,) = {row["run"] for row in files.read_rows(tmp_path / "alone" / "sweep.csv")}
    one, other = (tmp_path / s / name / "metrics.csv" for s in ("shared", "alone"))
    assert one.read_bytes() == other.read_bytes()


def test_a_sweep_that_was_killed_twice_ends_with_each_row_once(
    call, tmp_path, monkeypatch
):
    args = [f"--results={tmp_path}", "--study=killed", "--grid=loss=vagram,sac"]

    def kill_at(count, module, name):
        original, calls = getattr(module, name), []

        def replaced(*args, **kwargs):
            calls.append(name)
            if len(calls) == count:
                raise Killed
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, replaced)
            with pytest.raises(Killed):
                call(sweep, *args)

    kill_at(5, files, "append_rows")  # in the first run
    kill_at(6, files, "append_rows")  # after the first run
    status, out, err = call(sweep, *args)
    assert status == 0, err
    assert "2 of 2 runs finished" in out
    rows = files.read_rows(tmp_path / "killed" / "sweep.csv")
    assert [(row["run"], row["seed"]) for row in rows] == [
        (run, seed) for run in ("vagram", "sac") for seed in (0, 1)
    ]
    for run in results.read_runs(tmp_path / "killed"):
        counts = collections.Counter((r["seed"], r["env_steps"]) for r in run.metrics)
        assert set(counts.values()) == {1}
        assert len(counts) == 6
        assert run.summary is not None
        assert checkpoint.steps(tmp_path / "killed" / run.name)[-1] == 14


def test_a_launcher_submits_shards_that_finish_the_grid(tmp_path):
    submitit = pytest.importorskip("submitit")
    user = command_cases.folder()
    process = subprocesses.start(
        *("-m", "vagram_jax", "sweep", f"--config={user / 'tiny.py'}"),
        *(f"--results={tmp_path}", "--study=launched", "--launcher=local"),
        *("--grid=loss=sac;first_seed=0,2", "--shards=2", "--seed_chunk=2"),
        path=[user],
    )
    status, out, error = subprocesses.finish(process)
    assert status == 0, error
    assert "submitted " in out
    table = tmp_path / "launched" / "sweep.csv"
    until = time.monotonic() + 200
    while not table.exists() or len(files.read_rows(table)) < 4:
        assert time.monotonic() < until, list(tmp_path.glob("logs/**/*.err"))
        time.sleep(0.2)
    for run in results.read_runs(tmp_path / "launched"):
        assert run.record["layout"]["seed_chunk"] == 2
        assert f"{os.sep}logs" not in run.record["command"]
    for path in (tmp_path / "logs").glob("*_submitted.pkl"):
        submission = submitit.core.utils.DelayedSubmission.load(path)
        assert submission._timeout_min >= 100_000  # submitit's own limit is 5


def test_a_job_of_slurm_needs_a_time_limit(call, tmp_path):
    pytest.importorskip("submitit")
    args = [f"--results={tmp_path}", "--grid=loss=sac", "--launcher=slurm"]
    status, out, err = call(sweep, *args)
    assert (status, out) == (2, "")
    assert err == (
        "--launcher=slurm: without a time limit submitit asks for 5 minutes; set "
        "--launcher_options=timeout_min=MINUTES\n"
    )


def test_an_option_that_a_launcher_does_not_have_is_one_line_of_error(call, tmp_path):
    pytest.importorskip("submitit")
    options = ["--launcher=local", "--launcher_options=color=red"]
    status, out, err = call(sweep, f"--results={tmp_path}", "--grid=loss=sac", *options)
    assert (status, out) == (2, "")
    assert err.startswith(f"{' '.join(options)}: Parameter 'color' need to be prefixed")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--grid=loss=nonsense"], "loss='nonsense'; known: "),
        (["--grid=los=mle"], "did you mean loss"),
        (["--grid=loss=mle", "--shard=2/2"], "--shard=2/2; I/N"),
        (["--grid=loss=mle,mle"], "a value occurs twice"),
        (["--grid=sac.discount=0.9,0.90"], "0.9 and vagram_discount-0.90: have the"),
        (["--grid=num_seeds=0"], "num_seeds=0"),
        (["--grid=loss=mle,nonsense", "--shard=0/2"], "loss='nonsense'; known: "),
    ],
)
def test_a_grid_that_cannot_be_trained_is_one_line_of_error(
    call, tmp_path, args, message
):
    status, out, err = call(sweep, f"--results={tmp_path}", *args)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
