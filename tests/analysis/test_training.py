"""Plots of what changes during training."""

import math

import numpy as np
import pytest

from vagram_jax.analysis import figures, training
from vagram_jax.storage.results import Run


def run(name, distractors=1):
    """Three seeds and two epochs; the numbers of a seed are multiples of 1 + seed."""
    model, metrics, timing = [], [], []
    for step in (100, 200):
        timing.append({"seed": 0, "env_steps": step, "wall_time_s": 0.6 * step})
        for seed in range(3):
            scale, row = 1.0 + seed, {"seed": seed, "env_steps": step}
            errors = {"new_error_dim_0": 3 * scale, "new_error_dim_1": 4 * scale}
            shares = {"attention_dim_0": 0.25, "attention_dim_1": 0.75}
            model.append(row | errors | shares | {"new_reward": math.nan})
            metrics.append(row | {"return": 0.0, "sac/q_mean": scale * step})
    config = {"distractors": distractors}
    return Run(name, config, {}, metrics=metrics, model=model, timing=timing)


def panels(figure):
    """Titles to the heights of the one line with a marker."""
    return {
        axes.get_title(loc="left"): [
            list(line.get_ydata()) for line in axes.lines if line.get_marker() != "None"
        ]
        for axes in figure.axes
        if axes.get_visible()
    }


def test_model_shows_medians_of_errors_and_the_share_of_the_task():
    shown = panels(training.model([run("vagram")]))
    assert shown == {
        "error of the task's next state": [[6.0, 6.0]],
        "error of the distractors": [[8.0, 8.0]],
        "share of the loss on the task": [[0.25, 0.25]],
    }
    (values,) = panels(training.model([run("mle", distractors=0)])).values()
    np.testing.assert_allclose(values, [[math.sqrt(50)] * 2])


def test_errors_are_means_over_seeds_and_the_second_half_without_what_is_not_a_number():
    one = run("vagram")
    for row in one.model:
        early = row["env_steps"] == 100
        row |= {"new_value": 99.0 if early else 0.5, "new_missed": 0.1 * row["seed"]}
        row |= {"new_error_dim_0": 99.0} if early else {}
        row["new_missed"] = math.nan if row["seed"] == 0 else row["new_missed"]
    errors = training.errors(one)
    assert [errors[name] for name in ("state", "value")] == [6.0, 0.5]
    assert errors["missed"] == pytest.approx(0.15)
    assert math.isnan(errors["reward"]) and math.isnan(errors["false_alarms"])


def test_agent_shows_each_of_its_columns():
    assert panels(training.agent([run("sac")])) == {"q mean": [[200.0, 400.0]]}


def test_cost_shows_minutes_and_memory_if_it_was_recorded():
    one = run("vagram")
    assert panels(training.cost([one])) == {"wall time in minutes": [[1.0, 2.0]]}
    for row in one.timing:
        row["memory_mb"] = 1500
    assert panels(training.cost([one]))["peak memory of the process in GB"] == [
        [1.5] * 2
    ]


def test_without_numbers_there_is_no_figure():
    empty = Run("sac", {}, {}, metrics=[])
    for draw in (training.model, training.agent, training.cost):
        assert draw([empty]) is None


def test_many_runs_have_the_colors_of_their_methods_and_no_bands():
    runs = [run(f"vagram_{index}") for index in range(7)]
    runs = [Run(r.name, {"loss": "vagram"}, {}, r.metrics) for r in runs]
    (axes,) = training.agent(runs).axes
    assert {line.get_color() for line in axes.lines} == {figures.color("vagram")}
    assert not axes.collections
