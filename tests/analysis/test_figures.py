"""The shared style of figures."""

from vagram_jax.analysis import figures


def test_color_depends_on_the_method_alone():
    assert figures.color("vagram") == "#0072B2"
    assert figures.color("new loss") == figures.color("new loss") == "#AA7744"
    compared = ["vagram", "vagram_mixed", "mle", "mle_raw", "mse_normalized", "sac"]
    assert len(set(map(figures.color, compared))) == len(compared)


def test_display_name_keeps_an_unknown_name():
    assert figures.display_name("mse_normalized") == "MSE with normalized targets"
    assert figures.display_name("new loss") == "new loss"


def test_styles_differ_within_a_figure():
    names = ["vagram", "mse", "mse_raw", *(f"run{i}" for i in range(9))]
    styles = figures.styles(names)
    assert list(styles) == names
    assert (
        len({(s["color"], s["linestyle"], s["marker"]) for s in styles.values()}) == 12
    )
    assert styles["mse"]["linestyle"] != styles["mse_raw"]["linestyle"]
    assert all(styles[name]["color"] == figures.color(name) for name in names)


def test_lines_of_one_method_have_one_color_and_differ_in_their_style():
    methods = {"vagram_discount-0.9": "vagram", "vagram_discount-0.99": "vagram"}
    styles = figures.styles(methods, methods)
    assert {s["color"] for s in styles.values()} == {figures.color("vagram")}
    assert len({s["linestyle"] for s in styles.values()}) == 2
