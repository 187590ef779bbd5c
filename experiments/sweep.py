"""Trains every combination of some settings, each with all of its seeds.

    python -m experiments.sweep --config=experiments/configs/pendulum.py \
      --grid="loss=vagram,mle;model.hidden=(16,16),(64,64);distractors=0,10"

Runs that differ only in numbers that are traced share one program. What has finished is
skipped and what was interrupted goes on when the same command is given again. With
`--shard=0/4` to `--shard=3/4` four machines share the work; `--launcher=slurm` submits
that many as an array.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import sys
from pathlib import Path

import jax

from experiments import flags, launch
from vagram_jax import (
    checkpoint,
    config,
    devices,
    envs,
    files,
    report,
    results,
    runner,
    session,
    stats,
)
from vagram_jax.mbpo import MBPOConfig

GRID = flags.DEFINE_string(
    "grid", None, "KEY=VALUE,VALUE;KEY=...; a tuple is written (16,16)."
)
SHARD = flags.DEFINE_string("shard", "0/1", "I/N: the I-th of N parts, from 0.")
LAUNCHER = flags.DEFINE_enum(
    "launcher", "here", ["here", "slurm", "local"], "Where the shards run."
)
SHARDS = flags.DEFINE_integer("shards", 1, "How many jobs a launcher submits.")
LAUNCHER_OPTIONS = flags.DEFINE_list(
    "launcher_options", [], "For submitit: partition=gpu,gpus_per_node=1,timeout_min=60"
)

# A value, or several in parentheses.
_VALUE = re.compile(r"\([^()]*\)|[^,()]+")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One point of the grid.

    Attributes:
      name: of its run.
      values: the grid's keys to text.
      env_config: its task.
      algorithm: its algorithm, checked.
      run: how long, how many, how often.
    """

    name: str
    values: dict[str, str]
    env_config: envs.EnvConfig
    algorithm: MBPOConfig
    run: runner.RunConfig


def main(env_config, algorithm, run) -> int:
    """Trains what isn't finished of this shard, then writes the table.

    Args:
      env_config: the task, where the grid says nothing else.
      algorithm: the algorithm, where the grid says nothing else.
      run: how long, how many, how often.

    Returns:
      The exit status: of the first run that failed, if any did.
    """
    number, count = _shard()
    kept = launch.keeping(run.num_seeds * len(points(GRID.value or "")))
    found, made = entries((env_config, algorithm, run))
    if LAUNCHER.value != "here":
        return _submit()
    place = (launch.RESULTS.value, launch.study(_study(env_config)))
    kept = dataclasses.replace(kept, resume=not launch.OVERWRITE.value)
    low, high = (len(found) * i // count for i in (number, number + 1))
    failures = []
    for group in unfinished(found[low:high], Path(*place)):
        first = group[0]
        env = made[_text(first.env_config)]
        algorithms = {entry.name: entry.algorithm for entry in group}
        try:
            launch.train_together(
                algorithms,
                first.run,
                env,
                env_config=first.env_config,
                place=place,
                kept=kept,
            )
        except (session.RunError, devices.DeviceError) as fault:
            status = getattr(fault, "status", flags.STATUS_MEMORY)
            if status > 128:
                raise
            print(f"{', '.join(algorithms)}: {fault}", file=sys.stderr)
            failures.append(status)
    if devices.is_first():
        _write_table(Path(*place), found)
    return failures[0] if failures else 0


def entries(configs) -> tuple[list[Entry], dict[str, object]]:
    """All points of the grid, checked before anything runs.

    Args:
      configs: of the task, the algorithm and the run.

    Returns:
      The entries, those that share a program one after the other, and the environment
      of each task.

    Raises:
      ConfigError: a grid that can't be read, or a value that is refused.
      EnvError: an environment can't be made or trained on.
    """
    found, made = [], {}
    for values in points(GRID.value or ""):
        others = {key: text for key, text in values.items() if key != "loss"}
        env_config, algorithm, run = flags.override(configs, others)
        name = values.get("loss", algorithm.loss)
        if (task := _text(env_config)) not in made:
            made[task] = envs.from_config(env_config)
        algorithm = launch.with_loss(algorithm, name)
        run, algorithm = runner.check(run, algorithm, made[task])
        named = {"loss": name} | others
        found.append(Entry(run_name(named), values, env_config, algorithm, run))
    if len({entry.name for entry in found}) < len(found):
        raise config.ConfigError(f"--grid={GRID.value}: a value stands there twice")
    kinds = list(dict.fromkeys(_kind(entry) for entry in found))
    return sorted(found, key=lambda entry: kinds.index(_kind(entry))), made


def points(grid: str) -> list[dict[str, str]]:
    """The combinations of a grid.

    Args:
      grid: as `--grid` takes it.

    Returns:
      Keys to text, for each combination.

    Raises:
      ConfigError: it can't be read.
    """
    axes = {}
    for part in grid.split(";"):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        values = _VALUE.findall(text)
        rest = _VALUE.sub("", text).replace(",", "").strip()
        if not key or not equals or not values or rest or key in axes:
            raise config.ConfigError(
                f"--grid={grid}: {part!r}; accepted: KEY=VALUE,VALUE;KEY=..., each key "
                "once, a tuple as (16,16)"
            )
        axes[key] = [value.strip() for value in values]
    return [
        dict(zip(axes, combination, strict=True))
        for combination in itertools.product(*axes.values())
    ]


def run_name(values: dict[str, str]) -> str:
    """The name of a run, from its loss and the grid's values.

    Args:
      values: keys to text, the loss first.

    Returns:
      A name for `results.check_name`.
    """
    loss, *rest = values.items()
    parts = [loss[1], *(f"{key.rpartition('.')[2]}-{text}" for key, text in rest)]
    name = re.sub(r"[^A-Za-z0-9_.-]+", ".", "_".join(parts)).replace("-.", "-")
    name = name.strip(".-")
    if len(name) <= 64:
        return name
    # A digest keeps long names apart.
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
    return f"{name[:55]}-{digest}"


def unfinished(found: list[Entry], study: Path) -> list[list[Entry]]:
    """The entries that aren't finished, each group in one program.

    Args:
      found: entries.
      study: the folder of their runs.

    Returns:
      Entries that differ in traced numbers only and have come equally far.
    """
    together: dict[tuple, list[Entry]] = {}
    for entry in found:
        folder = study / entry.name
        settings = launch.settings_of(entry.env_config, entry.algorithm, entry.run)
        if not launch.OVERWRITE.value and results.is_finished(folder, settings):
            continue
        step = max(checkpoint.steps(folder), default=-1)
        together.setdefault((_kind(entry), step), []).append(entry)
    return list(together.values())


def _write_table(study: Path, found: list[Entry]) -> None:
    """A row for each seed of each finished entry, also of other shards; the report."""
    rows = []
    for entry in found:
        if not results.is_finished(study / entry.name):
            continue
        run = results.read_run(study / entry.name)
        floors = stats.floor_per_env([run])
        finals = stats.final_returns(run.metrics, floor=floors[stats.env_of(run)])
        for seed, value in zip(finals.seeds, finals.values, strict=True):
            rows.append(
                {"run": entry.name}
                | {key: _cell(text) for key, text in entry.values.items()}
                | {"seed": int(seed), "final_return": float(value)}
                | {"diverged": int(seed in finals.diverged)}
            )
    done = len({row["run"] for row in rows})
    print(f"{done} of {len(found)} runs finished")
    if rows:
        files.write_rows(study / "sweep.csv", rows)
        print(f"table: {study / 'sweep.csv'}\nreport: {report.write_report(study)}")


def _cell(text: str) -> str | float:
    """A value as a cell: a number where it is one."""
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def _shard() -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", SHARD.value)
    number, count = map(int, match.groups()) if match else (0, 0)
    if number >= count:
        raise config.ConfigError(f"--shard={SHARD.value}; I/N with I from 0 to N-1")
    return number, count


def _submit() -> int:
    """Submits the shards of this very command as an array of jobs."""
    try:
        import submitit
    except ImportError:
        raise config.ConfigError(
            f"--launcher={LAUNCHER.value}: submitit is missing; pip install "
            "vagram_jax[slurm]"
        ) from None
    options = dict(option.partition("=")[::2] for option in LAUNCHER_OPTIONS.value)
    options = {key: _cell(text) for key, text in options.items()}
    study = launch.study("sweep")
    logs = Path(launch.RESULTS.value) / "logs"
    executor = submitit.AutoExecutor(folder=logs, cluster=LAUNCHER.value)
    executor.update_parameters(name=study, **options)
    again = [arg for arg in sys.argv[1:] if not arg.startswith("--launcher")]
    again = [arg for arg in again if not arg.startswith("--shard")]
    command = [sys.executable, "-m", "experiments.sweep", *again]
    with executor.batch():
        jobs = [
            executor.submit(
                submitit.helpers.CommandFunction(
                    [*command, f"--shard={i}/{SHARDS.value}"]
                )
            )
            for i in range(SHARDS.value)
        ]
    print(f"submitted {', '.join(job.job_id for job in jobs)}; logs: {logs}")
    return 0


def _study(env_config) -> str:
    return f"{launch.default_study(env_config)}-sweep"


def _kind(entry: Entry) -> tuple:
    """What entries of one program have in common: all but traced numbers."""
    shapes = jax.tree.structure(entry.algorithm)
    return _text(entry.env_config), _text(entry.run), shapes


def _text(one) -> str:
    """A config as text, to tell equal ones."""
    return json.dumps(config.to_dict(one), sort_keys=True)


if __name__ == "__main__":
    flags.run(main, *launch.CONFIGS)
