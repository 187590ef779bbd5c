"""Hopper: the setting in which VaGraM does best, on fresh seeds.

Of the four settings of `hopper` it is the one without distractors and with a small
model, in which VaGraM is below the strongest baseline, MLE, by the least. Plain SAC,
which is second, is trained too.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
DESIGN = Design()
_SETTING = tasks.FRESH | {"distractors": "0", "dynamics.hidden": "16,16"}


def labeled(preset: str) -> list[loop.Labeled]:
    """VaGraM, MLE and plain SAC in the one setting."""
    settings = tasks.mujoco("hopper", preset, "distracted") | _SETTING
    losses = loop.losses("vagram", "mle", "sac")
    return loop.product({"task": {"hopper": settings}, "loss": losses})


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
