"""The commands from end to end, on a task that a user brings in a file of their own."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments import compare, flags, launch, train
from vagram_jax import files, runner

TASK = '''
"""A mass on a spring, outside the package."""

import jax
import jax.numpy as jnp

from vagram_jax import envs


class Spring:
    observation_size, action_size, episode_length = 2, 1, 3

    def reset(self, key):
        return self._state(jax.random.uniform(key, (2,)), jnp.zeros(()))

    def step(self, state, action):
        position, speed = state.obs
        speed = speed - 0.1 * position + 0.1 * action[0]
        obs = jnp.stack([position + 0.1 * speed, speed])
        return self._state(obs, -jnp.sum(jnp.square(obs)))

    def termination(self, obs, action, next_obs):
        return ~jnp.all(jnp.isfinite(next_obs))

    def _state(self, obs, reward):
        done = jnp.zeros(())
        return envs.State(
            pipeline_state=(), obs=obs, reward=reward, done=done, metrics={}, info={}
        )
'''
# Networks without hidden layers compile in half the time.
CONFIG = """
def get_config():
    return {
        "env": "spring_of_a_user:Spring",
        "num_seeds": 2,
        "total_steps": 14,
        "warmup_steps": 8,
        "steps_per_epoch": 3,
        "eval_episodes": 1,
        "replay_capacity": 20,
        "batch_size": 4,
        "updates_per_step": 1,
        "real_fraction": 0.5,
        "model": {"hidden": (), "num_members": 1, "num_elites": 1},
        "fit": {"batch_size": 4, "max_epochs": 1},
        "imagine": {"rollouts_per_step": 1},
        "sac": {"hidden": ()},
    }
"""
RUN_FILES = {"config.json", "metrics.csv", "model.csv", "summary.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the user's task and config, on Python's path."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "spring_of_a_user.py").write_text(TASK)
    (folder / "tiny.py").write_text(CONFIG)
    compiled, programs = {}, runner.programs

    def programs_once(env, **settings):
        # Every command makes the environment anew, but it is always the same one.
        if type(env) not in compiled:
            compiled[type(env)] = programs(env, **settings)
        return compiled[type(env)]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(runner, "programs", programs_once)
        yield folder


@pytest.fixture(scope="module")
def call(place):
    """Runs a command in this process; gives status, standard output and error."""

    def run(command, *args):
        out, err = io.StringIO(), io.StringIO()
        argv = ["command", f"--config={place / 'tiny.py'}", *args]
        with (
            flagsaver.flagsaver(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as caught,
        ):
            flags.run(command.main, *launch.CONFIGS, argv=argv)
        return caught.value.code, out.getvalue(), err.getvalue()

    return run


@pytest.fixture(scope="module")
def compared(place, call):
    """The folder of a comparison, and what the command said."""
    said = call(compare, "--losses=vagram,sac", f"--results={place / 'compared'}")
    return place / "compared" / "Spring", said


def contents(folder):
    """Every file with its bytes and its time."""
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_time(path):
    """The bytes of a table but those of the column that no run repeats."""
    lines = path.read_text().splitlines()
    header = lines[0].split(",")
    if "wall_time_s" not in header:
        return lines
    drop = header.index("wall_time_s")
    return [
        ",".join(field for i, field in enumerate(line.split(",")) if i != drop)
        for line in lines
    ]


def test_compare_ends_well(compared):
    _, (status, _, err) = compared
    assert (status, err) == (0, "")


def test_compare_leaves_the_files_of_a_study(compared):
    folder, _ = compared
    found = set(contents(folder))
    runs = {f"vagram/{name}" for name in RUN_FILES}
    # Plain SAC fits no model.
    runs |= {f"sac/{name}" for name in RUN_FILES - {"model.csv"}}
    assert runs | {"report.html", "summary.json", "learning_curves.png"} <= found
    others = found - runs - {"report.html", "summary.json"}
    assert all(name.endswith(".png") for name in others)


def test_compare_prints_each_step_and_a_table(compared):
    folder, (_, out, _) = compared
    lines = out.splitlines()
    for name in ("vagram", "sac"):
        assert f"{name}: compiling and warming up 2 seeds" in lines
        steps = [line for line in lines if line.startswith(f"{name}: step ")]
        starts = [line.split(",")[0] for line in steps]
        assert starts == [f"{name}: step {n} of 14" for n in (8, 11, 14)]
    table = lines[lines.index("") + 1 :]
    assert [line.split()[0] for line in table[:3]] == ["loss", "vagram", "sac"]
    assert lines[-1] == f"report: {folder / 'report.html'}"


def test_compare_records_the_config_of_each_run(compared):
    folder, _ = compared
    vagram, sac = (
        files.read_json(folder / name / "config.json")["config"]
        for name in ("vagram", "sac")
    )
    assert (vagram["env"], vagram["num_seeds"]) == ("spring_of_a_user:Spring", 2)
    assert (vagram["loss"], vagram["real_fraction"]) == ("vagram", [0.5])
    assert vagram["model"]["head"] == "deterministic"
    assert (sac["loss"], sac["real_fraction"]) == ("none", [1.0])
    # The losses differ in nothing else.
    different = {key for key in vagram if vagram[key] != sac[key]}
    assert different == {"loss", "real_fraction", "model"}
    assert vagram["model"] | {"head": "auto"} == sac["model"]


def test_compare_writes_a_summary_when_a_run_has_finished(compared):
    folder, _ = compared
    for name in ("vagram", "sac"):
        summary = files.read_json(folder / name / "summary.json")
        rows = files.read_rows(folder / name / "metrics.csv")
        last = [row["return"] for row in rows if row["env_steps"] == 14]
        assert (summary["seeds"], summary["diverged"]) == (2, 0)
        assert summary["diverged_at"] == {}
        # Of two numbers the interquartile mean is the mean.
        assert summary["iqm"] == pytest.approx(sum(last) / 2)


def test_compare_starts_all_losses_from_the_same_seeds(compared):
    folder, _ = compared
    first = [
        [row["return"] for row in files.read_rows(path) if row["env_steps"] == 8]
        for path in (folder / "vagram/metrics.csv", folder / "sac/metrics.csv")
    ]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    "command", [(compare, "--losses=mse,sac"), (train, "--config.loss=vagram")]
)
def test_a_command_refuses_a_folder_that_holds_a_run(call, compared, command):
    folder, _ = compared
    before = contents(folder)
    status, out, err = call(*command, f"--results={folder.parent}")
    assert (status, out) == (5, "")
    assert "holds a finished run" in err
    assert err.count("\n") == 1
    assert contents(folder) == before
    # Not even the one that would have been free.
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "vagram",
        "sac",
    }


def test_train_replaces_a_run_under_overwrite(call, place, compared):
    folder, _ = compared
    args = [f"--results={place / 'again'}", "--study=mine", "--config.loss=vagram"]
    assert call(train, *args)[0] == 0
    run = place / "again" / "mine" / "vagram"
    before = contents(run)
    status, out, err = call(train, *args, "--overwrite", "--config.total_steps=11")
    assert (status, err) == (0, "")
    assert "step 11 of 11" in out
    assert set(contents(run)) == set(before)
    assert all(contents(run)[name] != before[name] for name in before)
    # And the two that train the same have the same numbers as far as they go.
    wanted = without_time(folder / "vagram" / "metrics.csv")
    assert without_time(run / "metrics.csv") == wanted[:5]


@pytest.mark.parametrize("loss", ["none", "sac"])
def test_train_calls_plain_sac_by_its_name(call, place, compared, loss):
    folder, _ = compared
    status, _, _ = call(
        train, f"--results={place / loss}", f"--config.loss={loss}", "--study=mine"
    )
    assert status == 0
    found = without_time(place / loss / "mine" / "sac" / "metrics.csv")
    assert found == without_time(folder / "sac" / "metrics.csv")


def test_train_as_a_program_repeats_every_number(place, compared):
    folder, _ = compared
    root = Path(launch.__file__).parents[1]
    command = "-m experiments.train --config=tiny.py --results=other --study=again"
    done = subprocess.run(
        [sys.executable, *command.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("metrics.csv", "model.csv"):
        found = without_time(place / "other" / "again" / "vagram" / name)
        assert found == without_time(folder / "vagram" / name)
    record = files.read_json(place / "other" / "again" / "vagram" / "config.json")
    assert record["command"] == f"python {command}"
