"""Pictures: what they show, read from the figure, and the bytes of the file."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib import image

from vagram_jax.analysis import drawing, maps, plots, stats, summary
from vagram_jax.storage.files import ResultsError
from vagram_jax.storage.results import Run


def make_run(name, *, env="toy", num_seeds=4, dims=5, distractors=2, diverged=False):
    rng = np.random.default_rng(len(name))
    metrics, model = [], []
    for seed in range(num_seeds):
        for step in range(100, 1100, 100):
            failed = diverged and seed == 1 and step >= 600
            value = math.nan if failed else step / 100 + rng.normal()
            metrics.append(
                {
                    "env": env,
                    "loss": name,
                    "seed": seed,
                    "env_steps": step,
                    "return": value,
                    "diverged_at": 550 if failed else None,
                }
            )
        for step in range(100, 900, 100):
            # Only the last two of eight fits count: the others have other numbers.
            shares = np.arange(1, dims + 1) if step > 600 else np.eye(dims)[0]
            noise = {700: 0.5, 800: -0.5}.get(step, 9.0)
            row = {"env": env, "loss": name, "seed": seed, "env_steps": step}
            row |= {f"attention_dim_{d}": shares[d] / shares.sum() for d in range(dims)}
            row |= {f"error_dim_{d}": 0.1 * (d + 1) + noise for d in range(dims)}
            model.append(row)
    config = {"env": env, "distractors": distractors, "dynamics": {"hidden": [8]}}
    return Run(name=name, config=config, record={}, metrics=metrics, model=model)


def texts(axes) -> str:
    legend = axes.get_legend()
    parts = [legend.get_title(), *legend.get_texts()] if legend else []
    return "\n".join(part.get_text() for part in parts)


def is_picture(path) -> bool:
    pixels = image.imread(path)
    return pixels.shape[1] == 1800 and len(np.unique(pixels[..., :3])) > 50


def test_learning_curves_draw_the_iqm_of_each_run(tmp_path):
    runs = [make_run("mle"), make_run("vagram", diverged=True)]
    figure = plots.learning_curves(runs, tmp_path / "x.png", resamples=200)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "environment steps"
    assert axes.get_ylabel() == "return"
    floor = summary.floor_per_env(runs)["toy"]
    for run in runs:
        label = f"{run.name}: 4 seeds, {int(run.name == 'vagram')} diverged"
        (line,) = [line for line in axes.lines if line.get_label() == label]
        curve = summary.curves(run.metrics, floor=floor)
        np.testing.assert_array_equal(line.get_xdata(), curve.env_steps)
        np.testing.assert_allclose(line.get_ydata(), curve.value)
    assert "4 seeds, 1 diverged" in texts(axes)
    assert "middle 2 of 4 seeds" in texts(axes)
    assert is_picture(tmp_path / "x.png")


def test_learning_curves_mark_where_a_seed_diverged():
    figure = plots.learning_curves([make_run("vagram", diverged=True)], resamples=50)
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [list(cross.get_xdata()) for cross in crosses] == [[550]]


def test_learning_curves_give_each_environment_a_panel():
    runs = [make_run("a"), make_run("b", env="else"), make_run("c")]
    figure = plots.learning_curves(runs, resamples=50)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["else", "toy"]


def test_learning_curves_of_one_seed_have_a_line_and_no_band():
    figure = plots.learning_curves([make_run("mse", num_seeds=1)], resamples=50)
    assert "1 seeds" in texts(figure.axes[0])


def test_learning_curves_tell_many_runs_apart():
    runs = [make_run(f"run{i}") for i in range(9)]
    figure = plots.learning_curves(runs, resamples=20)
    lines = [line for line in figure.axes[0].lines if "seeds" in str(line.get_label())]
    styles = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(styles) == 9


def test_attention_shows_shares_and_errors_of_the_last_quarter_of_fits(tmp_path):
    figure = maps.attention([make_run("mle"), make_run("vagram")], tmp_path / "x.png")
    shown = [axes for axes in figure.axes if axes.images]
    share, error = [axes.images[0].get_array() for axes in shown]
    np.testing.assert_allclose(share, np.tile(np.arange(1, 6) / 15, (2, 1)))
    np.testing.assert_allclose(error, np.tile(0.1 * np.arange(1, 6), (2, 1)))
    labels = [label.get_text() for label in shown[0].get_yticklabels()]
    assert labels == ["mle\n4/4 seeds", "vagram\n4/4 seeds"]
    assert is_picture(tmp_path / "x.png")


def test_attention_says_what_the_maps_show():
    figure = maps.attention([make_run("mle")])
    share, error = [axes for axes in figure.axes if axes.images]
    assert share.get_title(loc="left") == (
        "toy: share of the loss on each state dimension"
    )
    notes = [text.get_text() for text in share.texts]
    assert (
        "curvature of the loss in the prediction x variance of the change; sums to 1"
        in notes
    )
    assert error.get_title(loc="left") == (
        "toy: model error, in standard deviations of the change"
    )
    assert "last quarter" in figure.get_supxlabel()


def test_attention_takes_the_last_quarter_by_step_whatever_the_order():
    run = make_run("mle")
    turned = dataclasses.replace(run, model=run.model[::-1])
    images = [maps.attention([r]).axes[0].images[0] for r in (run, turned)]
    np.testing.assert_array_equal(*[image.get_array() for image in images])


def test_attention_of_fewer_than_four_fits_takes_the_last():
    run = make_run("mle")
    run.model[:] = [row for row in run.model if row["env_steps"] > 500]
    share = maps.attention([run]).axes[0].images[0].get_array()
    np.testing.assert_allclose(share, [np.arange(1, 6) / 15])


def test_attention_leaves_runs_without_a_model_out():
    plain = dataclasses.replace(make_run("none"), model=())
    figure = maps.attention([plain, make_run("mle")])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["mle\n4/4 seeds"]


def test_num_dims_counts_state_dimensions():
    assert maps.num_dims(make_run("mle", dims=5)) == 5
    assert maps.num_dims(dataclasses.replace(make_run("none"), model=())) == 0


def test_attention_draws_the_line_before_the_first_distractor():
    figure = maps.attention([make_run("mle", dims=5, distractors=2)])
    axes = figure.axes[0]
    assert {line.get_xdata()[0] for line in axes.lines} == {2.5}
    assert "distractors" in axes.get_xlabel()
    plain = maps.attention([make_run("mle", distractors=0)]).axes[0]
    assert not plain.lines
    assert "distractors" not in plain.get_xlabel()


def test_attention_counts_seeds_without_finite_numbers():
    run = make_run("mle")
    run.model[-1]["attention_dim_0"] = math.nan
    figure = maps.attention([run])
    assert figure.axes[0].get_yticklabels()[0].get_text() == "mle\n3/4 seeds"
    assert np.isfinite(figure.axes[0].images[0].get_array()).all()


def test_attention_leaves_what_was_not_recorded_empty():
    run = make_run("mle")
    for row in run.model:
        for dim in range(5):
            del row[f"attention_dim_{dim}"]
    figure = maps.attention([run, make_run("vagram")])
    share = figure.axes[0].images[0].get_array()
    assert np.ma.getmaskarray(share).tolist() == [[True] * 5, [False] * 5]
    assert "none" in [text.get_text() for text in figure.axes[0].texts]


def test_attention_gives_each_number_of_dimensions_its_own_maps():
    runs = [make_run("a", dims=3, distractors=0), make_run("b", dims=40)]
    figure = maps.attention(runs)
    widths = [
        axes.images[0].get_array().shape[1] for axes in figure.axes if axes.images
    ]
    assert widths == [3, 3, 40, 40]


def test_attention_names_the_dimensions():
    names = ["cos", "sin", "velocity", "d0", "$d1"]
    figure = maps.attention([make_run("a")], dim_names=names)
    drawing.png(figure)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()][:3] == names[:3]
    with pytest.raises(ValueError, match="2 dim_names"):
        maps.attention([make_run("a")], dim_names=["x", "y"])


def test_pictures_have_room_for_long_names(recwarn):
    runs = [make_run("x" * 64), make_run("y" * 64)]
    drawing.png(plots.learning_curves(runs, resamples=20))
    drawing.png(
        maps.attention(runs, dim_names=["angular_velocity_of_the_left_foot"] * 5)
    )
    assert not recwarn.list  # matplotlib warns when a panel has no room left


def test_attention_refuses_runs_without_the_columns():
    with pytest.raises(ValueError, match="attention_dim_0"):
        maps.attention([Run(name="a", config={}, record={}, metrics=[])])


def test_sweep_draws_intervals_over_the_swept_number(tmp_path):
    points = {
        loss: {x: x + np.arange(4.0) for x in (1, 10, 100)}
        for loss in ("mle", "vagram")
    }
    figure = plots.sweep(points, tmp_path / "x.png", x_label="capacity", title="toy")
    (axes,) = figure.axes
    line = next(line for line in axes.lines if line.get_label() == "mle (4 seeds)")
    assert list(line.get_xdata()) == [1, 10, 100]
    assert list(line.get_ydata()) == [2.5, 11.5, 101.5]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "capacity"
    assert is_picture(tmp_path / "x.png")


def test_sweep_is_linear_over_numbers_with_zero():
    figure = plots.sweep({"a": {0: [1.0, 2, 3], 100: [1.0, 2, 3]}}, x_label="x")
    assert figure.axes[0].get_xscale() == "linear"


def test_sweep_refuses_two_seeds():
    with pytest.raises(ValueError, match="num_seeds"):
        plots.sweep({"a": {0: [1.0, 2.0]}}, x_label="x")


PROFILED = {
    "mle": {"a": [1.0, 2, 3, 4], "b": [2.0, 2, 5, 6]},
    "vagram": {"b": [4.0, 5, 6, 7, 8], "a": [2.0, 3, 4]},
}


def test_performance_profiles_draw_steps_with_a_band_for_each_loss(tmp_path):
    path, thresholds = tmp_path / "x.png", [0.0, 2.0, 4.0, 9.0]
    figure = plots.performance_profiles(PROFILED, path, thresholds=thresholds)
    (axes,) = figure.axes
    for index, (name, by_task) in enumerate(PROFILED.items()):
        seeds = ("4", "3 to 5")[index]
        label = f"{name} ({seeds} seeds on each of 2 tasks)"
        (line,) = [line for line in axes.lines if line.get_label() == label]
        found = stats.performance_profile(by_task, thresholds=thresholds)
        assert line.get_drawstyle() == "steps-post"
        np.testing.assert_array_equal(line.get_xdata(), thresholds)
        np.testing.assert_array_equal(line.get_ydata(), found.value)
        # The band is a step too: from each threshold it is flat up to the next.
        (band,) = axes.collections[index].get_paths()
        corners = {tuple(corner) for corner in band.vertices}
        for end in (found.low, found.high):
            assert {(2.0, end[0]), (2.0, end[1]), (4.0, end[1])} <= corners
    assert axes.get_ylabel() == "share of runs above"
    assert "pointwise 95% interval" in texts(axes)
    assert is_picture(path)


def test_performance_profiles_take_any_name_as_it_is():
    picture = {"a$b$_^{": {"task": [1.0, 2, 3]}}
    options = {"x_label": "return / $max$", "title": "$x"}
    drawing.png(plots.performance_profiles(picture, thresholds=[0, 2], **options))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "tasks \\[\\]"),
        (PROFILED | {"mse": {"a": [1.0, 2, 3]}}, "tasks \\['a', 'a, b'\\]"),
        ({"a": {"t": [1.0, 2.0]}}, "at least 3 seeds"),
        ({"a": {}}, "no task"),
    ],
)
def test_performance_profiles_refuse_what_can_not_be_compared(values, message):
    with pytest.raises(ValueError, match=message):
        plots.performance_profiles(values, thresholds=[0.0])


def test_png_has_the_same_bytes_each_time_and_no_date():
    runs = [make_run("mle"), make_run("a$b$_^{")]
    first, second = (
        drawing.png(plots.learning_curves(runs, resamples=50)) for _ in range(2)
    )
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
    assert b"tEXt" not in first


def test_a_picture_that_can_not_be_written_is_one_line(tmp_path):
    with pytest.raises(ResultsError, match="No such file") as error:
        maps.attention([make_run("a")], tmp_path / "gone" / "x.png")
    assert "\n" not in str(error.value)


def test_intervals_draw_a_row_for_each_rival_best_on_top(tmp_path):
    values = {
        "mle": [1.0, 2, 3, 4],
        "vagram": [11.0, 12, 13, 14],
        "mse": [5.0, 6, 7, 9],
    }
    figure = plots.intervals(values, tmp_path / "x.png", title="t", reference="vagram")
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["mle", "mse", "vagram"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    for name, dot in zip(names, dots, strict=True):
        assert dot.get_xdata()[0] == stats.iqm(np.array(values[name]))
    spans = [line.get_xdata() for line in axes.lines if line.get_marker() == "None"]
    wanted = stats.interval({"vagram": np.array(values["vagram"])})
    np.testing.assert_allclose(spans[2], wanted[1:])
    assert is_picture(tmp_path / "x.png")


@pytest.mark.parametrize("count", [1, 3])
def test_panels_draw_a_sweep_each_on_the_same_axes(count, tmp_path):
    by_x = {x: [x, x + 1, x + 2, x + 3] for x in (1.0, 2.0)}
    points = {f"panel {i}": {"mle": by_x, "mse": by_x} for i in range(count)}
    figure = plots.panels(
        points, tmp_path / "x.png", x_label="x", y_label="y", log=True
    )
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == list(points)
    for axes in shown:
        assert axes.get_yscale() == "log"
        (line,) = (x for x in axes.lines if x.get_label() == "mle (4 seeds)")
        np.testing.assert_allclose(line.get_ydata(), [2.5, 3.5])
    assert is_picture(tmp_path / "x.png")
