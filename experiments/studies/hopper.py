"""Hopper at real length: with and without distractors, large and small models.

The paper's claims: a small model suffices for VaGraM but not for MLE, and VaGraM learns
where distracting dimensions keep MLE from it.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long", "full")
DESIGN = Design()
_SMALL = {"long": "16,16", "full": "64,64"}
_COUNTS = {"long": (0, 15), "full": (0, 5, 10, 15)}


def labeled(preset: str) -> list[loop.Labeled]:
    """Every cell and loss, and plain SAC once for both models: it has none."""
    models = {"large": {}, "small": {"dynamics.hidden": _SMALL[preset]}}
    task = tasks.mujoco("hopper", preset, "distracted")
    columns = {
        "task": {"hopper": task},
        "distractors": {str(n): {"distractors": str(n)} for n in _COUNTS[preset]},
    }
    losses = loop.losses("vagram", "mle", "mse_normalized")
    return [
        *loop.product(columns | {"model": models, "loss": losses}),
        *loop.product(columns | {"loss": loop.losses("sac")}),
    ]


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
