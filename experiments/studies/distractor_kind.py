"""Hopper: distracting dimensions of the paper's code, and smooth ones.

The distracting dimensions of the paper's code jump between values, with a standard
deviation of about 8. Chaotic ones are smooth and have the scale of the state. What is
lost with the former alone is not lost because dimensions are irrelevant.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

DESIGN = Design()
_LOSSES = {
    "quick": ("vagram", "mle", "mse_normalized", "sac"),
    "full": ("vagram", "vagram_mixed", "mle", "mse_normalized", "sac"),
}


def labeled(preset: str) -> list[loop.Labeled]:
    """Both kinds of 15 distracting dimensions and every loss."""
    kinds = {kind: {"distractor_kind": kind} for kind in ("chaotic", "switching")}
    return loop.product(
        {
            "task": {"hopper": tasks.mujoco("hopper", preset, "distracted")},
            "kind": kinds,
            "loss": loop.losses(*_LOSSES[preset]),
        }
    )


run = loop.command(DESIGN, labeled)
