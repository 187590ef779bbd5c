"""Hopper: the width of the model at which MLE begins to suffer.

The paper's claim is about models that are too small for MLE. The study looks for that
width on seeds of its own, for the small model of the study `hopper`.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
_WIDTHS = ("128", "16", "8", "4")
DESIGN = Design(contrast="hidden", methods=("128",), baselines=("16", "8", "4"))


def labeled(preset: str) -> list[loop.Labeled]:
    """MLE with two layers of each width, for 25,000 steps without distractors."""
    length = {"total_steps": "25000", "replay_capacity": "25000"}
    seeds = {"first_seed": "0"}
    hopper = tasks.mujoco("hopper", preset) | length | seeds
    widths = {width: {"dynamics.hidden": f"{width},{width}"} for width in _WIDTHS}
    task, mle = {"task": {"hopper": hopper}}, {"loss": loop.losses("mle")}
    return loop.product(task | {"hidden": widths} | mle)


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
