"""Compares losses on one task: same seeds, one table, one report.

    vagram compare --config=pendulum --losses=vagram,mle,mse_normalized,sac

Files are written as training goes on, to `results/<study>/<loss>/`.
"""

from __future__ import annotations

from pathlib import Path

from vagram_jax import config
from vagram_jax.cli import data, flags, train
from vagram_jax.cli import report as report_command
from vagram_jax.run import grid, session

LOSSES = flags.DEFINE_list(
    "losses",
    ["vagram", "mle", "mse_normalized", "sac"],
    "Losses to compare, by registered name; sac is plain SAC without a model.",
)


def set_by_flags() -> dict[str, str]:
    """The config keys that flags of this command set, with the names of the flags."""
    return {"loss": LOSSES.name, **data.set_by_flags()}


def main(env_config, algorithm, run_config) -> int:
    """Trains each loss, prints the table and writes the report.

    Returns:
      The exit status.

    Raises:
      ConfigError: no loss, or one twice, also under another name.
    """
    options = train.session_options(run_config.num_seeds)
    curves = report_command.published_curves()
    losses = LOSSES.value
    if not losses or len(set(losses)) < len(losses):
        raise config.ConfigError(
            f"--losses={','.join(losses)}: each loss once, and at least one"
        )
    start = data.load()
    specs = [
        grid.make_spec(
            (env_config, grid.with_loss(algorithm, loss), run_config),
            {"loss": loss},
            start,
        )
        for loss in losses
    ]
    grid.check_distinct(specs)
    study = train.study_name(grid.study_name(env_config))
    session.train_runs(specs, train.RESULTS.value, study, options=options)
    return train.show(Path(train.RESULTS.value) / study, losses, curves)
