"""Hopper at real length: with and without distractors, large and small models.

The paper's claims: a small model suffices for VaGraM but not for MLE, and VaGraM learns
where distracting dimensions keep MLE from it.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
DESIGN = Design()
_MODELS: dict[str, loop.Settings] = {
    "large": {},
    "small": {"dynamics.hidden": "16,16"},
}


def labeled(preset: str) -> list[loop.Labeled]:
    """Every cell and loss, and plain SAC once for both models: it has none."""
    columns = {
        "task": {"hopper": tasks.mujoco("hopper", preset)},
        "distractors": {
            "0": {},
            "15": {"config": "hopper:quick_distracted"},
        },
    }
    losses = loop.losses("vagram", "mle", "mse_normalized")
    return [
        *loop.product(columns | {"model": _MODELS, "loss": losses}),
        *loop.product(columns | {"loss": loop.losses("sac")}),
    ]


run = loop.command(DESIGN, labeled)
