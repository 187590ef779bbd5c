"""Compares losses on one task: same seeds, one table, one report.

    vagram compare --config=pendulum --losses=vagram,mle,mle_raw,mse_normalized,sac

`mle_raw` and `mse_raw` are likelihood and squared error on targets that are not
normalized, whatever the config sets; `sac` is plain SAC without a model. Files are
written as training goes on, to `results/<study>/<loss>/`.
"""

from __future__ import annotations

from pathlib import Path

from vagram_jax import config
from vagram_jax.cli import configs, data, flags, train
from vagram_jax.cli import report as report_command
from vagram_jax.run import grid, session

LOSSES = flags.DEFINE_list(
    "losses",
    ["vagram", "mle", "mle_raw", "mse_normalized", "sac"],
    f"Losses to compare, by registered name, {', '.join(grid.VARIANTS)} or sac.",
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
    losses = _losses(algorithm)
    if not losses or len(set(losses)) < len(losses):
        raise config.ConfigError(
            f"--losses={','.join(losses)}: each loss once, and at least one"
        )
    base, start = (env_config, algorithm, run_config), data.load()
    specs = [
        grid.make_spec(
            configs.override(base, grid.VARIANTS.get(loss, {"loss": loss})),
            {"loss": loss},
            start,
        )
        for loss in losses
    ]
    grid.check_distinct(specs)
    study = train.study_name(grid.study_name(env_config))
    session.train_runs(specs, train.RESULTS.value, study, options=options)
    return train.show(Path(train.RESULTS.value) / study, losses, curves)


def _losses(algorithm) -> list[str]:
    """The losses to compare; by default each once, also if no target is normalized."""
    model = algorithm.dynamics
    if LOSSES.present or model.normalize_state or model.normalize_reward:
        return LOSSES.value
    return [loss for loss in LOSSES.value if loss not in grid.VARIANTS]
