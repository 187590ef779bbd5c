"""MuJoCo: Gymnasium's tasks without distracting dimensions, with a large model.

The paper's claim: VaGraM is on par with MLE on all of them, and better on Ant. The
quick and long presets leave Hopper to `hopper`.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("quick", "long", "full")
DESIGN = Design()
# Fewer steps than Hopper's, so that three tasks take an hour.
_STEPS = {"quick": {"total_steps": "9000"}, "long": {}, "full": {}}
_TASKS = {
    "quick": ("walker2d", "halfcheetah", "ant"),
    "long": ("walker2d", "halfcheetah"),
    "full": ("hopper", "walker2d", "halfcheetah", "ant", "humanoid"),
}
_LOSSES = {
    "quick": ("vagram", "mle", "mse_normalized", "sac"),
    "long": ("vagram", "mle", "sac"),
    "full": ("vagram", "vagram_mixed", "mle", "mse_normalized", "sac"),
}


def labeled(preset: str) -> list[loop.Labeled]:
    """Every task and loss."""
    settings = {
        name: tasks.mujoco(name, preset) | _STEPS[preset] for name in _TASKS[preset]
    }
    return loop.product({"task": settings, "loss": loop.losses(*_LOSSES[preset])})


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
