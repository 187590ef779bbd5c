"""Trains the runs of a study and writes its tables, figures and verdict.

A study states labeled settings: `(labels, settings)`. The labels tell a run from the
other runs of the study and are the columns of its tables. The settings are dotted keys
of a config, and `config`, which names the config that they change.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vagram_jax.analysis import plots, published, training
from vagram_jax.analysis.study import Design, Study
from vagram_jax.cli import configs
from vagram_jax.run import devices, grid, session
from vagram_jax.run.grid import RunSpec
from vagram_jax.storage import files, records

Settings = Mapping[str, str]
Labeled = tuple[dict[str, str], dict[str, str]]

PUBLISHED = Path(__file__).parents[2] / "results" / "published_curves.csv"
"""Learning curves of others on Gymnasium's tasks."""

_MIXED = {
    "loss": "vagram",
    "weights.gradient_coef": "0.8",
    "weights.mse_coef": "0.2",
    "weights.mse_normalized": "true",
    "weights.normalize": "true",
}
RAW, NORMALIZED = grid.RAW_TARGETS, dict.fromkeys(grid.RAW_TARGETS, "true")
"""Settings of a model whose targets are not normalized, or are."""

_VARIANTS: Mapping[str, Settings] = {**grid.VARIANTS, "vagram_mixed": _MIXED}


def losses(*names: str, normalize: bool = False) -> dict[str, Settings]:
    """The settings of some losses.

    `vagram_mixed` is four fifths VaGraM, with weights of mean one, and one fifth
    squared error on normalized targets: without it, the model's error is unbounded in
    dimensions of no weight, and imagined states drift there. `mle_raw` and `mse_raw`
    don't normalize the targets.

    Args:
      *names: registered losses, "sac", "vagram_mixed", "mle_raw" or "mse_raw".
      normalize: scale the weights of `vagram` to a mean of one.

    Returns:
      Names to settings.
    """
    settings = {name: _VARIANTS.get(name, {"loss": name}) for name in names}
    if normalize and "vagram" in settings:
        settings["vagram"] = {"loss": "vagram", "weights.normalize": "true"}
    return settings


def product(columns: Mapping[str, Mapping[str, Settings]]) -> list[Labeled]:
    """Every combination of the values of some columns.

    Args:
      columns: a column to its values to their settings. Where two columns have the same
        setting, the later column counts.

    Returns:
      Labels and settings of each combination.
    """
    labeled = []
    for combination in itertools.product(
        *(values.items() for values in columns.values())
    ):
        labels = dict(zip(columns, (value for value, _ in combination), strict=True))
        settings: dict[str, str] = {}
        for _, changes in combination:
            settings |= changes
        labeled.append((labels, settings))
    return labeled


def command(
    design: Design,
    labeled: Callable[[str], Sequence[Labeled]],
    against: Path | None = None,
) -> Callable[..., int]:
    """The function `run` of a study that trains runs.

    Args:
      design: how the runs are compared.
      labeled: a preset to the labels and settings of the runs.
      against: a file of published learning curves; with one, the study also has its
        own in `curves.csv` and beside those in `curves.png`, where the task is the
        same, and in `errors.csv` what its models get wrong.

    Returns:
      The function.
    """
    return functools.partial(run, design, labeled, against=against)


def run(
    design: Design,
    labeled: Callable[[str], Sequence[Labeled]],
    preset: str,
    folder: Path,
    *,
    options: session.SessionOptions,
    num_seeds: int | None = None,
    first_seed: int | None = None,
    against: Path | None = None,
) -> int:
    """Trains the runs that aren't finished, then writes the study.

    Args:
      design: how the runs are compared.
      labeled: a preset to the labels and settings of the runs.
      preset: "quick", "long" or "full".
      folder: of the study.
      options: where and how the runs train.
      num_seeds: None takes the preset's number.
      first_seed: None takes the preset's first seed.
      against: as for `command`.

    Returns:
      The exit status: of the first run that failed, if any did.

    Raises:
      ConfigError: a setting is refused, before anything is trained.
    """
    began = time.time()
    specs = make_specs(labeled(preset), num_seeds, first_seed)
    record = new_record(preset, [spec.algorithm.loss for spec in specs])
    if devices.is_first():
        started = record | {"design": dataclasses.asdict(design)}
        files.write_json(folder / "study.json", started)
    failures = session.train_runs(
        specs,
        str(folder.parent),
        folder.name,
        options=dataclasses.replace(options, resume=not options.overwrite),
        keep_going=True,
    )
    if failures or not devices.is_first():
        return failures[0] if failures else 0
    study = dataclasses.replace(Study.load(folder), record=record)
    finish(study, began)
    if against is not None:
        write_details(study, against)
    return 0


def write_details(study: Study, against: Path) -> None:
    """Writes learning curves, draws them beside published ones, and writes errors.

    Args:
      study: with its runs.
      against: a file of published learning curves.

    Raises:
      ResultsError: a file can't be read or written.
    """
    others = published.load(against)
    plots.learning_curves(study.evaluated, study.folder / "curves.png", against=others)
    columns = {label: None for result in study.results for label in result.labels}
    labels = {result.name: columns | dict(result.labels) for result in study.results}
    curves = [
        labels[run.name] | {x: row[x] for x in ("seed", "env_steps", "return")}
        for run in study.evaluated
        for row in run.metrics
    ]
    files.write_rows(study.folder / "curves.csv", curves)
    errors = [
        labels[run.name] | training.errors(run) for run in study.evaluated if run.model
    ]
    if errors:
        files.write_rows(study.folder / "errors.csv", errors)


def new_record(preset: str, losses: Sequence[str]) -> dict[str, Any]:
    """The record of a study that starts now.

    Args:
      preset: "quick", "long" or "full".
      losses: the losses that are trained.

    Returns:
      The preset, versions, device, command, start and revision.
    """
    config = {"preset": preset, "losses": sorted(set(losses))}
    return records.new(config, on={"device": devices.describe()}, labels={})


def finish(study: Study, began: float, more: Sequence[str] = (), **write: bool) -> None:
    """Writes a study and prints its verdict.

    Args:
      study: the study.
      began: when it was started, by `time.time`, in s.
      more: sentences that are added to the verdict.
      **write: options of `Study.write`.

    Raises:
      ResultsError: a file can't be written.
    """
    record = dict(study.record) | {"seconds": round(time.time() - began)}
    if (
        study.runs
    ):  # the study may have been interrupted, and its runs were not repeated
        times = {name: row["seconds"] for name, row in study.summaries.items()}
        record["run_seconds"] = {k: round(s) for k, s in times.items() if s is not None}
    verdict = dataclasses.replace(study, record=record).write(more=more, **write)
    print("\n".join(["", *verdict, f"written: {study.folder}"]))


def make_configs(settings: Settings) -> tuple[Any, Any, Any]:
    """The configs of one run.

    Args:
      settings: dotted keys to text; `config` names the config that they change.

    Returns:
      The configs of the environment, the algorithm and the run.

    Raises:
      ConfigError: a setting is refused.
    """
    changes = {**settings}
    return configs.load(changes.pop("config"), overrides=changes)


def make_specs(
    labeled: Sequence[Labeled], num_seeds: int | None, first_seed: int | None
) -> list[RunSpec]:
    """Makes the runs of a study; those that share a program are neighbors.

    Args:
      labeled: labels and settings of each run.
      num_seeds: None keeps the number in the settings.
      first_seed: None keeps the seed in the settings.

    Raises:
      ConfigError: a setting is refused.
    """
    seeds = {"num_seeds": num_seeds, "first_seed": first_seed}
    seeds = {key: str(number) for key, number in seeds.items() if number is not None}
    return grid.by_program(
        [
            grid.make_spec(make_configs({**settings, **seeds}), labels)
            for labels, settings in labeled
        ]
    )
