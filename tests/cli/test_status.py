"""What is said of runs that are done, running, stopped or failed."""

import pytest

from vagram_jax.cli import status
from vagram_jax.run import failures
from vagram_jax.storage import files, lock, results

CONFIG = {"total_steps": 100, "num_seeds": 2}


@pytest.fixture
def study(tmp_path):
    """A study with a run in each state; two of its runs are half done."""

    def make(name, last):
        run = results.create_run(tmp_path, "study", name, CONFIG)
        for step in range(20, last + 1, 20):
            clock = {"seed": 0, "env_steps": step, "wall_time_s": step * 10.0}
            files.append_rows(run / "timing.csv", [clock])
            rows = [
                {"env": "e", "loss": name, "seed": seed, "env_steps": step}
                | {"return": -1.0 * step - seed, "diverged_at": None}
                for seed in (0, 1)
            ]
            if name == "failed":
                rows[1] |= {"diverged_at": 20, "return": float("nan")}
            files.append_rows(run / "metrics.csv", rows)
        return run

    files.write_json(make("finished", 100) / "summary.json", {})
    reason = {"reason": "the simulator has no licence"}
    files.write_json(make("failed", 40) / failures.FAILURE, reason)
    make("stopped", 60)
    make("waiting", 0)
    with lock.hold(make("running", 60)):
        yield tmp_path


def lines(capsys, *folders):
    assert status.main([str(folder) for folder in folders]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "step", "seeds", "return", "time", "left"]
    return {row.split()[0].rpartition("/")[2]: row for row in rows}


def test_each_run_has_a_line_with_its_state(study, capsys):
    said = lines(capsys, study / "study")
    assert sorted(said) == ["failed", "finished", "running", "stopped", "waiting"]
    assert "  finished  " in said["finished"]
    assert "100 of 100" in said["finished"]
    assert "failed: the simulator has no licence" in said["failed"]
    assert "2, 1 diverged" in said["failed"]
    assert "stopped; --resume goes on" in said["stopped"]
    assert "0 of 100" in said["waiting"]


def test_a_running_one_tells_its_owner_and_the_time_left(study, capsys):
    said = lines(capsys, study)["running"]
    owner = lock.owner(study / "study" / "running")
    assert f"running (pid {owner.pid} on {owner.host}, 0 s ago)" in said
    # Forty steps took 400 s, and forty are left.
    assert said.split()[-2:] != ["-", "-"]
    assert said.endswith("00:10:00  00:06:40")


def test_the_return_is_of_seeds_that_are_alive(study, capsys):
    said = lines(capsys, study)
    assert " -40 " in said["failed"]
    assert " -101 " in said["finished"] or " -100 " in said["finished"]


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(files.ResultsError, match="no run in it"):
        status.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.4, "5 s"), (99.4, "99 s"), (3723.0, "01:02:03"), (183_600.0, "2 d 03:00")],
)
def test_durations_are_short(seconds, text):
    assert status._duration(seconds) == text
