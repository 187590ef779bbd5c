"""Rows of the tables and the line for a person, from numbers made by hand."""

import numpy as np
import pytest

from vagram_jax.run import progress
from vagram_jax.run.progress import Progress
from vagram_jax.storage import files

CONSTANT = {"env": "walk", "loss": "vagram"}
SEEDS = (7, 8)


def turn(env_steps, returns, diverged_at, metrics=None, *, seconds=4.0, dropped=(0, 0)):
    returns = np.float32(returns)
    return Progress(
        env_steps=env_steps,
        returns=returns,
        lengths=np.full(returns.shape, 3.5),
        metrics=metrics or {},
        diverged_at=np.int32(diverged_at),
        dropped=np.int32(dropped),
        seconds=seconds,
    )


def numbers(epoch):
    """Metrics of two seeds, each number another."""
    names = ["actor_loss", "critic_loss", "entropy", "q_max", "q_mean", "temperature"]
    agent = {
        f"sac/{name}": np.float32([epoch + i / 8, 100 + epoch + i / 8])
        for i, name in enumerate(names)
    }
    return agent | {
        "model/epochs": np.int32([epoch, epoch + 1]),
        "model/train_loss": np.float32([[1, 2, 3], [4, 5, 6]]) + epoch,
        "imagine/valid": np.float32([0.5, 0.25]),
        "termination/loss": np.float32([1.5, 0.75]),
    }


STORY = [
    turn(10, [-8.0, -6.0], [-1, -1], seconds=4.0),
    turn(15, [-4.4, -3.6], [-1, -1], numbers(1), seconds=9.96),
    turn(20, [], [-1, 20], numbers(2), seconds=12.0, dropped=(0, 3)),
    turn(25, [-2.0, np.nan], [-1, 20], numbers(3), seconds=15.0, dropped=(1, 3)),
    turn(30, [np.nan, np.nan], [30, 20], numbers(4), seconds=16.0, dropped=(1, 3)),
]
"""A run of two seeds that both diverge, one after the other."""

EVALUATED = [found for found in STORY if found.returns.size]


def table(path, rows):
    """The lines of a table with these rows."""
    files.append_rows(path, rows)
    return path.read_text().splitlines()


def test_metric_rows_are_written_line_by_line(tmp_path):
    rows = [r for p in EVALUATED for r in progress.metric_rows(p, SEEDS, CONSTANT)]
    found = table(tmp_path / "metrics.csv", rows)
    assert found[0] == (
        "env,loss,seed,env_steps,return,length,diverged_at,dropped,"
        "sac/actor_loss,sac/critic_loss,sac/entropy,sac/q_max,sac/q_mean,"
        "sac/temperature"
    )
    agent = "{0}.0,{0}.125,{0}.25,{0}.375,{0}.5,{0}.625"
    assert found[1:] == [
        "walk,vagram,7,10,-8.0,3.5,,0,,,,,,",
        "walk,vagram,8,10,-6.0,3.5,,0,,,,,,",
        f"walk,vagram,7,15,{float(np.float32(-4.4))},3.5,,0,{agent.format(1)}",
        f"walk,vagram,8,15,{float(np.float32(-3.6))},3.5,,0,{agent.format(101)}",
        f"walk,vagram,7,25,-2.0,3.5,,1,{agent.format(3)}",
        f"walk,vagram,8,25,nan,3.5,20,3,{agent.format(103)}",
        f"walk,vagram,7,30,nan,3.5,30,1,{agent.format(4)}",
        f"walk,vagram,8,30,nan,3.5,20,3,{agent.format(104)}",
    ]


def test_model_rows_give_each_entry_of_a_vector_a_numbered_column(tmp_path):
    rows = [r for p in STORY[1:] for r in progress.model_rows(p, SEEDS, CONSTANT)]
    found = table(tmp_path / "model.csv", rows)
    assert found[:5] == [
        "env,loss,seed,env_steps,epochs,train_loss_0,train_loss_1,train_loss_2,valid,"
        "termination_loss",
        "walk,vagram,7,15,1,2.0,3.0,4.0,0.5,1.5",
        "walk,vagram,8,15,2,5.0,6.0,7.0,0.25,0.75",
        "walk,vagram,7,20,2,3.0,4.0,5.0,0.5,1.5",
        "walk,vagram,8,20,3,6.0,7.0,8.0,0.25,0.75",
    ]
    assert len(found) == 9


def test_the_clock_stands_in_the_row_of_timing_alone():
    late = STORY[1]._replace(seconds=1000.0)
    for rows_of in (progress.metric_rows, progress.model_rows):
        assert rows_of(late, SEEDS, CONSTANT) == rows_of(STORY[1], SEEDS, CONSTANT)
    assert progress.timing_row(late, SEEDS)["wall_time_s"] == 1000.0


def test_timing_row_is_the_first_seeds_in_milliseconds(tmp_path):
    rows = [progress.timing_row(p, SEEDS) for p in STORY[:2]]
    rows.append(progress.timing_row(STORY[2]._replace(seconds=12.34567), range(8, 9)))
    found = table(tmp_path / "timing.csv", rows)
    assert found == [
        "seed,env_steps,wall_time_s",
        *("7,10,4.0", "7,15,9.96", "8,20,12.346"),
    ]


def test_line_tells_where_a_run_stands():
    lines = [progress.line("run", p, first=10, last=30) for p in EVALUATED]
    assert lines == [
        "run: step 10 of 30, return -7 (-8 to -6), 4 s",
        "run: step 15 of 30, return -4 (-4 to -4), 10 s, 30 s left",
        "run: step 25 of 30, return -2 (-2 to -2), 1 diverged, 15 s, 5 s left",
        "run: step 30 of 30, 2 diverged, 16 s, 0 s left",
    ]


@pytest.mark.parametrize("found", [STORY[0], STORY[2], STORY[3]])
def test_of_lanes_is_the_part_of_a_run_among_others(found):
    second = progress.of_lanes(found, slice(1, 2))
    assert (second.env_steps, second.seconds) == (found.env_steps, found.seconds)
    for name in ("returns", "lengths", "diverged_at", "dropped"):
        np.testing.assert_array_equal(getattr(second, name), getattr(found, name)[1:2])
    assert second.metrics.keys() == found.metrics.keys()
    for name, values in found.metrics.items():
        np.testing.assert_array_equal(second.metrics[name], values[1:2])


def test_of_lanes_has_the_rows_that_its_lanes_have_among_all():
    for found in STORY:
        both = progress.model_rows(found, SEEDS, CONSTANT)
        parts = [progress.of_lanes(found, slice(i, i + 1)) for i in range(2)]
        alone = [
            row
            for part, seed in zip(parts, SEEDS, strict=True)
            for row in progress.model_rows(part, [seed], CONSTANT)
        ]
        assert alone == both
