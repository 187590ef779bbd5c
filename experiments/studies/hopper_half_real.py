"""Hopper with distractors, a large model and half-real batches, on fresh seeds.

In the studies before 90% became the default, this was the setting of Hopper in which
VaGraM was below the strongest baseline, plain SAC, by the least.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
DESIGN = Design()
_SETTING = tasks.FRESH | tasks.HALF_REAL | {"distractors": "15"}


def labeled(preset: str) -> list[loop.Labeled]:
    """VaGraM, MLE and plain SAC in the one setting."""
    settings = tasks.mujoco("hopper", preset, "distracted") | _SETTING
    losses = loop.losses("vagram", "mle", "sac")
    return loop.product({"task": {"hopper": settings}, "loss": losses})


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
