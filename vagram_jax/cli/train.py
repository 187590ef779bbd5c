"""Trains one loss with all of its seeds in one program.

    python -m vagram_jax.cli.train --config=vagram_jax/cli/configs/pendulum.py \
      --config.loss=mle --config.num_seeds=8

Files are written as they come, into `results/<study>/<loss>/`.
"""

from __future__ import annotations

from vagram_jax import training
from vagram_jax.cli import flags, launch


def main(env_config, algorithm, run) -> int:
    """Trains, then prints the final return and writes the study's report.

    Args:
      env_config: the task.
      algorithm: the algorithm.
      run: how long, how many, how often.

    Returns:
      The exit status.
    """
    name = "sac" if algorithm.loss == training.NO_MODEL else algorithm.loss
    kept = launch.keeping(run.num_seeds)
    env, algorithms = launch.prepare(env_config, algorithm, run, [name])
    folder = launch.run_all(env, algorithms, run, env_config, kept)
    return launch.show(folder, [name])


if __name__ == "__main__":
    flags.run(main, *launch.CONFIGS)
