"""The commands from end to end, on a task that a user brings in a file of their own."""

import contextlib
import io
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl.testing import flagsaver

from vagram_jax.cli import compare, flags, launch, train
from vagram_jax.run import devices, programs, session
from vagram_jax.storage import checkpoint, files, lock, results

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
        "dynamics": {"hidden": (), "num_members": 1, "num_elites": 1},
        "fit": {"batch_size": 4, "max_epochs": 1},
        "imagine": {"rollouts_per_step": 1},
        "sac": {"hidden": ()},
    }
"""
RUN_FILES = {"config.json", "metrics.csv", "model.csv", "summary.json", "timing.csv"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the user's task and config, on Python's path."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "spring_of_a_user.py").write_text(TASK)
    (folder / "tiny.py").write_text(CONFIG)
    compiled, make = {}, programs.make

    def make_once(env, **settings):
        # Every command makes the environment anew, but it is always the same one.
        key = (type(env), *sorted(settings.items()))
        if key not in compiled:
            compiled[key] = make(env, **settings)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(programs, "make", make_once)
        # Seeds on other devices come out the same up to rounding only.
        patch.setenv("JAX_NUM_CPU_DEVICES", str(jax.local_device_count()))
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


def assert_same_tables(folder, wanted, names=("metrics.csv", "model.csv")):
    """All but the clock is the same, byte for byte."""
    for name in names:
        assert (folder / name).read_bytes() == (wanted / name).read_bytes()


def test_compare_ends_well(compared):
    _, (status, _, err) = compared
    assert (status, err) == (0, "")


def test_compare_leaves_the_files_of_a_study(compared):
    folder, _ = compared
    found = {name for name in contents(folder) if "/checkpoints/" not in name}
    runs = {f"vagram/{name}" for name in RUN_FILES}
    # Plain SAC fits no model.
    runs |= {f"sac/{name}" for name in RUN_FILES - {"model.csv"}}
    assert runs | {"report.html", "summary.json", "learning_curves.png"} <= found
    others = found - runs - {"report.html", "summary.json"}
    assert all(name.endswith(".png") for name in others)
    # The last two of the three steps after which the runs were saved.
    assert [checkpoint.steps(folder / n) for n in ("vagram", "sac")] == [[11, 14]] * 2


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
    for name in ("vagram", "sac"):
        record = files.read_json(folder / name / "config.json")
        assert record["device"] == devices.describe()
        assert record["layout"] == {"seed_mode": "vmap", "seed_chunk": 0}
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
        times = files.read_rows(folder / name / "timing.csv")
        assert summary["seconds"] == times[-1]["wall_time_s"] > 0
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
    assert all(f"--{way}" in err for way in ("resume", "overwrite", "study=NAME"))
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
    after = contents(run)
    assert {name for name in after if "/" not in name} == RUN_FILES
    assert all(after[name] != before[name] for name in RUN_FILES)
    assert checkpoint.steps(run) == [8, 11]
    # And the two that train the same have the same numbers as far as they go.
    for name, rows in (("metrics.csv", 4), ("model.csv", 2)):
        wanted = (folder / "vagram" / name).read_bytes().splitlines(keepends=True)
        assert (run / name).read_bytes() == b"".join(wanted[: 1 + rows])


@pytest.mark.parametrize("loss", ["none", "sac"])
def test_train_calls_plain_sac_by_its_name(call, place, compared, loss):
    folder, _ = compared
    status, _, _ = call(
        train, f"--results={place / loss}", f"--config.loss={loss}", "--study=mine"
    )
    assert status == 0
    assert_same_tables(place / loss / "mine" / "sac", folder / "sac", ["metrics.csv"])


def test_a_finished_study_is_left_as_it_is_under_resume(call, compared):
    folder, (_, first, _) = compared
    args = ["--losses=vagram,sac", f"--results={folder.parent}", "--resume"]
    runs = [folder / "vagram", folder / "sac"]
    before = [contents(run) for run in runs]
    status, out, err = call(compare, *args)
    assert (status, err) == (0, "")
    assert [contents(run) for run in runs] == before
    said, shown = out.split("\n\n")
    assert said.splitlines() == ["vagram: finished already", "sac: finished already"]
    # And the table is there as it was.
    assert shown == first.split("\n\n")[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["sac.discount=0.5"], "sac.discount was 0.99, is 0.5; only"),
        (["num_seeds=3"], "num_seeds was 2, is 3; only total_steps may grow"),
        (["total_steps=11"], "total_steps was 14, is 11; only total_steps may grow"),
        (
            ["total_steps=17", "batch_size=5", "fit.batch_size=5"],
            "settings: fit.batch_size was 4, is 5; batch_size was 4, is 5; only",
        ),
    ],
)
def test_resume_with_other_settings_is_refused_and_names_them(
    call, compared, changes, said
):
    folder, _ = compared
    before = contents(folder)
    overrides = [f"--config.{change}" for change in changes]
    status, out, err = call(train, f"--results={folder.parent}", "--resume", *overrides)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert contents(folder) == before


def test_a_run_that_is_made_longer_ends_like_one_that_was_long_at_once(
    call, place, compared
):
    folder, _ = compared
    args = [f"--results={place / 'longer'}", "--study=mine", "--resume"]
    # There is nothing to go on with yet, which is no mistake.
    assert call(train, *args, "--config.total_steps=11")[0] == 0
    run = place / "longer" / "mine" / "vagram"
    half = files.read_rows(run / "timing.csv")
    status, out, err = call(train, *args)
    assert (status, err) == (0, "")
    assert "vagram: going on from step 11" in out
    assert_same_tables(run, folder / "vagram")
    arrays, wanted = (
        checkpoint.load(where, 14, range(2)) for where in (run, folder / "vagram")
    )
    assert arrays.keys() == wanted.keys()
    assert all((arrays[name] == wanted[name]).all() for name in arrays)
    record = files.read_json(run / "config.json")
    assert record["config"]["total_steps"] == 14
    assert [set(note["changed"]) - {"revision"} for note in record["resumed"]] == [
        set()
    ]
    # The clock goes on where it stood.
    times = files.read_rows(run / "timing.csv")
    assert [row["env_steps"] for row in times] == [8, 11, 14]
    assert times[:2] == half
    assert times[2]["wall_time_s"] > times[1]["wall_time_s"]


@pytest.mark.parametrize("change", ["--overwrite", "--resume"])
def test_a_run_that_another_process_owns_is_left_as_it_is(
    call, place, compared, tmp_path, change
):
    shutil.copytree(compared[0] / "vagram", tmp_path / "mine" / "vagram")
    run = tmp_path / "mine" / "vagram"
    args = [f"--results={tmp_path}", "--study=mine", "--config.total_steps=17"]
    with lock.hold(run):
        before = contents(run)
        status, _, err = call(train, *args, change)
        assert status == 5
        assert "lock.json: held by pid" in err
        assert contents(run) == before


def test_status_4_says_that_all_seeds_diverged(call, place):
    args = [f"--results={place / 'diverged'}", "--config.divergence_slack=1e-9"]
    status, out, err = call(train, *args)
    assert (status, err) == (flags.STATUS_DIVERGED, "") == (4, "")
    assert "vagram: step 11 of 14, 2 diverged" in out
    assert "Diverged seeds of vagram: 2 of 2." in out
    summary = files.read_json(place / "diverged" / "Spring" / "vagram" / "summary.json")
    assert (summary["seeds"], summary["diverged"]) == (2, 2)
    assert summary["diverged_at"] == {"seed 0": 11, "seed 1": 11}
    # Asked again, it says the same and trains nothing.
    status, out, _ = call(train, *args, "--resume")
    assert (status, out.splitlines()[0]) == (4, "vagram: finished already")


def test_status_4_does_not_depend_on_when_a_run_is_evaluated(call, place):
    status, _, _ = call(
        train,
        f"--results={place / 'unseen'}",
        "--config.divergence_slack=1e-9",
        "--config.eval_every=2",
    )
    assert status == 4


@pytest.mark.parametrize(
    ("diverged", "status"),
    [(["a", "b"], 4), (["a"], 0), (["b"], 0), ([], 0)],
)
def test_show_says_whether_any_seed_of_any_run_is_alive(tmp_path, diverged, status):
    for name in ("a", "b"):
        folder = results.create_run(tmp_path, "study", name, {})
        at = {0: 20, 1: 30 if name in diverged else None}
        rows = [
            {"env": "toy", "loss": "mse", "seed": seed, "env_steps": step}
            | {"return": math.nan if at[seed] and step >= at[seed] else 1.0}
            | {"diverged_at": at[seed] if at[seed] and step >= at[seed] else None}
            for step in (10, 30)
            for seed in (0, 1)
        ]
        files.append_rows(folder / "metrics.csv", rows)
    assert launch.show(tmp_path / "study", ["a", "b"]) == status


def test_status_6_says_that_memory_is_short_and_what_would_fit(
    call, place, monkeypatch
):
    monkeypatch.setattr(devices, "memory_limit", lambda: 1.0)
    status, out, err = call(train, f"--results={place / 'short'}")
    assert status == flags.STATUS_MEMORY == 6
    assert out == "vagram: compiling and warming up 2 seeds\n"
    assert err.startswith("2 seeds need 0.00 GB on each of ")
    assert err.endswith("0 seeds fit; make buffers or networks smaller\n")
    run = place / "short" / "Spring" / "vagram"
    assert not (run / "metrics.csv").exists()
    assert files.read_json(run / "failure.json")["reason"] == err.removesuffix("\n")


def test_a_run_that_failed_goes_on_under_resume(call, place, compared, monkeypatch):
    args = [f"--results={place / 'failed'}", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(devices, "memory_limit", lambda: 1.0)
        assert call(train, *args)[0] == 6
    assert call(train, *args)[0] == 0
    run = place / "failed" / "Spring" / "vagram"
    assert_same_tables(run, compared[0] / "vagram")
    assert {name for name in contents(run) if "/" not in name} == RUN_FILES


def test_keeping_is_what_the_flags_say(place):
    def keeping(*args):
        with flagsaver.flagsaver():
            argv = ["train", f"--config={place / 'tiny.py'}", *args]
            flags.parse(argv, *launch.CONFIGS)
            return launch.keeping(2)

    assert keeping() == session.Keeping()
    found = keeping(
        *("--resume", "--strict", "--break_lock", "--checkpoint_every=7"),
        *("--seed_mode=serial", "--seed_chunk=3"),
    )
    assert found == session.Keeping(
        layout=devices.Layout("serial"),
        seed_chunk=3,
        checkpoint_every=7,
        resume=True,
        strict=True,
        break_lock=True,
    )


def test_train_as_a_program_repeats_every_number(place, compared):
    folder, _ = compared
    root = Path(launch.__file__).parents[2]
    command = "-m vagram_jax.cli.train --config=tiny.py --results=other --study=again"
    done = subprocess.run(
        [sys.executable, *command.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_tables(place / "other" / "again" / "vagram", folder / "vagram")
    record = files.read_json(place / "other" / "again" / "vagram" / "config.json")
    assert record["command"] == f"python {command}"
