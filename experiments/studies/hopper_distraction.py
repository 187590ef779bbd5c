"""Hopper: return against distracting dimensions, of the kind of the paper's code.

The paper's claim: both losses get worse as dimensions are added; with 15 VaGraM still
moves forward and MLE is no better than a random policy.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

DESIGN = Design(axis="distractors")
_COUNTS = {"quick": (0, 15), "full": (0, 5, 10, 15)}


def labeled(preset: str) -> list[loop.Labeled]:
    """Every number of distracting dimensions and every loss."""
    losses = loop.losses("vagram", "vagram_mixed", "mle", "mse_normalized", "sac")
    return loop.product(
        {
            "task": {"hopper": tasks.mujoco("hopper", preset, "distracted")},
            "distractors": {str(n): {"distractors": str(n)} for n in _COUNTS[preset]},
            "loss": losses,
        }
    )


run = loop.command(DESIGN, labeled)
