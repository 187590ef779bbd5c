"""Trains one loss with all of its seeds in one program.

    vagram train --config=pendulum --config.loss=mle --config.num_seeds=8
    vagram train --config=pendulum --data=transitions.npz --offline

Files are written as training goes on, to `results/<study>/<loss>/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vagram_jax import config
from vagram_jax.analysis import report, summary
from vagram_jax.analysis.study import Study
from vagram_jax.cli import data, flags
from vagram_jax.cli import report as report_command
from vagram_jax.run import cache, devices, grid, session
from vagram_jax.storage import results

RESULTS = flags.DEFINE_string("results", "results", "The folder of all studies.")
STUDY = flags.DEFINE_string("study", None, "Name of the study; default: the task's.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace runs that exist.")
RESUME = flags.DEFINE_bool("resume", False, "Continue runs that exist.")
STRICT = flags.DEFINE_bool(
    "strict", False, "Refuse a damaged checkpoint instead of using the previous one."
)
BREAK_LOCK = flags.DEFINE_bool(
    "break_lock", False, "Take the lock of a dead process on another machine."
)
CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 1, "Epochs between two checkpoints; 0: only when a run ends."
)
LOG = flags.DEFINE_list(
    "log", [], f"Loggers, by commas: {', '.join(results.LOGS)}; default: CSV only."
)
SEED_MODE = flags.DEFINE_enum(
    "seed_mode", "vmap", devices.MODES, "Seeds at the same time, or one by one."
)
SEED_CHUNK = flags.DEFINE_integer(
    "seed_chunk", 0, "Train at most this many seeds at the same time; 0: all."
)
CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Devices that a CPU is split into; default: its cores."
)
NO_CACHE = flags.DEFINE_bool(
    "no_cache", False, "Keep no compiled programs for later commands."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Split the seeds over the processes of a cluster."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; default: from the cluster."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this one, from 0.")


def set_by_flags() -> dict[str, str]:
    """The config keys that flags of this command set, with the names of the flags."""
    return data.set_by_flags()


def main(env_config, algorithm, run_config) -> int:
    """Trains, prints the table and writes the report; returns the exit status."""
    options = session_options(run_config.num_seeds)
    curves = report_command.published_curves()
    labels = {"loss": grid.loss_label(algorithm)}
    spec = grid.make_spec((env_config, algorithm, run_config), labels, data.load())
    study = study_name(grid.study_name(env_config))
    session.train_runs([spec], RESULTS.value, study, options=options)
    return show(Path(RESULTS.value) / study, [spec.name], curves)


def session_options(num_lanes: int) -> session.SessionOptions:
    """The session options that the flags set. Must be called before JAX is used.

    Args:
      num_lanes: number of seeds that could train at the same time.

    Returns:
      The options.

    Raises:
      ConfigError: flags that contradict each other, or a number out of range.
      ValueError: the cluster can't be joined.
    """
    for flag in (CHECKPOINT_EVERY, SEED_CHUNK):
        if flag.value < 0:
            raise config.ConfigError(f"--{flag.name}={flag.value}; at least 0")
    if not RESULTS.value:
        raise config.ConfigError("--results=: the name of a folder is accepted")
    for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID):
        if flag.value is not None and not DISTRIBUTED.value:
            raise config.ConfigError(
                f"--{flag.name}={flag.value}: only with --distributed; add it"
            )
    if RESUME.value and OVERWRITE.value:
        raise config.ConfigError("--resume and --overwrite exclude each other")
    if CPU_DEVICES.value is not None and CPU_DEVICES.value < 1:
        raise config.ConfigError(f"--cpu_devices={CPU_DEVICES.value}; at least 1")
    if CPU_DEVICES.value or not DISTRIBUTED.value:
        devices.use_cpu(CPU_DEVICES.value, num_lanes=SEED_CHUNK.value or num_lanes)
    if DISTRIBUTED.value:
        devices.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    else:
        cache.use(keep=not NO_CACHE.value)
    return session.SessionOptions(
        layout=devices.Layout(SEED_MODE.value),
        seed_chunk=SEED_CHUNK.value,
        checkpoint_every=CHECKPOINT_EVERY.value,
        resume=RESUME.value,
        overwrite=OVERWRITE.value,
        strict=STRICT.value,
        break_lock=BREAK_LOCK.value,
        log=tuple(LOG.value),
    )


def study_name(default: str) -> str:
    """The name that `--study` sets, even an empty one, which is then refused."""
    return default if STUDY.value is None else STUDY.value


def show(study: Path, names: Sequence[str], curves=None) -> int:
    """Prints the table of some runs of a study and writes the study's report.

    Args:
      study: folder of the study.
      names: names of the runs in the table.
      curves: published curves for the report, as from `cli.report.published_curves`.

    Returns:
      The exit status, `flags.STATUS_DIVERGED` if all seeds of these runs diverged.

    Raises:
      ResultsError: a file can't be read or written.
    """
    if not devices.is_first():
        return 0
    loaded = Study.load(study)
    report_command.print_problems(loaded)
    page = report.write_report(loaded, curves)
    summaries = {name: loaded.summaries[name] for name in names}
    print(f"\n{summary.table(summaries)}")
    print("\n".join(report.verdict(summaries)))
    print(f"report: {page}")
    all_diverged = all(row["diverged"] == row["seeds"] for row in summaries.values())
    return flags.STATUS_DIVERGED if all_diverged else 0
