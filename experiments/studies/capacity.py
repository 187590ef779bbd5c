"""Pendulum: return against the width of the model, with distracting dimensions.

The paper's claim: with a small model MLE deteriorates and VaGraM stays stable. A model
with layers of 64 can predict all dimensions, so there the losses should not differ.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

DESIGN = Design(axis="hidden")
_WIDTHS = {"quick": (16, 64), "full": (4, 8, 16, 32, 64)}


def labeled(preset: str, task: str = "pendulum") -> list[loop.Labeled]:
    """Every width and loss, and plain SAC once: it has no model."""
    at = {"task": {task: tasks.small(task, preset)}}
    widths = {str(w): {"dynamics.hidden": f"{w},{w}"} for w in _WIDTHS[preset]}
    losses = loop.losses(*tasks.model_losses(task, preset), normalize=True)
    return [
        *loop.product(at | {"hidden": widths, "loss": losses}),
        *loop.product(at | {"loss": loop.losses("sac")}),
    ]


run = loop.command(DESIGN, labeled)
