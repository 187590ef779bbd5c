"""Pendulum: the README's example, with other numbers of distractors and models."""

from __future__ import annotations

from experiments.studies import loop
from vagram_jax.analysis.study import Design

PRESETS = ("quick",)
DESIGN = Design(axis="distractors")
_LOSSES = ("vagram", "mle", "mle_raw", "mse_normalized")


def labeled(preset: str) -> list[loop.Labeled]:
    """The example with more and fewer distractors, and with a larger model.

    Args:
      preset: "quick".

    Returns:
      Labels and settings of each run; plain SAC has no width, because it has no model.
    """
    task = {"task": {"pendulum": {"config": "pendulum"}}}
    counts = {str(n): {"distractors": str(n)} for n in (0, 15, 30)}
    widths = {str(w): {"dynamics.hidden": f"{w},{w}"} for w in (16, 64)}
    small = {"distractors": counts, "hidden": {"16": widths["16"]}}
    large = {"distractors": {"15": counts["15"]}, "hidden": {"64": widths["64"]}}
    losses = {"loss": loop.losses(*_LOSSES)}
    return [
        *loop.product(task | small | losses),
        *loop.product(task | large | losses),
        *loop.product(task | {"distractors": counts, "loss": loop.losses("sac")}),
    ]


run = loop.command(DESIGN, labeled)
