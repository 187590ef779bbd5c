"""What the commands share: from configs to finished runs in a study's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vagram_jax import config, envs, training
from vagram_jax.analysis import report, summary
from vagram_jax.cli import flags
from vagram_jax.envs import EnvConfig
from vagram_jax.run import devices, runner, session
from vagram_jax.run.runner import RunConfig
from vagram_jax.storage import files, results
from vagram_jax.training import MBPOConfig

CONFIGS = (EnvConfig, MBPOConfig, RunConfig)
"""The configs of a training command, in one flat namespace of keys."""

RESULTS = flags.DEFINE_string("results", "results", "The folder of all studies.")
STUDY = flags.DEFINE_string("study", None, "Name of the study; the task's if none.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace runs that are there.")
RESUME = flags.DEFINE_bool("resume", False, "Go on with runs that are there.")
STRICT = flags.DEFINE_bool(
    "strict", False, "Refuse a damaged checkpoint; otherwise the one before is used."
)
BREAK_LOCK = flags.DEFINE_bool(
    "break_lock", False, "Take a run over from a process on another machine that died."
)
CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 1, "Epochs between two checkpoints; 0: only when a run ends."
)
SEED_MODE = flags.DEFINE_enum(
    "seed_mode", "vmap", devices.MODES, "Seeds side by side, or one after the other."
)
SEED_CHUNK = flags.DEFINE_integer(
    "seed_chunk", 0, "Train at most so many seeds at once; 0: all."
)
CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    None,
    "Devices of a CPU, which share the seeds; by default its cores.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Split seeds over the processes of a cluster."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; the cluster's own if none."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the cluster.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def keeping(num_lanes: int) -> session.Keeping:
    """Where runs train and how they are kept, as the flags say.

    To be called first: devices can't be asked for once JAX has computed anything.

    Args:
      num_lanes: seeds that could train at once.

    Returns:
      What `session.train_to_files` takes.

    Raises:
      ConfigError: flags that contradict, or a negative number.
      ValueError: the cluster can't be joined.
    """
    for flag in (CHECKPOINT_EVERY, SEED_CHUNK):
        if flag.value < 0:
            raise config.ConfigError(f"--{flag.name}={flag.value}; at least 0")
    if RESUME.value and OVERWRITE.value:
        raise config.ConfigError("--resume and --overwrite exclude each other")
    if CPU_DEVICES.value is not None and CPU_DEVICES.value < 1:
        raise config.ConfigError(f"--cpu_devices={CPU_DEVICES.value}; at least 1")
    if CPU_DEVICES.value or not DISTRIBUTED.value:
        devices.use_cpu(CPU_DEVICES.value, num_lanes=SEED_CHUNK.value or num_lanes)
    if DISTRIBUTED.value:
        devices.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    else:
        devices.share_compiled()
    return session.Keeping(
        layout=devices.Layout(SEED_MODE.value),
        seed_chunk=SEED_CHUNK.value,
        checkpoint_every=CHECKPOINT_EVERY.value,
        resume=RESUME.value,
        strict=STRICT.value,
        break_lock=BREAK_LOCK.value,
    )


def prepare(
    env_config: EnvConfig, algorithm: MBPOConfig, run: RunConfig, losses: list[str]
) -> tuple[Any, dict[str, MBPOConfig]]:
    """The environment, and for each loss its checked config, before anything compiles.

    Args:
      env_config: the task.
      algorithm: the algorithm; its loss is replaced by each of `losses`.
      run: how long, how many, how often.
      losses: registered names, or "sac" for plain SAC without a model.

    Returns:
      The environment, and names to configs in the order of `losses`.

    Raises:
      ConfigError: an unknown loss, one named twice, or settings that contradict.
      EnvError: the environment can't be made or trained on.
    """
    if not losses or len(set(losses)) < len(losses):
        raise config.ConfigError(
            f"--losses={','.join(losses)}: each loss once, and at least one"
        )
    env = envs.from_config(env_config)
    return env, {
        name: runner.check(run, with_loss(algorithm, name), env)[1] for name in losses
    }


def run_all(
    env: Any,
    algorithms: dict[str, MBPOConfig],
    run: RunConfig,
    env_config: EnvConfig,
    kept: session.Keeping,
) -> Path:
    """Trains one loss after the other, each with all of its seeds in one program.

    Args:
      env: from `prepare`.
      algorithms: from `prepare`.
      run: how long, how many, how often.
      env_config: the task, for the record.
      kept: from `keeping`.

    Returns:
      The study's folder, in the folder that `--results` names.

    Raises:
      ResultsError: a folder that can't be written or holds a run already.
    """
    place = (RESULTS.value, study(default_study(env_config)))
    if devices.is_first():
        for name in algorithms:
            changes = {"overwrite": OVERWRITE.value, "resume": RESUME.value}
            results.check_run(*place, name, **changes)
    for name, algorithm in algorithms.items():
        settings = settings_of(env_config, algorithm, run)
        if RESUME.value and results.is_finished(Path(*place) / name, settings):
            if devices.is_first():
                print(f"{name}: finished already")
            continue
        train_together(
            {name: algorithm}, run, env, env_config=env_config, place=place, kept=kept
        )
    return Path(*place)


def train_together(
    algorithms: dict[str, MBPOConfig],
    run: RunConfig,
    env: Any,
    *,
    env_config: EnvConfig,
    place: tuple[str, str],
    kept: session.Keeping,
) -> None:
    """Trains runs side by side in one program, and writes their summaries.

    Args:
      algorithms: names of runs to configs that differ in numbers only.
      run: how long, how many, how often.
      env: the environment.
      env_config: the task, for the record.
      place: the results folder and the name of the study.
      kept: where they train and how they are kept.

    Raises:
      ResultsError: a folder that can't be written or holds a run already.
      ValueError: a run that can't be resumed with these settings.
      RunError: they had to stop.
    """
    jobs = [
        session.Job(Path(*place) / name, env_config.env, algorithm)
        for name, algorithm in algorithms.items()
    ]
    folders = [job.folder for job in jobs]
    changes = {"overwrite": OVERWRITE.value, "resume": kept.resume}
    with session.owning(folders, break_lock=kept.break_lock):
        if devices.is_first():
            for job in jobs:
                settings = settings_of(env_config, job.config, run)
                results.create_run(
                    *place, job.folder.name, settings, on=_on(kept), **changes
                )
            count = len(jobs) * run.num_seeds
            names = ", ".join(algorithms)
            print(f"{names}: compiling and warming up {count} seeds", flush=True)
        session.train_to_files(run, jobs, env, keeping=kept)
        for folder in folders if devices.is_first() else ():
            finish(folder)


def finish(folder: Path) -> None:
    """Writes a run's summary; its being there says that the run has finished.

    Args:
      folder: of the run.

    Raises:
      ResultsError: a file can't be read or written.
    """
    found = results.read_run(folder)
    numbers = summary.summarise([found])[folder.name]
    numbers["diverged_at"] = {
        f"seed {row['seed']}": int(row["diverged_at"])
        for row in found.metrics
        if row["diverged_at"] is not None
    }
    files.write_json(folder / "summary.json", numbers)


def show(folder: Path, names: list[str]) -> int:
    """Prints the table of some runs of a study, and writes the study's report.

    Args:
      folder: of the study.
      names: of the runs in the table.

    Returns:
      The exit status: `flags.STATUS_DIVERGED` if all seeds of all runs diverged.

    Raises:
      ResultsError: a file can't be read or written.
    """
    if not devices.is_first():
        return 0
    page = report.write_report(folder)
    found = {run.name: run for run in results.read_runs(folder)}
    summaries = summary.summarise([found[name] for name in names])
    print(f"\n{summary.table(summaries)}")
    print("\n".join(report.verdict(summaries)))
    print(f"report: {page}")
    all_diverged = all(row["diverged"] == row["seeds"] for row in summaries.values())
    return flags.STATUS_DIVERGED if all_diverged else 0


def settings_of(
    env_config: EnvConfig, algorithm: MBPOConfig, run: RunConfig
) -> dict[str, Any]:
    """What a run's record says of its settings.

    Args:
      env_config: the task.
      algorithm: the algorithm.
      run: how long, how many, how often.

    Returns:
      All keys in one namespace, as in a config file.
    """
    configs = (envs.resolved(env_config), algorithm, run)
    env, algorithm, run = (config.to_dict(each) for each in configs)
    return env | algorithm | run


def _on(kept: session.Keeping) -> dict[str, Any]:
    """What a run's record says of where it runs."""
    layout = {"seed_mode": kept.layout.mode, "seed_chunk": kept.seed_chunk}
    return {"device": devices.describe(), "layout": layout}


def study(default: str) -> str:
    """The study that `--study` names.

    Args:
      default: its name if the flag isn't given; an empty one is refused as any other.

    Returns:
      The name.
    """
    return default if STUDY.value is None else STUDY.value


def default_study(env_config: EnvConfig) -> str:
    """The name of a study that was not named: that of the task.

    Args:
      env_config: the task.

    Returns:
      A name for `results.check_name`.
    """
    name = env_config.env.rpartition(":")[2]
    return f"{name}-{env_config.distractors}" if env_config.distractors else name


def with_loss(algorithm: MBPOConfig, name: str) -> MBPOConfig:
    """An algorithm with another loss.

    Args:
      algorithm: the algorithm.
      name: a registered loss, or "sac" for plain SAC without a model.

    Returns:
      The algorithm.
    """
    if name in ("sac", training.NO_MODEL):
        return algorithm.replace(loss=training.NO_MODEL, real_fraction=(1.0,))
    return algorithm.replace(loss=name)
