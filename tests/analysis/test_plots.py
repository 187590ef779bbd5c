"""Plots: the numbers in the figure and the bytes of the file."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib import image

from vagram_jax.analysis import figures, maps, plots, published, stats, summary
from vagram_jax.storage.files import ResultsError
from vagram_jax.storage.results import Run


def make_run(name, *, env="toy", num_seeds=4, dims=5, distractors=2, diverged=False):
    rng = np.random.default_rng(len(name))
    metrics, model = [], []
    for seed in range(num_seeds):
        shared = {"env": env, "loss": name, "seed": seed}
        for step in range(100, 1100, 100):
            failed = diverged and seed == 1 and step >= 600
            value = math.nan if failed else step / 100 + rng.normal()
            numbers = {"return": value, "diverged_at": 550 if failed else None}
            metrics.append(shared | {"env_steps": step} | numbers)
        for step in range(100, 900, 100):
            # Only the last two of eight fits count; the others have other numbers.
            shares = np.arange(1, dims + 1) if step > 600 else np.eye(dims)[0]
            noise = {700: 0.5, 800: -0.5}.get(step, 9.0)
            row = shared | {"env_steps": step}
            row |= {f"attention_dim_{d}": shares[d] / shares.sum() for d in range(dims)}
            row |= {f"error_dim_{d}": 0.1 * (d + 1) + noise for d in range(dims)}
            model.append(row)
    config = {"env": env, "distractors": distractors, "dynamics": {"hidden": [8]}}
    return Run(name=name, config=config, record={}, metrics=metrics, model=model)


def texts(axes) -> str:
    legend = axes.get_legend()
    return "\n".join(t.get_text() for t in [legend.get_title(), *legend.get_texts()])


def line_of(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


def y_labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_learning_curves_have_the_iqm_of_each_run():
    runs = [make_run("mle"), make_run("vagram", diverged=True)]
    (axes,) = plots.learning_curves(runs, resamples=50).axes
    assert axes.get_xlabel() == "environment steps"
    assert axes.get_ylabel() == "return"
    floor = summary.floor_per_env(runs)["toy"]
    labels = ["MLE: 4 seeds, 0 diverged", "VaGraM: 4 seeds, 1 diverged"]
    for run, label in zip(runs, labels, strict=True):
        curve = summary.curves(run.metrics, floor=floor, resamples=50)
        line = line_of(axes, label)
        assert line.get_color() == figures.color(run.name)
        np.testing.assert_array_equal(line.get_xdata(), curve.env_steps)
        np.testing.assert_allclose(line.get_ydata(), curve.value)
    assert "middle 2 of 4 seeds" in texts(axes)
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [list(cross.get_xdata()) for cross in crosses] == [[], [550]]


def test_learning_curves_have_a_panel_per_environment():
    runs = [make_run("a"), make_run("b", env="other"), make_run("c", num_seeds=1)]
    other, toy = plots.learning_curves(runs, resamples=20).axes
    assert other.get_title(loc="left") == "other"
    assert toy.get_title(loc="left") == "toy"
    assert "c: 1 seeds" in texts(toy)  # a line without a band


def test_learning_curves_of_many_runs_have_a_panel_per_setting():
    runs = []
    for loss in ("vagram", "mle"):
        for rate in "abcd":
            run, labels = make_run(f"{loss}-{rate}"), {"loss": loss, "rate": rate}
            runs.append(dataclasses.replace(run, record={"labels": labels}))
    figure = plots.learning_curves(runs, resamples=20)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"toy: rate {rate}" for rate in "abcd"]
    for axes in figure.axes:
        for label, loss in (("VaGraM", "vagram"), ("MLE", "mle")):
            assert line_of(axes, label).get_color() == figures.color(loss)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["VaGraM", "MLE"]


def test_intervals_have_the_color_of_the_method_of_a_row():
    rows = {"plain": [1.0, 2.0, 3.0], "chosen": [2.0, 3.0, 4.0]}
    methods = dict.fromkeys(rows, "mle")
    (axes,) = plots.intervals(rows, methods=methods, reference="plain").axes
    assert {line.get_color() for line in axes.lines} == {figures.color("mle")}


def test_learning_curves_end_published_curves_where_the_runs_end():
    steps = np.array([0.0, 500.0, 1000.0, 50_000.0])
    curve = published.PublishedCurve("mbpo", steps, steps / 100, steps / 1000, 5)
    runs, other = [make_run("mle", distractors=0)], curve._replace(algorithm="other")
    against = {"toy": [curve], "elsewhere": [other]}
    (axes,) = plots.learning_curves(runs, against=against, resamples=20).axes
    line = line_of(axes, "mbpo, published: 5 seeds on v4, mean and std")
    np.testing.assert_array_equal(line.get_xdata(), steps[:3])
    np.testing.assert_array_equal(line.get_ydata(), [0.0, 5.0, 10.0])
    assert "other" not in texts(axes)


def test_learning_curves_show_published_curves_only_without_distractors():
    curve = published.PublishedCurve("mbpo", *np.array([[0.0, 9.0]] * 3), 5)
    for count in (0, 3):
        runs = [make_run("mle", distractors=count)]
        figure = plots.learning_curves(runs, against={"toy": [curve]}, resamples=20)
        assert ("published" in texts(figure.axes[0])) == (count == 0)


def test_attention_shows_shares_and_errors_of_the_last_quarter_of_fits():
    runs = [make_run("mle"), make_run("vagram")]
    runs[1].model.reverse()  # the order of the rows doesn't matter
    figure = maps.attention([dataclasses.replace(runs[0], model=()), *runs])
    share, error = [axes for axes in figure.axes if axes.images]
    expected = np.arange(1, 6)
    for axes, scale in ((share, 1 / 15), (error, 0.1)):
        shown = axes.images[0].get_array()
        np.testing.assert_allclose(shown, np.tile(scale * expected, (2, 1)))
        assert y_labels(axes) == ["MLE\n4/4 seeds", "VaGraM\n4/4 seeds"]
    assert share.get_title(loc="left") == (
        "toy: share of the loss on each state dimension"
    )
    assert error.get_title(loc="left") == (
        "toy: model error, in standard deviations of the change"
    )
    notes = [text.get_text() for text in share.texts]
    assert any("curvature of the loss in the prediction" in note for note in notes)
    assert "last quarter" in figure.get_supxlabel()


def test_attention_of_fewer_than_four_fits_shows_the_last():
    run = make_run("mle")
    run.model[:] = [row for row in run.model if row["env_steps"] > 500]
    share = maps.attention([run]).axes[0].images[0].get_array()
    np.testing.assert_allclose(share, [np.arange(1, 6) / 15])


def test_num_dims_counts_state_dimensions():
    run = make_run("mle", dims=5)
    assert maps.num_dims(run) == 5
    assert maps.num_dims(dataclasses.replace(run, model=())) == 0


def test_attention_marks_the_first_distractor():
    axes = maps.attention([make_run("mle", dims=5, distractors=2)]).axes[0]
    assert {line.get_xdata()[0] for line in axes.lines} == {2.5}
    assert "distractors" in axes.get_xlabel()
    axes = maps.attention([make_run("mle", distractors=0)]).axes[0]
    assert not axes.lines
    assert "distractors" not in axes.get_xlabel()


def test_attention_leaves_out_numbers_that_are_missing_or_not_finite():
    missing, partial = make_run("missing"), make_run("partial")
    for row in missing.model:
        for dim in range(5):
            del row[f"attention_dim_{dim}"]
    partial.model[-1]["attention_dim_0"] = math.nan
    axes = maps.attention([missing, partial]).axes[0]
    share = np.ma.getmaskarray(axes.images[0].get_array())
    assert share.tolist() == [[True] * 5, [False] * 5]
    assert y_labels(axes) == ["missing\n0/4 seeds", "partial\n3/4 seeds"]
    assert "none" in [text.get_text() for text in axes.texts]


def test_attention_has_separate_maps_for_other_numbers_of_dimensions():
    runs = [make_run("a", dims=3, distractors=0), make_run("b", dims=40)]
    images = [axes.images[0] for axes in maps.attention(runs).axes if axes.images]
    assert [each.get_array().shape[1] for each in images] == [3, 3, 40, 40]


def test_attention_rejects_missing_columns_and_names():
    with pytest.raises(ValueError, match="attention_dim_0"):
        maps.attention([Run(name="a", config={}, record={}, metrics=[])])
    with pytest.raises(ValueError, match="2 dim_names"):
        maps.attention([make_run("a")], dim_names=["x", "y"])


def test_figures_have_room_for_long_names_and_accept_dollar_signs(recwarn, monkeypatch):
    monkeypatch.setattr(figures, "_DPI", 50)
    runs = [make_run("x" * 64), make_run("a$b$_^{" * 9)]
    figures.png(plots.learning_curves(runs, resamples=20))
    names = [*["angular_velocity_of_the_left_foot"] * 4, "$d1"]
    figure = maps.attention(runs, dim_names=names)
    figures.png(figure)
    assert figure.axes[0].get_xticklabels()[0].get_text() == names[0]
    labels = {"x_label": "return / $max$", "title": "$x"}
    values = {"a$b$_^{": {"task": [1.0, 2, 3]}}
    figures.png(plots.performance_profiles(values, thresholds=[0, 2], **labels))
    assert not recwarn.list  # matplotlib warns if a panel has no room left


POINTS = {
    loss: {x: x + np.arange(4.0) for x in (1, 10, 100)} for loss in ("mle", "vagram")
}


def test_sweep_has_intervals_at_each_number():
    (axes,) = plots.sweep(POINTS, x_label="capacity", title="toy").axes
    line = line_of(axes, "MLE (4 seeds)")
    assert list(line.get_xdata()) == [1, 10, 100]
    assert list(line.get_ydata()) == [2.5, 11.5, 101.5]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "capacity"
    with_zero = plots.sweep({"a": {0: [1.0, 2, 3], 100: [1.0, 2, 3]}}, x_label="x")
    assert with_zero.axes[0].get_xscale() == "linear"
    with pytest.raises(ValueError, match="num_seeds"):
        plots.sweep({"a": {0: [1.0, 2.0]}}, x_label="x")


@pytest.mark.parametrize("count", [1, 3])
def test_panels_have_common_axes(count):
    points = {f"panel {i}": POINTS for i in range(count)}
    figure = plots.panels(points, x_label="x", y_label="y", log=True)
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in visible] == list(points)
    for axes in visible:
        assert axes.get_yscale() == "log"
        line = line_of(axes, "MLE (4 seeds)")
        np.testing.assert_allclose(line.get_ydata(), [2.5, 11.5, 101.5])


def test_intervals_have_a_row_per_method_with_the_best_on_top():
    values = {"mle": [1.0, 2, 3, 4], "vagram": [11.0, 12, 13, 14]}
    values["mse"] = [5.0, 6, 7, 9]
    (axes,) = plots.intervals(values, title="t", reference="vagram").axes
    assert y_labels(axes) == ["MLE", "MSE", "VaGraM"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    for name, dot in zip(("mle", "mse", "vagram"), dots, strict=True):
        assert dot.get_xdata()[0] == stats.iqm(np.array(values[name]))
        assert dot.get_color() == figures.color(name)
    spans = [line.get_xdata() for line in axes.lines if line.get_marker() == "None"]
    expected = stats.interval({"vagram": np.array(values["vagram"])})
    np.testing.assert_allclose(spans[2], expected[1:])


EFFECTS = {
    "": {"pendulum": stats.Interval(0.9, 0.8, 1.0)},
    "a claim on $tasks$, in " + 60 * "w": {
        "hopper": stats.Interval(0.4, 0.2, 0.7),
        "$ant$": stats.Interval(0.1, 0.0, 0.3),
    },
}


def test_forest_has_a_row_per_effect_and_a_line_at_the_reference():
    (axes,) = plots.forest(EFFECTS, x_label="probability", reference=0.5).axes
    assert y_labels(axes) == ["pendulum", "hopper", r"\$ant\$"]
    assert list(axes.get_yticks()) == [0, 2, 3]  # a heading takes a row
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first row is on top
    reference, *lines = axes.lines
    assert list(reference.get_xdata()) == [0.5, 0.5]
    effects = [each for group in EFFECTS.values() for each in group.values()]
    for index, (row, (value, low, high)) in enumerate(
        zip(axes.get_yticks(), effects, strict=True)
    ):
        span, dot = lines[2 * index : 2 * index + 2]
        assert list(span.get_xdata()) == [low, high]
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (value, row)
    filled = [dot.get_markerfacecolor() != "white" for dot in lines[1::2]]
    assert filled == [True, False, True]
    texts = [text.get_text() for text in axes.texts]
    assert "0.900 [0.800, 1.00]" in texts
    assert [x for x in texts if "claim" in x] == [
        r"a claim on \$tasks\$, in " + 60 * "w"
    ]


def test_forest_keeps_its_width_beside_long_headings():
    figure = plots.forest(EFFECTS, x_label="probability")
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.6


@pytest.mark.parametrize(
    "effects", [{}, {"": {}}, {"": {"a": stats.Interval(1, math.nan, math.nan)}}]
)
def test_forest_rejects_missing_numbers(effects):
    with pytest.raises(ValueError, match="finite numbers"):
        plots.forest(effects, x_label="x")


PROFILED = {
    "mle": {"a": [1.0, 2, 3, 4], "b": [2.0, 2, 5, 6]},
    "vagram": {"b": [4.0, 5, 6, 7, 8], "a": [2.0, 3, 4]},
}


def test_performance_profiles_are_steps_with_a_band():
    thresholds = [0.0, 2.0, 4.0, 9.0]
    (axes,) = plots.performance_profiles(PROFILED, thresholds=thresholds).axes
    labels = ["MLE (4 seeds on each of 2 tasks)", "VaGraM (3 to 5 seeds on each of 2 "]
    labels[1] += "tasks)"
    for index, by_task in enumerate(PROFILED.values()):
        line = line_of(axes, labels[index])
        profile = stats.performance_profile(by_task, thresholds=thresholds)
        assert line.get_drawstyle() == "steps-post"
        np.testing.assert_array_equal(line.get_xdata(), thresholds)
        np.testing.assert_array_equal(line.get_ydata(), profile.value)
        # The band keeps its height from each threshold to the next, too.
        (band,) = axes.collections[index].get_paths()
        corners = {tuple(corner) for corner in band.vertices}
        for end in (profile.low, profile.high):
            assert {(2.0, end[0]), (2.0, end[1]), (4.0, end[1])} <= corners
    assert axes.get_ylabel() == "share of runs above"
    assert "pointwise 95% interval" in texts(axes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "tasks \\[\\]"),
        (PROFILED | {"mse": {"a": [1.0, 2, 3]}}, "tasks \\['a', 'a, b'\\]"),
        ({"a": {"t": [1.0, 2.0]}}, "at least 3 seeds"),
        ({"a": {}}, "no task"),
    ],
)
def test_performance_profiles_reject_different_tasks_and_few_seeds(values, message):
    with pytest.raises(ValueError, match=message):
        plots.performance_profiles(values, thresholds=[0.0])


PLOTS = {
    "attention": lambda path: maps.attention([make_run("mle")], path),
    "forest": lambda path: plots.forest(EFFECTS, path, x_label="x"),
    "intervals": lambda path: plots.intervals(PROFILED["mle"], path),
    "learning_curves": lambda path: plots.learning_curves(
        [make_run("mle")], path, resamples=20
    ),
    "panels": lambda path: plots.panels({"": POINTS}, path, x_label="x", y_label="y"),
    "performance_profiles": lambda path: plots.performance_profiles(
        PROFILED, path, thresholds=[0.0, 3.0]
    ),
    "sweep": lambda path: plots.sweep(POINTS, path, x_label="x"),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots_write_the_same_png_each_time(name, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_DPI", 50)
    path = tmp_path / "x.png"
    figure = PLOTS[name](path)
    first = path.read_bytes()
    pixels = image.imread(path)
    assert pixels.shape[1] == 450
    assert len(np.unique(pixels[..., :3])) > 50
    assert b"Software" not in first
    assert b"tEXt" not in first
    assert figures.png(PLOTS[name](None)) == first
    assert figure.axes


def test_plots_report_an_unwritable_path_in_one_line(tmp_path):
    with pytest.raises(ResultsError, match="No such file") as error:
        plots.sweep(POINTS, tmp_path / "gone" / "x.png", x_label="x")
    assert "\n" not in str(error.value)
