"""Trains every combination of some settings, each with all of its seeds.

    python -m vagram_jax.cli.sweep --config=vagram_jax/cli/configs/pendulum.py \
      --grid="loss=vagram,mle;dynamics.hidden=(16,16),(64,64);distractors=0,10"

Runs that differ only in numbers that are traced share one program. What has finished is
skipped and what was interrupted goes on when the same command is given again. With
`--shard=0/4` to `--shard=3/4` four machines share the work; `--launcher=slurm` submits
that many as an array.
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

from vagram_jax import config
from vagram_jax.analysis import report, summary
from vagram_jax.cli import flags, grid, launch
from vagram_jax.run import devices
from vagram_jax.storage import files, results

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
    low, high = (len(found) * i // count for i in (number, number + 1))
    failures = grid.train(found[low:high], made, place=place, kept=kept)
    if devices.is_first():
        _write_table(Path(*place), found)
    return failures[0] if failures else 0


def entries(configs) -> tuple[list[grid.Entry], dict[str, object]]:
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
    maker = grid.Maker()
    # The loss stands in every name, in front.
    first = {"loss": configs[1].loss}
    found = [
        maker.entry(configs, values, first | values)
        for values in points(GRID.value or "")
    ]
    if len({entry.name for entry in found}) < len(found):
        raise config.ConfigError(f"--grid={GRID.value}: a value stands there twice")
    return grid.by_program(found), maker.made


def points(text: str) -> list[dict[str, str]]:
    """The combinations of a grid.

    Args:
      text: as `--grid` takes it.

    Returns:
      Keys to text, for each combination.

    Raises:
      ConfigError: it can't be read.
    """
    axes = {}
    for part in text.split(";"):
        key, equals, listed = (piece.strip() for piece in part.partition("="))
        values = _VALUE.findall(listed)
        rest = _VALUE.sub("", listed).replace(",", "").strip()
        if not key or not equals or not values or rest or key in axes:
            raise config.ConfigError(
                f"--grid={text}: {part!r}; accepted: KEY=VALUE,VALUE;KEY=..., each key "
                "once, a tuple as (16,16)"
            )
        axes[key] = [value.strip() for value in values]
    return [
        dict(zip(axes, combination, strict=True))
        for combination in itertools.product(*axes.values())
    ]


def _write_table(study: Path, found: list[grid.Entry]) -> None:
    """A row for each seed of each finished entry, also of other shards; the report."""
    rows = []
    for entry in found:
        if not results.is_finished(study / entry.name):
            continue
        run = results.read_run(study / entry.name)
        floors = summary.floor_per_env([run])
        finals = summary.final_returns(run.metrics, floor=floors[summary.env_of(run)])
        for seed, value in zip(finals.seeds, finals.values, strict=True):
            rows.append(
                {"run": entry.name}
                | {key: grid.cell(text) for key, text in entry.values.items()}
                | {"seed": int(seed), "final_return": float(value)}
                | {"diverged": int(seed in finals.diverged)}
            )
    done = len({row["run"] for row in rows})
    print(f"{done} of {len(found)} runs finished")
    if rows:
        files.write_rows(study / "sweep.csv", rows)
        print(f"table: {study / 'sweep.csv'}\nreport: {report.write_report(study)}")


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
    options = {key: grid.cell(text) for key, text in options.items()}
    study = launch.study("sweep")
    logs = Path(launch.RESULTS.value) / "logs"
    executor = submitit.AutoExecutor(folder=logs, cluster=LAUNCHER.value)
    executor.update_parameters(name=study, **options)
    again = [arg for arg in sys.argv[1:] if not arg.startswith("--launcher")]
    again = [arg for arg in again if not arg.startswith("--shard")]
    command = [sys.executable, "-m", "vagram_jax.cli.sweep", *again]
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


if __name__ == "__main__":
    flags.run(main, *launch.CONFIGS)
