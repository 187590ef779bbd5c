"""The method and the labels of runs: how figures color, name and group them.

The method of a run is its loss, or `sac` without a model. It decides the color of the
run in every figure. All other labels are settings, such as the discount in a sweep.
"""

from __future__ import annotations

from collections.abc import Sequence

from vagram_jax.analysis import figures
from vagram_jax.storage.results import Run

MAX_LINES = 6
"""The most lines in one panel of which each has a style of its own."""

Setting = tuple[tuple[str, str], ...]
"""Pairs of label and value."""


def method(run: Run) -> str:
    """Returns the name of a run's method: its label `loss`, else its config's loss.

    A run without either is a method of its own.
    """
    labels = run.record.get("labels") or {}
    return str(labels.get("loss") or run.config.get("loss") or run.name)


def methods(runs: Sequence[Run]) -> dict[str, str]:
    """Returns the `method` of each run by the run's name."""
    return {run.name: method(run) for run in runs}


def labels(run: Run) -> dict[str, str]:
    """Returns the labels of a run, its `method` first, under `loss`."""
    own = run.record.get("labels") or {}
    return {"loss": method(run)} | {k: str(v) for k, v in own.items() if k != "loss"}


def axes(runs: Sequence[Run]) -> list[str]:
    """Returns the labels whose values differ between runs, the loss included."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for label, value in labels(run).items():
            values.setdefault(label, set()).add(value)
    return [label for label, distinct in values.items() if len(distinct) > 1]


def names(runs: Sequence[Run]) -> dict[str, str]:
    """Returns a name for people for each run, by the name of its folder.

    It is the display name of the method, followed by the labels that differ between the
    runs if a method occurs more than once. Runs that this doesn't distinguish keep the
    names of their folders.
    """
    shown = {run.name: figures.display_name(method(run)) for run in runs}
    if len(set(shown.values())) < len(shown):
        for setting, members in by_setting(runs, spread=False).items():
            for run in members if setting else ():
                shown[run.name] += f", {text(setting)}"
    every = list(shown.values())
    return {key: key if every.count(name) > 1 else name for key, name in shown.items()}


def by_setting(
    runs: Sequence[Run], axis: str = "loss", *, spread: bool = True
) -> dict[Setting, list[Run]]:
    """Returns the runs of each setting: the values of all `axes` but one.

    Args:
      runs: the runs.
      axis: the label that is no part of a setting.
      spread: whether a run that lacks a label belongs to all of its values: plain SAC
        has no model, so one run serves for every width of the model.
    """
    differing = [label for label in axes(runs) if label != axis]
    own = {
        run.name: tuple((k, v) for k, v in labels(run).items() if k in differing)
        for run in runs
    }
    settings = dict.fromkeys(own.values())
    if not spread:
        return {s: [run for run in runs if own[run.name] == s] for s in settings}
    return {
        setting: [run for run in runs if set(own[run.name]) <= set(setting)]
        for setting in settings
        if not any(set(setting) < set(other) for other in settings)
    }


def panels(env: str, runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs of each panel of a figure on one environment, by its title.

    A few runs share a panel. Many runs get a panel per setting.
    """
    if len(runs) <= MAX_LINES:
        return {env: list(runs)}
    return {
        f"{env}: {text(setting)}" if setting else env: members
        for setting, members in by_setting(runs).items()
    }


def text(setting: Setting) -> str:
    """Returns a setting as text, such as `distractors 15, hidden 16`."""
    return ", ".join(f"{label} {value}" for label, value in setting)
