"""Pendulum: return against the number of distracting dimensions.

The paper's claim: MLE fails as they are added, and VaGraM fails later. The distracting
dimensions have the scale of the state. Without any the losses should not differ.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

DESIGN = Design(axis="distractors")
_COUNTS = {
    ("pendulum", "quick"): (0, 15),
    ("cartpole", "quick"): (0, 5),
    ("pendulum", "full"): (0, 5, 10, 15, 20, 30),
    ("cartpole", "full"): (0, 5, 10, 15, 20, 30),
}


def labeled(preset: str, task: str = "pendulum") -> list[loop.Labeled]:
    """Every number of distracting dimensions and every loss."""
    names = (*tasks.model_losses(task, preset), "sac")
    counts = {str(n): {"distractors": str(n)} for n in _COUNTS[task, preset]}
    return loop.product(
        {
            "task": {task: tasks.small(task, preset)},
            "distractors": counts,
            "loss": loop.losses(*names, normalize=True),
        }
    )


run = loop.command(DESIGN, labeled)
