"""A command that is killed at any moment and resumed ends with the same bytes."""

import random
import signal
import time

import command_cases
import log_cases
import numpy as np
import pytest
import subprocesses
from command_cases import call
from session_cases import programs_once

from vagram_jax.cli import train
from vagram_jax.storage import checkpoint, files, results

__all__ = ["call", "programs_once"]

STEPS, SEEDS = 38, 2
LOG = f"--log={','.join(results.LOGS)}"


def start(root, study, *args, killed_at=()):
    """Starts a process; `killed_at` is a moment of `kill_at` and its number."""
    user = command_cases.folder()
    program = ["-m", "vagram_jax"]
    if killed_at:
        program = [subprocesses.ROOT / "tests/kill_at.py", *killed_at, "vagram_jax"]
    return subprocesses.start(
        *(*program, "train"),
        *(f"--config={user / 'tiny.py'}", f"--config.total_steps={STEPS}"),
        *(f"--results={root}", f"--study={study}", *args),
        path=[user],
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # as `programs_once` in this process
        WANDB_MODE="offline",
    )


def run(root, study, *args, killed_at=()):
    """Status, standard output and standard error of a process."""
    return subprocesses.finish(start(root, study, *args, killed_at=killed_at))


def outcome(folder):
    """Both tables as bytes, and the last states of all seeds."""
    arrays = checkpoint.load(folder, STEPS, range(SEEDS))
    tables = {n: (folder / n).read_bytes() for n in ("metrics.csv", "model.csv")}
    return tables, arrays


def assert_same(folder, expected):
    tables, arrays = outcome(folder)
    assert tables == expected[0]
    assert arrays.keys() == expected[1].keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[1][name], err_msg=name)
    assert not list(folder.rglob("*.tmp"))


@pytest.fixture(scope="module")
def finish(call, root):
    """Runs the command in this process, to the end."""

    def run(study, *args):
        options = [f"--results={root}", f"--study={study}", *args]
        status, _, error = call(train, f"--config.total_steps={STEPS}", *options)
        assert (status, error) == (0, "")

    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The results folder."""
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture(scope="module")
def whole(root, finish):
    """The outcome of a run that was not interrupted."""
    finish("whole")
    return outcome(root / "whole" / "vagram")


def test_the_same_command_twice_leaves_the_same_bytes(root, whole):
    assert run(root, "twice")[0] == 0
    assert_same(root / "twice" / "vagram", whole)
    command = files.read_json(root / "twice" / "vagram" / "config.json")["command"]
    assert command.startswith("vagram train --config=tiny.py ")


def kill(root, study, moment, *args):
    """Runs the command until it kills itself."""
    status, out, error = run(root, study, *args, killed_at=moment)
    assert status == -signal.SIGKILL, error
    assert not (root / study / "vagram" / "summary.json").exists()
    return out


def test_a_killed_run_ends_like_a_whole_one(root, whole, finish, monkeypatch):
    # In a row of a table, after a row was logged, and before one was logged.
    kill(root, "killed", ("metrics", 17))
    for moment in (("arrays", 3), ("before_log", 2)):
        out = kill(root, "killed", moment, "--resume", LOG)
        assert "vagram: resuming from step " in out
        assert "taking it over" in out
    monkeypatch.setenv("WANDB_MODE", "offline")
    finish("killed", "--resume", LOG)
    assert_same(root / "killed" / "vagram", whole)
    for name in results.LOGS:
        log_cases.assert_follows(root / "killed" / "vagram", name, range(SEEDS))


# Each moment occurs several times in a run; the number is the one of its death.
MOMENTS = [
    ("digests", 9),
    ("before_metrics", 12),
    ("rename", 7),
    ("prune", 6),
]
MOMENTS += [("metrics", 30), ("arrays", 9), ("rename", 23)]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_run_killed_at_many_more_moments_ends_like_a_whole_one(
    root, whole, finish, moment
):
    study = f"{moment[0]}-{moment[1]}"
    kill(root, study, moment)
    finish(study, "--resume")
    assert_same(root / study / "vagram", whole)


# Any moment, as a fraction of the time of a whole run.
FRACTIONS = [round(random.Random(seed).uniform(0.2, 1.0), 2) for seed in range(11)]


@pytest.mark.slow
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_run_killed_at_any_time_ends_like_a_whole_one(root, whole, finish, fraction):
    began = time.monotonic()
    run(root, f"timed-{fraction}")
    tenths = 10 * (time.monotonic() - began) * fraction
    for attempt in range(5):
        study = f"any-{fraction}-{attempt}"
        status, _, _ = run(root, study, killed_at=("after", int(tenths)))
        if status == -signal.SIGKILL:
            break
        tenths *= 0.8  # this run was faster and had ended
    assert status == -signal.SIGKILL
    finish(study, "--resume")
    assert_same(root / study / "vagram", whole)


def test_a_signal_saves_and_the_run_resumes_to_the_same_bytes(root, whole, finish):
    folder, args = root / "signal" / "vagram", []
    for number in (signal.SIGTERM, signal.SIGUSR2):  # SIGUSR2 is submitit's
        moment = (number.name, 3)
        status, _, error = run(
            root, "signal", "--checkpoint_every=0", *args, killed_at=moment
        )
        assert status == 128 + number, error
        line = error.splitlines()[-1]
        assert f"stopped by {number.name}; saved at step " in line
        assert "--resume" in line
        rows = files.read_rows(folder / "metrics.csv")
        assert max(row["env_steps"] for row in rows) == checkpoint.steps(folder)[-1]
        assert not (folder / "failure.json").exists()
        args = ["--resume"]
    finish("signal", "--resume")
    assert_same(folder, whole)
