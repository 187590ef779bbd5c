"""What the commands share: from configs to finished runs in a study's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from experiments import flags
from vagram_jax import config, envs, files, mbpo, report, results, runner, stats
from vagram_jax.envs import EnvConfig
from vagram_jax.mbpo import MBPOConfig
from vagram_jax.runner import RunConfig

CONFIGS = (EnvConfig, MBPOConfig, RunConfig)
"""The configs of a training command, in one flat namespace of keys."""

RESULTS = flags.DEFINE_string("results", "results", "The folder of all studies.")
STUDY = flags.DEFINE_string("study", None, "Name of the study; the task's if none.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace runs that are there.")


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
        name: runner.check(run, _with_loss(algorithm, name), env)[1] for name in losses
    }


def run_all(
    env: Any, algorithms: dict[str, MBPOConfig], run: RunConfig, env_config: EnvConfig
) -> Path:
    """Trains one loss after the other, each with all of its seeds in one program.

    Args:
      env: from `prepare`.
      algorithms: from `prepare`.
      run: how long, how many, how often.
      env_config: the task, for the record.

    Returns:
      The study's folder, in the folder that `--results` names.

    Raises:
      ResultsError: a folder that can't be written or holds a run already.
    """
    place = (RESULTS.value, STUDY.value or _default_study(env_config))
    for name in algorithms:
        results.check_run(*place, name, overwrite=OVERWRITE.value)
    for name, algorithm in algorithms.items():
        settings = [config.to_dict(c) for c in (env_config, algorithm, run)]
        folder = results.create_run(
            *place,
            name,
            settings[0] | settings[1] | settings[2],
            device=device(),
            overwrite=OVERWRITE.value,
        )
        print(f"{name}: compiling and warming up {run.num_seeds} seeds", flush=True)
        diverged = runner.train_to_files(
            run, algorithm, env, folder=folder, env_name=env_config.env
        )
        summary = stats.summarise([results.read_run(folder)])[name]
        # Written last: it says that the run has finished.
        files.write_json(
            folder / "summary.json", summary | {"diverged_at": _named(diverged)}
        )
    return folder.parent


def show(folder: Path, names: list[str]) -> None:
    """Prints the table of some runs of a study, and writes the study's report.

    Args:
      folder: of the study.
      names: of the runs in the table.

    Raises:
      ResultsError: a file can't be read or written.
    """
    page = report.write_report(folder)
    found = {run.name: run for run in results.read_runs(folder)}
    summary = stats.summarise([found[name] for name in names])
    print(f"\n{stats.table(summary)}")
    print("\n".join(report.verdict(summary)))
    print(f"report: {page}")


def device() -> str:
    """What programs run on, in words.

    Returns:
      Number and kind of the devices.
    """
    kind = jax.devices()[0]
    return f"{jax.local_device_count()} x {kind.device_kind} ({kind.platform})"


def _default_study(env_config: EnvConfig) -> str:
    """The name of a study that was not named: that of the task."""
    name = env_config.env.rpartition(":")[2]
    return f"{name}-{env_config.distractors}" if env_config.distractors else name


def _with_loss(algorithm: MBPOConfig, name: str) -> MBPOConfig:
    if name in ("sac", mbpo.NO_MODEL):
        return algorithm.replace(loss=mbpo.NO_MODEL, real_fraction=(1.0,))
    return algorithm.replace(loss=name)


def _named(diverged: dict[int, int]) -> dict[str, int]:
    return {f"seed {seed}": step for seed, step in diverged.items()}
