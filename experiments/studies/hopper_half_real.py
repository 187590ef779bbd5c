"""Hopper with distractors, a large model and half-real batches, on fresh seeds.

In the studies before 90% became the default, this was the setting of Hopper in which
VaGraM was below the strongest baseline, plain SAC, by the least.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
DESIGN = Design()
_FRESH = {"distractors": "15", "num_seeds": "8", "first_seed": "200"}


def labeled(preset: str) -> list[loop.Labeled]:
    """VaGraM, MLE and plain SAC in the one setting."""
    task = tasks.mujoco("hopper", preset, "distracted")
    settings = task | tasks.HALF_REAL | _FRESH
    losses = loop.losses("vagram", "mle", "sac")
    return loop.product({"task": {"hopper": settings}, "loss": losses})


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
