"""`vagram status`: the state of runs that are finished, running, stopped or failed."""

import pytest

from vagram_jax.analysis import summary
from vagram_jax.cli import status
from vagram_jax.storage import files, lock, results

CONFIG = {"total_steps": 100, "num_seeds": 2}


@pytest.fixture
def study(tmp_path):
    """The parent of a study with one run in each state."""

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
    reason = {"reason": "the simulator has no license"}
    files.write_json(make("failed", 40) / "failure.json", reason)
    make("stopped", 60)
    make("waiting", 0)
    with lock.hold(make("running", 60)):
        yield tmp_path


@pytest.fixture
def lines(capsys):
    """Runs the command; returns the line of each run."""

    def run(*folders):
        assert status.main([str(folder) for folder in folders]) == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert head.split() == status.HEADER
        return {row.split()[0].removeprefix("study/"): row for row in rows}

    return run


def test_status_prints_the_state_of_each_run(study, lines):
    shown = lines(study / "study")
    assert sorted(shown) == ["failed", "finished", "running", "stopped", "waiting"]
    assert "  finished  " in shown["finished"]
    assert "100 of 100" in shown["finished"]
    assert "failed: the simulator has no license" in shown["failed"]
    assert "2, 1 diverged" in shown["failed"]
    assert "stopped; --resume continues it" in shown["stopped"]
    assert "0 of 100" in shown["waiting"]
    assert sorted(lines(study)) == sorted(shown)
    assert sorted(lines(study / "study" / "stopped")) == ["stopped"]


def test_status_prints_the_owner_of_a_running_run_and_the_time_left(study, lines):
    shown = lines(study)["running"]
    owner = lock.owner(study / "study" / "running")
    assert f"running (pid {owner.pid} on {owner.host}, 0 s ago)" in shown
    # 40 steps took 400 s, and 40 steps are left.
    assert shown.endswith("00:10:00  00:06:40")


def test_status_prints_the_return_of_the_tables(study, lines):
    shown = lines(study)
    assert " -100.5 " in shown["finished"]
    assert " - " in shown["waiting"]
    # The diverged seed counts with the lowest return of the study, -101.
    assert " -70.5" in shown["failed"]
    runs = [run for run in results.read_runs(study / "study") if run.metrics]
    for name, row in summary.summarize(runs).items():
        assert f" {summary.format_number(row['iqm'])} " in shown[name]


def test_status_adds_the_times_of_groups_of_seeds(study, lines):
    run = study / "study" / "running"
    for step in (20, 40):
        clock = {"seed": 1, "env_steps": step, "wall_time_s": step * 5.0}
        files.append_rows(run / "timing.csv", [clock])
    shown = lines(run)["running"]
    assert "40 of 100" in shown
    # 600 s and 200 s; the second group needs 5 s per step for the 60 steps left.
    assert shown.endswith("00:13:20  00:05:00")


def test_status_shows_a_damaged_run_in_one_line_beside_the_others(study, lines):
    record = '{"config": {"num_seeds": "\\u001b[2J\\n"}}'
    (study / "study" / "stopped" / "config.json").write_text(record)
    (study / "study" / "waiting" / "metrics.csv").write_text("a,b\n1\n")
    shown = lines(study)
    assert len(shown) == 5
    assert r"damaged: config.json: num_seeds='\\x1b[2J\\n'" in shown["stopped"]
    assert "metrics.csv:2: damaged: 1 fields" in shown["waiting"]
    assert "100 of 100" in shown["finished"]


def test_status_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(files.ResultsError, match="no run in it"):
        status.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.4, "5 s"), (99.4, "99 s"), (3723.0, "01:02:03"), (183_600.0, "2 d 03:00")],
)
def test_duration_is_short(seconds, text):
    assert status._duration(seconds) == text
