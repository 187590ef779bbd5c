"""The settings of a sweep and the effect of each axis."""

import numpy as np

from vagram_jax.analysis import figures, sweeps
from vagram_jax.storage.results import Run


def make(**labels):
    name = "_".join(labels.values())
    return Run(name, {}, {"labels": labels}, metrics=[])


RUNS = [
    make(loss="vagram", rate="1e-3"),
    make(loss="vagram", rate="0.01"),
    make(loss="mle", rate="1e-3"),
    make(loss="mle", rate="0.01"),
    make(loss="sac"),
]
NUMBERS = (5.0, 1.0, 3.0, -3.0, 4.0)
SUMMARIES = {run.name: {"iqm": x} for run, x in zip(RUNS, NUMBERS, strict=True)}


def test_effects_compare_values_in_settings_that_have_all_of_them():
    rate, loss = sweeps.effects(RUNS, SUMMARIES)
    assert (rate.axis, rate.values) == ("rate", ["1e-3", "0.01"])
    assert rate.methods == ["vagram", "mle"]
    np.testing.assert_array_equal(rate.results, [[5, 1], [3, -3]])
    assert (loss.axis, loss.values) == ("loss", ["mle", "sac", "vagram"])
    np.testing.assert_array_equal(loss.results, [[3, 4, 5], [-3, 4, 1]])
    assert sweeps.effect_rows([rate]) == [
        ["rate", "1e-3", "4.00", "0.000", 2],
        ["rate", "0.01", "-1.00", "5.00", 2],
    ]


def test_an_axis_without_a_complete_setting_has_no_effect():
    runs = [make(loss="vagram", rate="1"), make(loss="mle", rate="2")]
    assert sweeps.effects(runs, {run.name: {"iqm": 0.0} for run in runs}) == []


def test_best_first_puts_nan_last():
    summaries = SUMMARIES | {"sac": {"iqm": np.nan}}
    ordered = [run.name for run in sweeps.best_first(RUNS, summaries)]
    assert ordered == ["vagram_1e-3", "mle_1e-3", "vagram_0.01", "mle_0.01", "sac"]


def test_plot_has_a_line_per_setting_in_the_color_of_its_method():
    rate, loss = sweeps.plot(sweeps.effects(RUNS, SUMMARIES)).axes
    colors = [figures.color("vagram"), figures.color("mle"), "0"]
    assert [line.get_color() for line in rate.lines] == colors
    assert list(rate.lines[-1].get_ydata()) == [4.0, -1.0]
    assert [tick.get_text() for tick in loss.get_xticklabels()] == loss_names(loss)


def loss_names(axes):
    assert axes.get_title(loc="left") == "loss"
    return ["mle", "sac", "vagram"]
