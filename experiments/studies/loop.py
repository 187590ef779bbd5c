"""Studies whose cells are trainings: training them, and what their returns say.

Comes in: cells, each a config file with some settings. Goes out, in the study's folder:

    <run>/              each training, as any command leaves it
    finals.csv          a row per seed: what it reached
    table.csv           a row per run and setting: interval, and the methods' chances
    *.png               return along the study's axis, or a line for each rival
    profiles.png        the share of seeds above each return, over all settings
    study.json          the verdict, with the command, versions and machine behind it
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.studies import Plan, verdicts
from vagram_jax.analysis import plots, stats, summary
from vagram_jax.cli import flags, grid, launch
from vagram_jax.run import devices
from vagram_jax.storage import files, results

ANY = "any"
"""The value of a rival that doesn't depend on a column: it stands at all of its values.

Plain SAC has no model, so that one training serves for every width of it.
"""

Axes = Mapping[str, Mapping[str, Mapping[str, str]]]
"""A column's name to its values' names to the settings that make them.

A setting is a dotted key of a config, or `config`, which names the file.
"""

_VARIANTS = {
    "vagram_mixed": {
        "loss": "vagram",
        "weights.gradient_share": "0.8",
        "weights.mixed_with": "mse_normalized",
        "weights.normalize": "true",
    },
    "mle_raw": {"loss": "mle", "dynamics.normalize_targets": "false"},
    "mse_raw": {"loss": "mse", "dynamics.normalize_targets": "false"},
}

BASELINES = ("mle", "mle_raw", "mse", "mse_raw", "mse_normalized", "sac")
"""Whom VaGraM is held against, as far as a study trains them.

`baselines` compares more forms of them; the strongest there must be among these.
"""


class Study(NamedTuple):
    """How the cells of a study are read.

    Attributes:
      contrast: the column that tells rivals apart.
      methods: the rivals that are judged.
      baselines: the rivals that they are held against.
      axis: the column on the pictures' horizontal axis; none draws a row per rival.
    """

    contrast: str = "loss"
    methods: Sequence[str] = ("vagram", "vagram_mixed")
    baselines: Sequence[str] = BASELINES
    axis: str = ""


class Cell(NamedTuple):
    """One training.

    Attributes:
      values: columns to values' names.
      settings: as in `Axes`.
    """

    values: dict[str, str]
    settings: dict[str, str]


class Result(NamedTuple):
    """What a cell reached.

    Attributes:
      values: columns to values' names.
      finals: a final return per seed.
      summary: as `summary.summarise` gives it.
    """

    values: Mapping[str, str]
    finals: summary.Finals
    summary: Mapping[str, object]


def product(axes: Axes) -> list[Cell]:
    """Every combination of the values of some columns.

    Args:
      axes: where two columns have the same setting, the later one's counts.

    Returns:
      The cells.
    """
    cells = []
    for combination in itertools.product(*(axis.items() for axis in axes.values())):
        settings: dict[str, str] = {}
        for _, changes in combination:
            settings |= changes
        names = (name for name, _ in combination)
        cells.append(Cell(dict(zip(axes, names, strict=True)), settings))
    return cells


def losses(*names: str) -> dict[str, dict[str, str]]:
    """A column of losses.

    `vagram_mixed` is VaGraM, its weights scaled to a mean of one, with a fifth of
    squared error on normalised targets: a dimension without any weight drifts away, and
    takes the critics along. `mle_raw` and `mse_raw` are without normalised targets.

    Args:
      *names: registered losses, "sac", "vagram_mixed", "mle_raw" or "mse_raw".

    Returns:
      Names to settings.
    """
    return {name: _VARIANTS.get(name, {"loss": name}) for name in names}


def command(
    study: Study, cells: Callable[[str], Sequence[Cell]]
) -> Callable[[Plan], int]:
    """The function `run` of a study's file.

    Args:
      study: how its cells are read.
      cells: its cells, of a preset.

    Returns:
      `run` with the cells of the preset that is asked for.
    """
    return lambda plan: run(study, cells(plan.preset), plan)


def run(study: Study, cells: Sequence[Cell], plan: Plan) -> int:
    """Trains what isn't finished, then writes tables, pictures and verdict.

    Args:
      study: how cells are read.
      cells: the trainings.
      plan: what was asked.

    Returns:
      The exit status: of the first training that failed, if any did.

    Raises:
      ConfigError: a setting that is refused, before anything is trained.
    """
    maker = grid.Maker()
    entries = grid.by_program([entry_of(maker, cell, plan) for cell in cells])
    failures = grid.train(entries, maker.made, place=plan.place, kept=plan.kept)
    if failures or not devices.is_first():
        return failures[0] if failures else 0
    found = read(entries, Path(*plan.place))
    sentences = conclude(study, found, Path(*plan.place))
    write_record(plan, sentences, [entry.algorithm.loss for entry in entries])
    return 0


def entry_of(maker: grid.Maker, cell: Cell, plan: Plan) -> grid.Entry:
    """A cell as a checked run.

    Args:
      maker: of entries.
      cell: the training.
      plan: what was asked; it may say how many seeds, from where on.

    Returns:
      The entry.

    Raises:
      ConfigError: a setting that is refused.
      UsageError: the config file is missing or fails.
    """
    settings = dict(cell.settings)
    configs = flags.load(settings.pop("config"), *launch.CONFIGS)
    if plan.seeds:
        settings["num_seeds"] = str(plan.seeds)
    if plan.first_seed:
        settings["first_seed"] = str(plan.first_seed)
    return maker.entry(configs, settings, cell.values)


def read(entries: Sequence[grid.Entry], folder: Path) -> list[Result]:
    """What finished runs reached.

    Args:
      entries: which runs.
      folder: of the study.

    Returns:
      A result for each, in order.

    Raises:
      ResultsError: a run can't be read.
    """
    runs = [results.read_run(folder / entry.name) for entry in entries]
    floors = summary.floor_per_env(runs)
    summaries = summary.summarise(runs)
    return [
        Result(
            entry.values,
            summary.final_returns(run.metrics, floor=floors[summary.env_of(run)]),
            summaries[run.name],
        )
        for entry, run in zip(entries, runs, strict=True)
    ]


def conclude(study: Study, found: Sequence[Result], folder: Path) -> list[str]:
    """Writes the tables and the pictures.

    Args:
      study: how they are read.
      found: what the cells reached.
      folder: of the study.

    Returns:
      The verdict, in sentences.

    Raises:
      ResultsError: a file can't be written.
    """
    groups = grouped(study, found)
    sentences = []
    for method in study.methods:
        comparisons = [
            verdicts.against_strongest(
                {name: result.finals.values for name, result in rivals.items()},
                method=method,
                baselines=study.baselines,
                where=", ".join(f"{column} {value}" for column, value in group),
            )
            for group, rivals in groups.items()
            if method in rivals and set(study.baselines) & set(rivals)
        ]
        if comparisons:
            sentences += map(verdicts.sentence, comparisons)
            sentences.append(verdicts.overall(comparisons))
    files.write_rows(folder / "finals.csv", _finals_rows(found))
    files.write_rows(folder / "table.csv", _table_rows(study, groups))
    _draw(study, groups, folder)
    _draw_profiles(groups, folder)
    return sentences


def grouped(study: Study, found: Sequence[Result]) -> dict[tuple, dict[str, Result]]:
    """Rivals under the same conditions.

    Args:
      study: which column tells rivals apart.
      found: what the cells reached; a value of `ANY` stands for all others.

    Returns:
      Conditions, as pairs of column and value, to rivals by name.
    """

    def conditions(result):
        return [(c, v) for c, v in result.values.items() if c != study.contrast]

    kinds = dict.fromkeys(tuple(conditions(result)) for result in found)
    groups = {kind: {} for kind in kinds if all(value != ANY for _, value in kind)}
    for result in found:
        fixed = {pair for pair in conditions(result) if pair[1] != ANY}
        for kind, rivals in groups.items():
            if fixed <= set(kind):
                rivals[result.values[study.contrast]] = result
    return groups


def write_record(
    plan: Plan, sentences: Sequence[str], losses: Sequence[str] = ()
) -> None:
    """Writes `study.json` and prints the verdict.

    Args:
      plan: what was asked.
      sentences: the verdict.
      losses: what was trained, if anything was.

    Raises:
      ResultsError: the file can't be written.
    """
    folder = Path(*plan.place)
    asked = {"preset": plan.preset, "losses": sorted(set(losses))}
    record = results.new_record(asked, {"device": devices.describe()})
    began = datetime.datetime.fromtimestamp(plan.began, datetime.UTC)
    record["started"] = began.isoformat(timespec="seconds")
    record["seconds"] = round(time.time() - plan.began)
    files.write_json(folder / "study.json", {"verdict": list(sentences)} | record)
    print("\n".join(["", *sentences, f"written: {folder}"]))


def _finals_rows(found: Sequence[Result]) -> list[dict[str, object]]:
    return [
        _cells(result.values)
        | {"seed": int(seed), "final_return": float(value)}
        | {"diverged": int(seed in result.finals.diverged)}
        for result in found
        for seed, value in zip(result.finals.seeds, result.finals.values, strict=True)
    ]


def _cells(values: Mapping[str, str]) -> dict[str, object]:
    return {column: grid.cell(value) for column, value in values.items()}


def _table_rows(study: Study, groups) -> list[dict[str, object]]:
    """A row per rival and conditions, with each method's chance to be above it."""
    kept = ("iqm", "low", "high", "seeds", "diverged", "env_steps", "seconds")
    rows = []
    for group, rivals in groups.items():
        for name, result in rivals.items():
            row = _cells(dict(group)) | {study.contrast: name}
            row |= {key: result.summary[key] for key in kept}
            for method in study.methods:
                row |= _chance(method, name, rivals)
            rows.append(row)
    return rows


def _chance(method: str, name: str, rivals) -> dict[str, float | None]:
    """How likely a seed of the method is above one of the rival, as cells."""
    found = (None, None, None)
    if method in rivals and name != method:
        found = stats.probability_of_improvement(
            {"": rivals[method].finals.values}, {"": rivals[name].finals.values}
        )
    columns = (f"p_{method}", f"p_{method}_low", f"p_{method}_high")
    return dict(zip(columns, found, strict=True))


def _draw(study: Study, groups, folder: Path) -> None:
    """A picture for each set of conditions that the axis leaves over."""
    pictures: dict[str, dict[str, dict[float, np.ndarray]]] = {}
    for group, rivals in groups.items():
        others = [value for column, value in group if column != study.axis]
        points = pictures.setdefault("_".join(others) or "returns", {})
        x = float(dict(group)[study.axis]) if study.axis else 0.0
        for name, result in rivals.items():
            points.setdefault(name, {})[x] = result.finals.values
    for name, points in pictures.items():
        path = folder / f"{name}.png"
        if study.axis:
            title = f"Return against {study.axis}: {name}"
            plots.sweep(points, path, x_label=study.axis, title=title)
        else:
            rows = {rival: by_x[0.0] for rival, by_x in points.items()}
            plots.intervals(rows, path, title=name, reference=study.methods[0])


def _draw_profiles(groups, folder: Path) -> None:
    """Performance profiles over all settings, for rivals that stand in each of them."""
    common = set.intersection(*(set(rivals) for rivals in groups.values()))
    if len(groups) < 2 or not common:
        return
    scaled: dict[str, dict[str, np.ndarray]] = {}
    for group, rivals in groups.items():
        every = np.concatenate([r.finals.values for r in rivals.values()])
        low, range_ = every.min(), np.ptp(every) or 1.0
        where = ", ".join(value for _, value in group)
        for name in (name for name in rivals if name in common):
            values = (rivals[name].finals.values - low) / range_
            scaled.setdefault(name, {})[where] = values
    plots.performance_profiles(
        scaled,
        folder / "profiles.png",
        thresholds=np.linspace(0.0, 1.0, 101),
        x_label="final return: 0 the lowest, 1 the highest of all seeds in a setting",
    )
