r"""Searches for the settings with the best final return, with Optuna.

    vagram tune --config=pendulum --trials=32 \
      --space="sac.discount=0.9:0.999;fit.learning_rate=1e-4:1e-2:log;loss=vagram,mle"

The trials are asked for and trained several at a time; those that differ only in
numbers share one compiled program. The same command again goes on with a search that
was interrupted.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from vagram_jax import config
from vagram_jax.analysis import report, summary
from vagram_jax.analysis.study import Study
from vagram_jax.cli import configs, flags, train
from vagram_jax.cli import report as report_command
from vagram_jax.run import grid, loop, search, session
from vagram_jax.run.grid import RunSpec
from vagram_jax.run.vectorized import Programs
from vagram_jax.storage import files, results

SPACE = flags.DEFINE_string(
    "space", None, "KEY=LOW:HIGH;KEY=LOW:HIGH:log;KEY=VALUE,VALUE;..."
)
TRIALS = flags.DEFINE_integer("trials", 32, "Number of trials of the whole search.")
AT_ONCE = flags.DEFINE_integer(
    "at_once", 8, "Number of trials that are asked for and trained together."
)
STORAGE = flags.DEFINE_string(
    "storage", None, "URL of Optuna's storage; default: a file in the study's folder."
)


def set_by_flags() -> dict[str, str]:
    """The config keys that flags of this command set, with the names of the flags."""
    axes = search.parse_space(SPACE.value, _is_whole)
    return {axis.key: SPACE.name for axis in axes}


def main(env_config, algorithm, run_config) -> int:
    """Searches, then writes the table of all trials and the report.

    Returns:
      The exit status: that of a failure if all trials of a batch failed, else 0.

    Raises:
      ConfigError: the space, a number or another flag isn't accepted.
    """
    base, curves = (
        (env_config, algorithm, run_config),
        report_command.published_curves(),
    )
    options = _session_options(run_config)
    axes = search.parse_space(SPACE.value, _is_whole)
    _check_axes(base, axes)
    name = train.study_name(f"{grid.study_name(env_config)}-tune")
    folder = Path(train.RESULTS.value).resolve() / results.check_name(
        name, what="study"
    )
    with session.own_folders([folder], break_lock=options.break_lock):
        study = search.open_study(
            name,
            STORAGE.value or f"sqlite:///{folder / 'optuna.db'}",
            {"space": SPACE.value, **_spec(base, {}).settings},
            total_steps=run_config.total_steps,
        )
        status = _search(study, axes, base, folder, options)
        rows = search.table(study, axes, folder)
        _show(rows, axes, folder, run_config)
        if results.run_folders(folder):
            loaded = Study.load(folder)
            report_command.print_problems(loaded)
            print(f"report: {report.write_report(loaded, curves)}")
    return status


def _search(study, axes, base, folder: Path, options: session.SessionOptions) -> int:
    """Trains batches of trials until all have a result, or all of a batch failed."""
    compiled: dict[tuple[str, str, str], Programs] = {}
    numbers = {"num_trials": TRIALS.value, "at_once": AT_ONCE.value}
    while batch := search.next_batch(study, axes, **numbers):
        specs = _specs(base, batch)
        statuses = session.train_runs(
            specs,
            folder.parent,
            folder.name,
            options=options,
            keep_going=True,
            compiled=compiled,
            ends_early=search.Pruning(study, batch),
        )
        if not search.record(study, batch, folder):
            return statuses[0] if statuses else flags.STATUS_USAGE
    return 0


def _session_options(run_config: loop.RunConfig) -> session.SessionOptions:
    """The session options, after a check of the numbers that a search needs."""
    for flag in (TRIALS, AT_ONCE):
        if flag.value < 1:
            raise config.ConfigError(f"--{flag.name}={flag.value}; at least 1")
    if train.OVERWRITE.value or train.DISTRIBUTED.value:
        flag = train.OVERWRITE if train.OVERWRITE.value else train.DISTRIBUTED
        raise config.ConfigError(
            f"--{flag.name}: a search can't do that; leave it out"
            + (", and name another --study" if train.OVERWRITE.value else "")
        )
    chunk, seeds = train.SEED_CHUNK.value, run_config.num_seeds
    if chunk % seeds:
        raise config.ConfigError(
            f"--seed_chunk={chunk}: the seeds of a trial train together; 0 or a "
            f"multiple of num_seeds={seeds} is accepted"
        )
    options = train.session_options(AT_ONCE.value * seeds)
    return dataclasses.replace(options, resume=True)


def _is_whole(key: str) -> bool:
    """Whether a setting takes whole numbers only."""
    declared = configs.declared_type(key, configs.CONFIGS)
    return int in (declared, *get_args(declared))


def _check_axes(base, axes: Sequence[search.Axis]) -> None:
    """Checks each choice and both ends of each range, the other settings at an end.

    Raises:
      ConfigError: a value is refused.
    """
    lowest = {axis.key: axis.ends()[0] for axis in axes}
    points = [lowest | {axis.key: end} for axis in axes for end in axis.ends()]
    session.check_runs([_spec(base, point) for point in points])


def _spec(base, point: Mapping[str, str]) -> RunSpec:
    """The run of a trial; its name is still that of its labels."""
    base = configs.override(base, point)
    return grid.make_spec(base, {"loss": grid.loss_label(base[1])} | dict(point))


def _specs(base, batch: Mapping[str, search.Trial]) -> list[RunSpec]:
    """The runs of the trials whose settings don't contradict each other."""
    specs = []
    for name, trial in batch.items():
        try:
            spec = dataclasses.replace(_spec(base, trial.point), name=name)
            session.check_runs([spec])
        except config.ConfigError as error:
            print(f"{name}: {error}; the trial counts as failed", file=sys.stderr)
        else:
            specs.append(spec)
    return specs


def _show(
    rows: Sequence[Mapping[str, Any]],
    axes: Sequence[search.Axis],
    folder: Path,
    run_config: loop.RunConfig,
) -> None:
    """Writes and prints the table, and the command that trains the best settings."""
    keys = [axis.key for axis in axes]
    header = ["trial", "state", "return", *keys]
    table = [{key: row.get(key) for key in header} for row in rows]
    cells = [
        {k: grid.cell(v) if k in keys and v else v for k, v in row.items()}
        for row in table
    ]
    files.write_rows(folder / "tune.csv", cells)
    lines = [header]
    for row in table:
        text = summary.format_number(row["return"])
        values = (str(row[key] or "-") for key in keys)
        lines.append([str(row["trial"]), str(row["state"]), text, *values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())
    print(f"table: {folder / 'tune.csv'}")
    if table[0]["state"] != "complete":
        return
    # The best of many trials was lucky with its seeds; other seeds tell its return.
    seed = run_config.first_seed + run_config.num_seeds
    best = {key: table[0][key] for key in keys} | {"first_seed": seed}
    command = ["vagram", "train", *flags.config_arguments(**best)]
    command += [f"--results={train.RESULTS.value}", f"--study={folder.name}-best"]
    print(f"the best, on seeds that the search hasn't used:\n  {shlex.join(command)}")
