"""A job of submitit that is interrupted is queued again and goes on."""

import sys

import pytest
import subprocesses

from vagram_jax.cli import jobs

# Stands for training: counts to 3, one number a line, and goes on where its file ends.
# At 2 it signals its job, as SLURM does before a time limit.
COUNTER = """
import os, pathlib, signal, sys, time
signals, path = [], pathlib.Path(sys.argv[1])
signal.signal(signal.SIGUSR2, lambda number, _: signals.append(number))
lines = path.read_text().splitlines() if path.exists() else []
for number in range(len(lines) + 1, 4):
    with path.open("a") as file:
        print(number, file=file)
    if number == 2:
        os.kill(os.getppid(), signal.SIGUSR2)
        while not signals:
            time.sleep(0.01)
        sys.exit(128 + signal.SIGUSR2)
"""


def test_a_job_that_is_signaled_is_queued_again_and_goes_on(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(subprocesses.ROOT))
    numbers = tmp_path / "numbers"
    executor = submitit.AutoExecutor(tmp_path / "logs", cluster="local")
    job = executor.submit(jobs.Job([sys.executable, "-c", COUNTER, str(numbers)]))
    assert job.result() is None
    assert numbers.read_text().split() == ["1", "2", "3"]
    assert "Requeued job" in job.stderr() + job.stdout()


def test_a_job_whose_command_fails_fails():
    job = jobs.Job([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="the command ended with status 3"):
        job()
