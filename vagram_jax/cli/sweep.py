r"""Trains every combination of some settings, each with all of its seeds.

    vagram sweep --config=pendulum \
      --grid="loss=vagram,mle;dynamics.hidden=(16,16),(64,64);distractors=0,10"

Runs that differ only in numbers share one compiled program. The same command again
skips finished runs and resumes interrupted ones. `--shard=0/4` to `--shard=3/4` split
the runs over four machines; `--launcher=slurm --shards=4` submits the four as an array.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vagram_jax import config
from vagram_jax.analysis import report
from vagram_jax.analysis.study import Study
from vagram_jax.cli import configs, data, flags, jobs, train
from vagram_jax.cli import report as report_command
from vagram_jax.run import devices, grid, session
from vagram_jax.run.grid import RunSpec
from vagram_jax.storage import files, results

GRID = flags.DEFINE_string(
    "grid", None, "KEY=VALUE,VALUE;KEY=...; a tuple is written (16,16)."
)
SHARD = flags.DEFINE_string("shard", "0/1", "I/N: the I-th of N parts, from 0.")
LAUNCHER = flags.DEFINE_enum(
    "launcher", "here", ["here", "slurm", "local"], "Where the shards run."
)
SHARDS = flags.DEFINE_integer("shards", 1, "Number of jobs that a launcher submits.")
LAUNCHER_OPTIONS = flags.DEFINE_list(
    "launcher_options",
    [],
    "For submitit: slurm_partition=gpu,gpus_per_node=1,timeout_min=60",
)

# A job whose time is over is queued again so many times.
_MAX_TIMEOUTS = 20
# Processes of this machine end after a year, where submitit's default is five minutes.
_LOCAL_MINUTES = 365 * 24 * 60


def set_by_flags() -> dict[str, str]:
    """The config keys that flags of this command set, with the names of the flags."""
    keys = {key: GRID.name for point in points(GRID.value) for key in point}
    return data.set_by_flags() | keys


def main(env_config, algorithm, run_config) -> int:
    """Trains the runs of this shard, then writes the table of all runs.

    Returns:
      The exit status of the first run that failed, 0 without one.
    """
    if SHARDS.value < 1:
        raise config.ConfigError(f"--shards={SHARDS.value}; at least 1")
    (number, count), curves = _shard(), report_command.published_curves()
    options = train.session_options(run_config.num_seeds * len(points(GRID.value)))
    specs = specs_of_grid((env_config, algorithm, run_config))
    if count > 1 or LAUNCHER.value != "here":
        session.check_runs(specs)  # each shard would check only its own runs
    if LAUNCHER.value != "here":
        return _submit(options)
    study = train.study_name(f"{grid.study_name(env_config)}-sweep")
    root = Path(train.RESULTS.value).resolve()
    low, high = (len(specs) * i // count for i in (number, number + 1))
    statuses = session.train_runs(
        specs[low:high],
        root,
        study,
        options=dataclasses.replace(options, resume=not options.overwrite),
        keep_going=True,
    )
    if devices.is_first():
        _write_table(root / study, specs, curves)
    return statuses[0] if statuses else 0


def specs_of_grid(base) -> list[RunSpec]:
    """The runs of the grid; those that share a program are neighbors.

    Args:
      base: configs of the task, the algorithm and the run, with the values of keys that
        aren't in the grid.

    Returns:
      The runs.

    Raises:
      ConfigError: the grid can't be read, or a value is refused.
    """
    # The loss comes first in every name.
    loss = {"loss": grid.loss_label(base[1])}
    grid_points = points(GRID.value)
    start = data.load(grid_points[0])
    specs = [
        grid.make_spec(configs.override(base, point), loss | point, start)
        for point in grid_points
    ]
    if len({spec.name for spec in specs}) < len(specs):
        raise config.ConfigError(f"--grid={GRID.value}: a value occurs twice")
    grid.check_distinct(specs)
    return grid.by_program(specs)


def points(text: str | None) -> list[dict[str, str]]:
    """The combinations of a grid.

    Args:
      text: as `--grid` takes it.

    Returns:
      Keys to text, for each combination.

    Raises:
      ConfigError: the text can't be read.
    """
    axes = {}
    for part in (text or "").split(";"):
        key, equals, listed = (piece.strip() for piece in part.partition("="))
        values = grid.values(listed)
        if not key or not equals or not values or key in axes:
            raise config.ConfigError(
                f"--grid={text or ''}: {part!r}; KEY=VALUE,VALUE;KEY=... is accepted, "
                "each key once, a tuple as (16,16)"
            )
        axes[key] = values
    return [
        dict(zip(axes, combination, strict=True))
        for combination in itertools.product(*axes.values())
    ]


def _write_table(folder: Path, specs: Sequence[RunSpec], curves) -> None:
    """Writes a row per seed of each finished run of any shard, and the report."""
    names = [spec.name for spec in specs if results.is_finished(folder / spec.name)]
    print(f"{len(names)} of {len(specs)} runs finished")
    if not names:
        return
    study = Study.load(folder)
    report_command.print_problems(study)
    by_name = {result.name: result for result in study.results}
    table = [
        {"run": name} | row for name in names for row in study.seed_rows(by_name[name])
    ]
    files.write_rows(folder / "sweep.csv", table)
    print(
        f"table: {folder / 'sweep.csv'}\nreport: {report.write_report(study, curves)}"
    )


def _shard() -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", SHARD.value)
    number, count = map(int, match.groups()) if match else (0, 0)
    if number >= count:
        raise config.ConfigError(
            f"--shard={SHARD.value}; I/N with I from 0 to N-1 is accepted"
        )
    return number, count


def _submit(options: session.SessionOptions) -> int:
    """Submits the shards of this command as an array of jobs."""
    if options.overwrite:
        raise config.ConfigError(
            f"--overwrite: with --launcher={LAUNCHER.value}, a job that is queued "
            "again would start anew; set another --study, or remove the folder"
        )
    logs = Path(train.RESULTS.value) / "logs"
    executor = _executor(logs)
    again = [arg for arg in sys.argv[1:] if not arg.startswith("--launcher")]
    again = [arg for arg in again if not arg.startswith("--shard")]
    command = [sys.executable, "-m", "vagram_jax", *again]
    with executor.batch():
        submitted = [
            executor.submit(jobs.Job([*command, f"--shard={i}/{SHARDS.value}"]))
            for i in range(SHARDS.value)
        ]
    print(f"submitted {', '.join(job.job_id for job in submitted)}; logs: {logs}")
    return 0


def _executor(logs: Path):
    """The executor of submitit that `--launcher` and its options ask for."""
    try:
        import submitit
    except ImportError:
        raise config.ConfigError(
            f"--launcher={LAUNCHER.value}: submitit is missing; pip install "
            "vagram_jax[slurm]"
        ) from None
    cluster = LAUNCHER.value
    pairs = [option.partition("=") for option in LAUNCHER_OPTIONS.value]
    options = {key: grid.cell(text) for key, _, text in pairs}
    if cluster == "local":
        options = {"timeout_min": _LOCAL_MINUTES} | options
    elif not {"timeout_min", "slurm_time"} & set(options):
        raise config.ConfigError(
            f"--launcher={cluster}: without a time limit submitit asks for 5 minutes; "
            "set --launcher_options=timeout_min=MINUTES"
        )
    timeouts = {f"{cluster}_max_num_timeout": _MAX_TIMEOUTS}
    try:
        executor = submitit.AutoExecutor(logs, cluster=cluster, **timeouts)
        executor.update_parameters(name=train.study_name("sweep"), **options)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        given = ",".join(LAUNCHER_OPTIONS.value)
        raise config.ConfigError(
            f"--launcher={cluster} --launcher_options={given}: {error}"
        ) from error
    return executor
