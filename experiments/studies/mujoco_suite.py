"""MuJoCo: Gymnasium's tasks without distracting dimensions, with a large model.

The paper's claim: VaGraM is on par with MLE on all of them, and better on Ant. The
preset `long` leaves Hopper to `hopper`, and has no time for Ant and Humanoid.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long", "full")
DESIGN = Design()
_TASKS = {
    "long": ("walker2d", "halfcheetah"),
    "full": ("hopper", "walker2d", "halfcheetah", "ant", "humanoid"),
}
_LOSSES = {
    "long": ("vagram", "mle", "sac"),
    "full": ("vagram", "vagram_mixed", "mle", "mse_normalized", "sac"),
}


def labeled(preset: str) -> list[loop.Labeled]:
    """Every task and loss."""
    settings = {name: tasks.mujoco(name, preset) for name in _TASKS[preset]}
    return loop.product({"task": settings, "loss": loop.losses(*_LOSSES[preset])})


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
