"""Pendulum: distracting dimensions of ten times the scale, on fresh seeds.

Of the settings of the small tasks it is the one in which VaGraM is furthest above the
baselines (`distractor_scale`).
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

DESIGN = Design()
_NUM_SEEDS = {"quick": "8", "full": "30"}
_LOSSES = ("vagram", "vagram_mixed", "mle", "mle_raw", "mse_normalized", "sac")


def labeled(preset: str) -> list[loop.Labeled]:
    """Every loss in the one setting."""
    settings = tasks.small("pendulum", preset) | {
        "distractor_scale": "10.0",
        "num_seeds": _NUM_SEEDS[preset],
        "first_seed": "200",
    }
    losses = loop.losses(*_LOSSES, normalize=True)
    return loop.product({"task": {"pendulum": settings}, "loss": losses})


run = loop.command(DESIGN, labeled)
