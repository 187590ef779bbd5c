"""Rows of the tables and the progress line, from made-up numbers."""

import numpy as np
import pytest
from rows_cases import ITERATIONS

from vagram_jax.run import rows
from vagram_jax.storage import files

CONSTANT = {"env": "walk", "loss": "vagram"}
SEEDS = (7, 8)


def table(path, lines):
    """The lines of a table with these rows."""
    files.append_rows(path, lines)
    return path.read_text().splitlines()


def test_metric_rows_has_a_column_for_each_metric_that_is_not_of_the_model(tmp_path):
    entries = [row for p in ITERATIONS for row in rows.metric_rows(p, SEEDS, CONSTANT)]
    assert table(tmp_path / "metrics.csv", entries) == [
        "env,loss,seed,env_steps,return,length,diverged_at,"
        "diverged_by,dropped,pair_0,pair_1,sac/actor_loss,sac/q_mean",
        "walk,vagram,7,8,-8.0,3.5,,,0,,,,",
        "walk,vagram,8,8,-6.0,3.5,,,0,,,,",
        f"walk,vagram,7,11,{float(np.float32(-4.4))},3.5,,,0,8.0,9.0,1.0,1.5",
        f"walk,vagram,8,11,{float(np.float32(-3.6))},3.5,,,0,10.0,11.0,101.0,101.5",
        "walk,vagram,7,17,-2.0,3.5,,,1,10.0,11.0,3.0,3.5",
        "walk,vagram,8,17,nan,3.5,14,critic,3,12.0,13.0,103.0,103.5",
        "walk,vagram,7,20,nan,3.5,20,critic,1,11.0,12.0,4.0,4.5",
        "walk,vagram,8,20,nan,3.5,14,critic,3,13.0,14.0,104.0,104.5",
    ]


def test_model_rows_has_a_column_for_each_entry_of_the_model_metrics(tmp_path):
    entries = [row for p in ITERATIONS for row in rows.model_rows(p, SEEDS, CONSTANT)]
    lines = table(tmp_path / "model.csv", entries)
    assert lines[:5] == [
        "env,loss,seed,env_steps,valid,epochs,train_loss_0,train_loss_1,train_loss_2",
        "walk,vagram,7,11,0.5,1,2.0,3.0,4.0",
        "walk,vagram,8,11,0.25,2,5.0,6.0,7.0",
        "walk,vagram,7,14,0.5,2,3.0,4.0,5.0",
        "walk,vagram,8,14,0.25,3,6.0,7.0,8.0",
    ]
    assert len(lines) == 9


def test_only_the_row_of_timing_depends_on_the_clock():
    late = ITERATIONS[1]._replace(seconds=1000.0)
    for rows_of in (rows.metric_rows, rows.model_rows):
        assert rows_of(late, SEEDS, CONSTANT) == rows_of(ITERATIONS[1], SEEDS, CONSTANT)
    row = rows.timing_row(late._replace(seconds=1000.12345), range(8, 9))
    clock = {"seed": 8, "env_steps": 11, "wall_time_s": 1000.123}
    assert row == clock | {"memory_mb": 250, "device_memory_mb": None}


def test_progress_line_gives_steps_returns_and_time():
    evaluated = [each for each in ITERATIONS if each.returns.size]
    lines = [rows.progress_line("run", p, last=20) for p in evaluated]
    assert lines == [
        "run: step 8 of 20, return -7 (-8 to -6), 4 s",
        "run: step 11 of 20, return -4 (-4 to -4), 10 s",
        "run: step 17 of 20, return -2 (-2 to -2), 1 diverged (critic), 15 s, 5 s left",
        "run: step 20 of 20, 2 diverged (critic), 16 s, 0 s left",
    ]


def test_progress_line_counts_the_steps_of_the_runs_that_follow():
    # 1.6 s per step: 3 steps of this run, and 20 later.
    line = rows.progress_line("run", ITERATIONS[-2], last=20, later_steps=20.0)
    assert line.endswith(", 5 s left, 37 s with the runs that follow")


@pytest.mark.parametrize("progress", ITERATIONS)
def test_of_lanes_has_the_rows_of_its_lanes(progress):
    for rows_of in (rows.metric_rows, rows.model_rows):
        parts = [rows.of_lanes(progress, slice(i, i + 1)) for i in range(2)]
        alone = [
            row
            for part, seed in zip(parts, SEEDS, strict=True)
            for row in rows_of(part, [seed], CONSTANT)
        ]
        np.testing.assert_equal(alone, rows_of(progress, SEEDS, CONSTANT))
