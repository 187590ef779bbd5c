"""Hopper: return with a small and a large model.

The paper's claim: with two and three layers of 64 MLE deteriorates quickly and VaGraM
stays stable. The quick preset has small networks throughout and few steps.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

DESIGN = Design()
_HIDDEN = {
    "quick": {"small": "8,8", "large": "128,128"},
    "full": {
        "2x64": "64,64",
        "3x64": "64,64,64",
        "4x64": "64,64,64,64",
        "4x200": "200,200,200,200",
    },
}


def labeled(preset: str) -> list[loop.Labeled]:
    """Every model and loss, and plain SAC once: it has no model."""
    task = {"task": {"hopper": tasks.mujoco("hopper", preset)}}
    hidden = {name: {"dynamics.hidden": text} for name, text in _HIDDEN[preset].items()}
    losses = loop.losses("vagram", "vagram_mixed", "mle", "mse_normalized")
    return [
        *loop.product(task | {"hidden": hidden, "loss": losses}),
        *loop.product(task | {"loss": loop.losses("sac")}),
    ]


run = loop.command(DESIGN, labeled)
