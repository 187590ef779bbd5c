"""Pendulum: the setting in which VaGraM does best, on fresh seeds.

The setting was found by search, so its own seeds would favor VaGraM. On the pendulum
the number of distractors, width, horizon, real fraction, steps and the fraction of
squared error in `vagram_mixed` were chosen on seeds 0 to 7; this study starts at seed
100. On cartpole distractors, horizon, steps, batches and action repeat were chosen on
seeds 0 to 3, and `cartpole_distraction` uses 100 to 103; this study starts at 200.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

DESIGN = Design()
_NUM_SEEDS = {
    ("pendulum", "quick"): "10",
    ("cartpole", "quick"): "8",
    ("pendulum", "full"): "30",
    ("cartpole", "full"): "30",
}
# `quick` trains one baseline of each kind: the stronger one in `baselines`.
_QUICK_LOSSES = {
    "pendulum": ("vagram", "vagram_mixed", "mle_raw", "mse_raw", "sac"),
    "cartpole": ("vagram", "mle_raw", "mse_normalized", "sac"),
}
_FIRST_SEED = {"pendulum": "100", "cartpole": "200"}


def labeled(preset: str, task: str = "pendulum") -> list[loop.Labeled]:
    """Every loss in the one setting."""
    seeds = {"num_seeds": _NUM_SEEDS[task, preset], "first_seed": _FIRST_SEED[task]}
    settings = tasks.small(task, preset) | seeds
    names = (*DESIGN.methods, *DESIGN.baselines)
    names = _QUICK_LOSSES[task] if preset == "quick" else names
    losses = loop.losses(*names, normalize=True)
    return loop.product({"task": {task: settings}, "loss": losses})


run = loop.command(DESIGN, labeled)
