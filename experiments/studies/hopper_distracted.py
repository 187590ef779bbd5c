"""Hopper: distracting dimensions and a small model, on fresh seeds.

It is the setting that VaGraM is made for: a model that is too small for all dimensions,
some of which don't matter. All baselines of `hopper` are trained.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
DESIGN = Design()
_SETTING = tasks.FRESH | {"distractors": "15", "dynamics.hidden": "16,16"}


def labeled(preset: str) -> list[loop.Labeled]:
    """Three losses and plain SAC in the one setting."""
    settings = tasks.mujoco("hopper", preset, "distracted") | _SETTING
    losses = loop.losses("vagram", "mle", "mse_normalized", "sac")
    return loop.product({"task": {"hopper": settings}, "loss": losses})


run = loop.command(DESIGN, labeled)
