"""Hopper without distractors on fresh seeds, beside published learning curves.

The check that this is a correct MBPO: published MBPO has a mean return of 586 after
25,000 steps, of 1,728 after 50,000 and of 3,041 after 75,000.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
DESIGN = Design()
_FRESH = {"num_seeds": "8", "first_seed": "300"}


def labeled(preset: str) -> list[loop.Labeled]:
    """Every loss of `hopper`, for 75,000 steps."""
    length = {"total_steps": "75000", "replay_capacity": "75000"}
    settings = tasks.mujoco("hopper", preset) | length | _FRESH
    losses = loop.losses("mle", "vagram", "mse_normalized", "sac")
    return loop.product({"task": {"hopper": settings}, "loss": losses})


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
