"""A grid of runs: which ones, in which programs, and what is left after a kill."""

import collections
import dataclasses
import subprocess
import sys
import time

import jax
import pytest
import test_commands as user
import test_resume as resume

from vagram_jax.cli import grid, sweep
from vagram_jax.config import ConfigError
from vagram_jax.run import runner, session
from vagram_jax.storage import checkpoint, files, results


def test_points_are_all_combinations_in_the_order_of_the_grid():
    assert sweep.points("loss=vagram,mle;dynamics.hidden=(16,16),8") == [
        {"loss": "vagram", "dynamics.hidden": "(16,16)"},
        {"loss": "vagram", "dynamics.hidden": "8"},
        {"loss": "mle", "dynamics.hidden": "(16,16)"},
        {"loss": "mle", "dynamics.hidden": "8"},
    ]


@pytest.mark.parametrize(
    "grid",
    ["", "loss", "loss=", "=1", "loss=a;loss=b", "a=(1,2", "a=1,2)", "loss=a;"],
)
def test_points_refuse_what_is_no_grid(grid):
    with pytest.raises(ConfigError, match=r"--grid=.*accepted: KEY=VALUE"):
        sweep.points(grid)


@pytest.mark.parametrize(
    ("values", "name"),
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
def test_run_names_say_the_values(values, name):
    assert grid.run_name(values) == results.check_name(name, what="run")


def test_long_run_names_are_cut_and_stay_apart():
    values = [
        {"loss": "mle", **{f"key{i}": "12345" for i in range(9)}, "z": str(j)}
        for j in (1, 2)
    ]
    names = [results.check_name(grid.run_name(v), what="run") for v in values]
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    ("backend", "asked", "num_seeds", "wanted"),
    [
        ("cpu", 0, 4, 4),
        ("cpu", 0, 3, 6),
        ("cpu", 0, 1, 2),
        ("cpu", 5, 4, 5),
        ("gpu", 0, 4, 0),
    ],
)
def test_on_a_cpu_runs_train_one_after_the_other_with_every_device_busy(
    monkeypatch, backend, asked, num_seeds, wanted
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    kept = session.Keeping(seed_chunk=asked)
    run = runner.RunConfig(num_seeds=num_seeds)
    found = grid.chunked(kept, run)
    assert found == dataclasses.replace(kept, seed_chunk=wanted)


def command(place, study, grid, *args, killed_at=()):
    """A sweep in a process of its own; gives status, output and error."""
    resume_module, resume.MODULE = resume.MODULE, "vagram_jax.cli.sweep"
    try:
        return resume.run(place, study, f"--grid={grid}", *args, killed_at=killed_at)
    finally:
        resume.MODULE = resume_module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a user's task and config."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "spring_of_a_user.py").write_text(user.TASK)
    (folder / "tiny.py").write_text(user.CONFIG)
    return folder


def test_traced_numbers_share_a_program_and_shards_share_the_grid(place):
    grid = "loss=vagram;sac.discount=0.9,0.99;fit.learning_rate=1e-3,1e-4"
    for shard in ("0/2", "1/2"):
        status, out, error = command(place, "shared", grid, f"--shard={shard}")
        assert status == 0, error
        assert out.count("compiling and warming up 4 seeds") == 1
    assert "4 of 4 runs finished" in out
    rows = files.read_rows(place / "shared" / "sweep.csv")
    assert len(rows) == 8
    assert {(r["sac.discount"], r["fit.learning_rate"], r["seed"]) for r in rows} == {
        (discount, rate, seed)
        for discount in (0.9, 0.99)
        for rate in (1e-3, 1e-4)
        for seed in (0, 1)
    }
    status, out, _ = command(place, "shared", grid)
    assert status == 0
    assert "compiling" not in out
    # What has finished with other settings is not taken for what is asked.
    status, _, error = command(place, "shared", grid, "--config.batch_size=5")
    assert status == 2
    assert "can't be resumed with other settings: batch_size was 4, is 5" in error
    # Alone in its program a run ends as it does beside others, but for rounding.
    alone = command(
        place, "alone", "loss=vagram;sac.discount=0.9;fit.learning_rate=1e-4"
    )
    assert alone[0] == 0, alone[2]
    (name,) = {r["run"] for r in files.read_rows(place / "alone" / "sweep.csv")}
    first, second = (
        files.read_rows(place / study / name / "metrics.csv")
        for study in ("shared", "alone")
    )
    for one, other in zip(first, second, strict=True):
        assert one["return"] == pytest.approx(other["return"], rel=1e-4)


def killed_twice(place, study, grid, runs, seeds):
    """Kills a sweep twice, lets it end, and checks that every row is there once."""
    for moment in [("arrays", 2), ("metrics", 8)]:
        status, _, error = command(place, study, grid, killed_at=moment)
        assert status == -9, error
    status, out, error = command(place, study, grid)
    assert status == 0, error
    assert f"{runs} of {runs} runs finished" in out
    rows = files.read_rows(place / study / "sweep.csv")
    assert len(rows) == runs * seeds
    assert len({(row["run"], row["seed"]) for row in rows}) == runs * seeds
    for run in results.read_runs(place / study):
        counts = collections.Counter((r["seed"], r["env_steps"]) for r in run.metrics)
        assert set(counts.values()) == {1}
        assert run.summary is not None
        assert checkpoint.steps(place / study / run.name)[-1] == max(
            row["env_steps"] for row in run.metrics
        )


def test_a_sweep_killed_twice_ends_with_each_row_once(place):
    killed_twice(place, "killed", "loss=vagram,sac", runs=2, seeds=2)


@pytest.mark.slow
def test_a_pendulum_sweep_killed_twice_ends_with_24_rows(place):
    text = user.CONFIG.replace("spring_of_a_user:Spring", "pendulum")
    (place / "tiny.py").write_text(text.replace('"num_seeds": 2', '"num_seeds": 4'))
    grid = "loss=vagram,mle,mse_normalized;dynamics.hidden=4,8"
    killed_twice(place, "pendulum", grid, runs=6, seeds=4)


def test_a_launcher_submits_shards_that_finish_the_grid(place):
    pytest.importorskip("submitit")
    grid, table = "loss=vagram,sac", place / "launched" / "sweep.csv"
    status, out, error = command(
        place, "launched", grid, "--launcher=local", "--shards=2", "--seed_mode=serial"
    )
    assert status == 0, error
    assert "submitted " in out
    until = time.monotonic() + 200
    while not table.exists() or len(files.read_rows(table)) < 4:
        assert time.monotonic() < until, list(place.glob("logs/**/*.err"))
        time.sleep(0.2)
    for name in ("vagram", "sac"):
        record = files.read_json(place / "launched" / name / "config.json")
        assert record["layout"]["seed_mode"] == "serial"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--grid=loss=nonsense"], "loss='nonsense'; known: "),
        (["--grid=los=mle"], "did you mean loss"),
        (["--grid=loss=mle", "--shard=2/2"], "--shard=2/2; I/N"),
        (["--grid=loss=mle,mle"], "a value stands there twice"),
        (["--grid=num_seeds=0"], "num_seeds=0"),
    ],
)
def test_a_sweep_that_is_no_sweep_is_one_line(place, args, said):
    status, out, error = resume_usage(place, args)
    assert (status, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def resume_usage(place, args):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vagram_jax.cli.sweep",
            f"--config={place / 'tiny.py'}",
            *args,
        ],
        capture_output=True,
        text=True,
        cwd=resume.ROOT,
        env={**resume.os.environ, "PYTHONPATH": f"{place}:{resume.ROOT}"},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
