"""The method, the name and the setting of runs."""

from vagram_jax.analysis import grouping
from vagram_jax.storage.results import Run


def run(name, loss="", **labels):
    record = {"labels": ({"loss": loss} if loss else {}) | labels}
    return Run(name=name, config={"loss": "mse"}, record=record, metrics=[])


SWEEP = [
    run("a", "vagram", task="pendulum", width="16"),
    run("b", "vagram", task="pendulum", width="64"),
    run("c", "mle", task="pendulum", width="16"),
    run("d", "sac", task="pendulum"),
]


def test_the_method_of_a_run_is_its_label_or_the_loss_of_its_config():
    methods = grouping.methods([*SWEEP, run("e")])
    assert list(methods.values()) == ["vagram", "vagram", "mle", "sac", "mse"]
    alone = Run(name="mine", config={}, record={}, metrics=[])
    assert grouping.method(alone) == "mine"


def test_names_have_the_labels_that_differ():
    assert grouping.names(SWEEP) == {
        "a": "VaGraM, width 16",
        "b": "VaGraM, width 64",
        "c": "MLE, width 16",
        "d": "SAC",
    }
    assert grouping.names([SWEEP[0], SWEEP[2]]) == {"a": "VaGraM", "c": "MLE"}
    same = [run("x", "mle"), run("y", "mle")]
    assert grouping.names(same) == {"x": "x", "y": "y"}


def test_a_run_without_a_label_belongs_to_all_of_its_settings():
    settings = grouping.by_setting(SWEEP)
    assert {
        grouping.text(setting): [each.name for each in runs]
        for setting, runs in settings.items()
    } == {"width 16": ["a", "c", "d"], "width 64": ["b", "d"]}


def test_few_runs_share_a_panel_and_many_have_one_per_setting():
    assert list(grouping.panels("pendulum", SWEEP)) == ["pendulum"]
    many = SWEEP + [run(f"m{i}", f"loss{i}", width="16") for i in range(3)]
    assert list(grouping.panels("pendulum", many)) == [
        "pendulum: width 16",
        "pendulum: width 64",
    ]
