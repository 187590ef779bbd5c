"""Killed at any moment, a run goes on and ends with the bytes it would have had."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_commands as user

from vagram_jax.storage import checkpoint, files

ROOT = Path(__file__).parents[2]
WARM_UP, STEPS, SEEDS = 8, 68, 2
LAST = range(SEEDS)
MODULE = "vagram_jax.cli.train"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a user's task and a config of twenty short epochs."""
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "spring_of_a_user.py").write_text(user.TASK)
    text = user.CONFIG.replace('"total_steps": 14', f'"total_steps": {STEPS}')
    (folder / "tiny.py").write_text(text)
    return folder


def start(place, study, *args, killed_at=()):
    """A training process."""
    program = ["-m", MODULE]
    if killed_at:
        moment, count = killed_at
        program = [str(ROOT / "tests/kill_at.py"), moment, str(count), MODULE]
    command = [sys.executable, *program, f"--config={place / 'tiny.py'}"]
    command += [f"--results={place}", f"--study={study}", *args]
    # All processes run the same programs: they share what the first one compiled.
    settings = {
        "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]),
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        command,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process):
    """Its status, standard output and standard error."""
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def run(place, study, *args, killed_at=()):
    return finish(start(place, study, *args, killed_at=killed_at))


def outcome(folder):
    """Both tables as bytes, and the last states of all seeds."""
    arrays = checkpoint.load(folder, STEPS, LAST)
    tables = {n: (folder / n).read_bytes() for n in ("metrics.csv", "model.csv")}
    return tables, arrays


def assert_same(folder, wanted):
    tables, arrays = outcome(folder)
    assert tables == wanted[0]
    assert arrays.keys() == wanted[1].keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, wanted[1][name], err_msg=name)


@pytest.fixture(scope="module")
def whole(place):
    """What a run that nobody disturbed leaves."""
    status, _, error = run(place, "whole")
    assert status == 0, error
    return outcome(place / "whole" / "vagram")


def test_the_same_command_twice_leaves_the_same_bytes(place, whole):
    assert run(place, "twice")[0] == 0
    assert_same(place / "twice" / "vagram", whole)


# Each moment comes several times in a run; the numbers say at which of them.
MOMENTS = [
    ("metrics", 17),
    ("arrays", 5),
    ("rename", 8),
    ("digests", 9),
    ("before_metrics", 12),
    ("replace", 7),
    ("prune", 6),
    ("metrics", 30),
    ("arrays", 12),
]
# Any moment, as a share of the time that a whole run takes.
SHARES = [round(random.Random(seed).uniform(0.2, 1.0), 2) for seed in range(11)]


def killed(place, whole, moment):
    """Kills a run at a moment, resumes it, and compares."""
    study = f"{moment[0]}-{moment[1]}"
    status, _, error = run(place, study, killed_at=moment)
    assert status == -signal.SIGKILL, error
    folder = place / study / "vagram"
    assert not (folder / "summary.json").exists()
    status, out, error = run(place, study, "--resume")
    assert status == 0, error
    assert_same(folder, whole)
    assert not list(folder.rglob("*.tmp"))
    return out


@pytest.mark.parametrize("moment", MOMENTS[:3], ids=str)
def test_a_killed_run_ends_like_a_whole_one(place, whole, moment):
    out = killed(place, whole, moment)
    assert "vagram: going on from step " in out
    assert "taking it over" in out


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS[3:], ids=str)
def test_a_run_killed_at_many_more_moments_ends_like_a_whole_one(place, whole, moment):
    killed(place, whole, moment)


def wait_for(path, process):
    """Waits until a file is there."""
    until = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_a_run_killed_at_any_moment_ends_like_a_whole_one(place, whole, share):
    began = time.monotonic()
    run(place, f"timed-{share}")
    tenths = 10 * (time.monotonic() - began) * share
    for attempt in range(5):
        study = f"any-{share}-{attempt}"
        status, _, _ = run(place, study, killed_at=("after", int(tenths)))
        if status == -signal.SIGKILL:
            break
        tenths *= 0.8  # it was quicker this time, and had ended
    assert status == -signal.SIGKILL
    assert run(place, study, "--resume")[0] == 0
    assert_same(place / study / "vagram", whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_was(place, whole, number):
    study, folder = f"signal-{number}", place / f"signal-{number}" / "vagram"
    process = start(place, study, "--checkpoint_every=0")
    wait_for(folder / "metrics.csv", process)
    process.send_signal(number)
    status, _, error = finish(process)
    assert status == 128 + number, error
    assert f"stopped by {number.name}; saved at step " in error.splitlines()[-1]
    assert "--resume" in error.splitlines()[-1]
    (step,) = checkpoint.steps(folder)
    table = folder / "model.csv"  # not there before the first epoch
    rows = files.read_rows(table) if table.exists() else [{"env_steps": WARM_UP}]
    assert max(row["env_steps"] for row in rows) == step
    assert run(place, study, "--resume")[0] == 0
    assert_same(folder, whole)


def test_seeds_that_devices_cannot_share_evenly_are_padded_and_nobody_hears(place):
    three = ("--config.num_seeds=3", "--cpu_devices=2")
    status, out, error = run(place, "uneven", *three)
    assert status == 0, error
    assert "compiling and warming up 3 seeds" in out
    assert "0/3" in out
    folder = place / "uneven" / "vagram"
    for table in ("metrics.csv", "model.csv"):
        assert {row["seed"] for row in files.read_rows(folder / table)} == {0, 1, 2}
    (saved,) = (folder / "checkpoints" / f"{STEPS:09d}").iterdir()
    assert saved.name == "seeds-0-2"
    assert all(len(x) == 3 for x in checkpoint.load(folder, STEPS, range(3)).values())
