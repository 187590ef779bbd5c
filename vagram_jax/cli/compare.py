"""Compares model losses on one task: same seeds, one table, one report.

    python -m vagram_jax.cli.compare --config=vagram_jax/cli/configs/pendulum.py \
      --losses=vagram,mle,mse_normalized --config.num_seeds=8

Files are written as they come, into `results/<study>/<loss>/`.
"""

from __future__ import annotations

from vagram_jax.cli import flags, launch

LOSSES = flags.DEFINE_list(
    "losses",
    ["vagram", "mle", "mse_normalized"],
    "Losses to compare, by registered name; sac is plain SAC without a model.",
)


def main(env_config, algorithm, run) -> int:
    """Trains each loss, then prints the table and writes the report.

    Args:
      env_config: the task.
      algorithm: the algorithm; `--losses` says its losses.
      run: how long, how many, how often.

    Returns:
      The exit status.
    """
    kept = launch.keeping(run.num_seeds)
    env, algorithms = launch.prepare(env_config, algorithm, run, LOSSES.value)
    folder = launch.run_all(env, algorithms, run, env_config, kept)
    return launch.show(folder, list(algorithms))


if __name__ == "__main__":
    flags.run(main, *launch.CONFIGS)
