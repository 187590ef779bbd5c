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

from vagram_jax.analysis.study import Design, Study
from vagram_jax.cli import flags, grid, launch
from vagram_jax.run import devices, session
from vagram_jax.storage import files, results

Settings = Mapping[str, str]
Labeled = tuple[dict[str, str], dict[str, str]]

_MIXED = {
    "loss": "vagram",
    "weights.gradient_coef": "0.8",
    "weights.mse_coef": "0.2",
    "weights.mse_normalized": "true",
    "weights.normalize": "true",
}
_VARIANTS = {
    "vagram_mixed": _MIXED,
    "mle_raw": {"loss": "mle", "dynamics.normalize_targets": "false"},
    "mse_raw": {"loss": "mse", "dynamics.normalize_targets": "false"},
}


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
    design: Design, labeled: Callable[[str], Sequence[Labeled]]
) -> Callable[..., int]:
    """The function `run` of a study that trains runs.

    Args:
      design: how the runs are compared.
      labeled: a preset to the labels and settings of the runs.

    Returns:
      The function.
    """
    return functools.partial(run, design, labeled)


def run(
    design: Design,
    labeled: Callable[[str], Sequence[Labeled]],
    preset: str,
    folder: Path,
    *,
    options: session.Keeping,
    num_seeds: int | None = None,
    first_seed: int | None = None,
) -> int:
    """Trains the runs that aren't finished, then writes the study.

    Args:
      design: how the runs are compared.
      labeled: a preset to the labels and settings of the runs.
      preset: "quick" or "full".
      folder: of the study.
      options: where the runs train and when they are saved.
      num_seeds: None takes the preset's number.
      first_seed: None takes the preset's first seed.

    Returns:
      The exit status: of the first run that failed, if any did.

    Raises:
      ConfigError: a setting is refused, before anything is trained.
    """
    began = time.time()
    specs, environments = make_specs(labeled(preset), num_seeds, first_seed)
    record = new_record(preset, [spec.algorithm.loss for spec in specs])
    if devices.is_first():
        started = record | {"design": dataclasses.asdict(design)}
        files.write_json(folder / "study.json", started)
    failures = _train(specs, environments, folder, options)
    if failures or not devices.is_first():
        return failures[0] if failures else 0
    study = dataclasses.replace(Study.load(folder), record=record)
    finish(study, began)
    return 0


def new_record(preset: str, losses: Sequence[str]) -> dict[str, Any]:
    """The record of a study that starts now.

    Args:
      preset: "quick" or "full".
      losses: the losses that are trained.

    Returns:
      The preset, versions, device, command, start and revision.
    """
    config = {"preset": preset, "losses": sorted(set(losses))}
    return results.new_record(config, {"device": devices.describe()})


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
    base, changes = _base(settings)
    loss = changes.pop("loss", None)
    env_config, algorithm, run_config = flags.override(base, changes)
    if loss:
        algorithm = launch.with_loss(algorithm, loss)
    return env_config, algorithm, run_config


def make_specs(
    labeled: Sequence[Labeled], num_seeds: int | None, first_seed: int | None
) -> tuple[list[grid.Entry], dict[str, Any]]:
    """Checks the settings of runs.

    Args:
      labeled: labels and settings of each run.
      num_seeds: None keeps the number in the settings.
      first_seed: None keeps the seed in the settings.

    Returns:
      The runs, those that share a program one after the other, and their environments.

    Raises:
      ConfigError: a setting is refused.
    """
    seeds = {"num_seeds": num_seeds, "first_seed": first_seed}
    seeds = {key: str(number) for key, number in seeds.items() if number is not None}
    maker = grid.Maker()
    specs = []
    for labels, settings in labeled:
        base, changes = _base({**settings, **seeds})
        specs.append(maker.entry(base, changes, labels))
    return grid.by_program(specs), maker.made


# What follows is the only contact with how runs are trained and configs are found.


def _train(specs, environments, folder: Path, options: session.Keeping) -> list[int]:
    """Trains what isn't finished, records labels; returns the statuses of failures."""
    place = (str(folder.parent), folder.name)
    failures = grid.train(specs, environments, place=place, kept=options)
    for spec in specs if devices.is_first() and not failures else ():
        path = folder / spec.name / "config.json"
        files.write_json(path, files.read_json(path) | {"labels": dict(spec.values)})
    return failures


def _base(settings: Settings) -> tuple[tuple[Any, ...], dict[str, str]]:
    """The named config, and the settings that change it."""
    changes = dict(settings)
    name, _, variant = changes.pop("config").partition(":")
    if not name.endswith(".py"):
        name = f"vagram_jax/cli/configs/{name}.py"
    path = f"{name}:{variant}" if variant else name
    return flags.load(path, *launch.CONFIGS), _with_old_keys(changes)


def _with_old_keys(settings: dict[str, str]) -> dict[str, str]:
    """The settings under the keys that configs have had so far."""
    if "weights.gradient_coef" in settings:
        settings["weights.gradient_share"] = settings.pop("weights.gradient_coef")
        settings.pop("weights.mse_coef", None)
    if settings.pop("weights.mse_normalized", None) == "true":
        settings["weights.mixed_with"] = "mse_normalized"
    for key in ("gradients.at", "gradients.clip_quantile"):
        if key in settings:
            old = key.replace("gradients.at", "weights.gradient_at")
            settings[old.replace("gradients.", "weights.")] = settings.pop(key)
    return settings
